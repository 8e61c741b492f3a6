"""Settings of reading, merging and writing weights."""

from collections.abc import Mapping

from allam_jax.errors import UserError
from allam_jax.settings import Section, entries, setting

DECAY_SHAPES = ("linear", "one_minus_sqrt", "cosine", "exponential")  # of a learning rate, and of a merge like it
FORMATS = ("huggingface", "orbax", "gguf")
GGUF_TYPES = ("F16", "BF16", "F32", "Q8_0")
MERGE_METHODS = ("average", "weighted", "decay", "linear", "slerp")


class WeightsSettings(Section, name="init"):
    """The model that a task works on."""

    weights: str = setting(
        "", "weights directory, Hugging Face directory, GGUF file, or a run's workdir or checkpoint", path="model"
    )


class ExportSettings(Section, name="export"):
    """How a model is written."""

    formats: tuple[str, ...] = setting(("huggingface", "orbax"), "what is written", choices=FORMATS)
    dtype: str = setting(
        "",
        "empty keeps the parameters' dtype (of a merge: the one that holds those of all models)",
        choices=("", "float32", "bfloat16", "float16"),
    )
    gguf_type: str = setting("F16", "of the matrices in a GGUF file; its vectors are float32", choices=GGUF_TYPES)
    max_shard_gb: float = setting(5.0, "size of a safetensors file", above=0, most=1e6)


class MergeInputSettings(Section):
    """A model, or checkpoints of a run."""

    path: str = setting(
        "", "weights directory, Hugging Face directory, GGUF file, or a run's workdir or checkpoint", path="model"
    )
    steps: tuple[int, ...] = setting(
        (), "of a run: its checkpoints of these steps, each a model; empty takes the newest", least=0
    )
    weight: float = setting(1.0, "weighted: of each of them, relative to the sum over all", least=-1e6, most=1e6)


class MergeSettings(Section, name="merge"):
    """How models are merged. decay: combines checkpoints of a constant learning rate as if the rate had decayed."""

    method: str = setting("average", "linear and slerp are between two models", choices=MERGE_METHODS)
    models: Mapping[str, MergeInputSettings] = entries("base.merge_input(...), in the order of the names")
    t: float = setting(0.5, "linear and slerp: 0 is the first model, 1 the second", least=0, most=1)
    decay_shape: str = setting("one_minus_sqrt", "decay: its shape", choices=DECAY_SHAPES)
    final_fraction: float = setting(0.0, "decay: share of the learning rate at which it ends", least=0, most=1)

    def check(self) -> None:
        """UserError for an exponential decay to 0."""
        if self.method == "decay":
            check_decay("merge", shape=self.decay_shape, final_fraction=self.final_fraction)


def check_decay(section: str, *, shape: str, final_fraction: float) -> None:
    """UserError for a decay of the learning rate that never reaches its end."""
    if shape == "exponential" and final_fraction == 0:
        raise UserError(
            f"config.{section}.final_fraction = 0: an exponential decay never reaches 0; give a share above 0"
        )
