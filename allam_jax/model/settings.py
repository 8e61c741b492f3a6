"""Settings of the vocabulary expansion."""

from allam_jax.settings import Section, setting

METHODS = ("subword_mean", "random", "mean_all", "first_piece", "last_piece", "mean_noise")


class ExpandSettings(Section, name="expand"):
    """How the embeddings of new tokens start."""

    method: str = setting("subword_mean", "of the embedding table", choices=METHODS)
    head_method: str = setting("", "of the output table; empty: the same", choices=("", *METHODS))
    noise_std: float = setting(
        0.02, "mean_noise: standard deviation, relative to that of the base table", least=0, most=1e3
    )
    covariance_scale: float = setting(
        1e-9, "mean_all: 1e-9 as Hugging Face; 1 is the full spread of the base's rows", least=0, most=1e3
    )
