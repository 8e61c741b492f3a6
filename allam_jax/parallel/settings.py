"""Settings of the device mesh."""

from allam_jax.settings import Section, setting


class MeshSettings(Section, name="mesh"):
    """Devices along each mesh axis; -1, for one axis at most, takes what is left."""

    data: int = setting(-1, "replicas of the parameters", least=-1)
    fsdp: int = setting(1, "shards of the parameters, gathered layer by layer", least=-1)
    tensor: int = setting(1, "pieces of heads, feed-forward width and vocabulary", least=-1)
