"""Measures that experiments with several languages share, under the same names."""

from collections.abc import Mapping

from allam_jax.ablation.measures import Measure, curve, mean_of_last, metric
from allam_jax.evaluation.metric_keys import HELD_OUT, metric_key

BITS = "bits/byte"
NATS = "nats/token"


def final_bits(stage: str, languages: Mapping[str, str]) -> tuple[Measure, ...]:
    """`final_KEY`: bits per byte of held-out text at the end of a training stage, for each language.

    Args:
        stage: a training stage whose `eval.sources` have these languages.
        languages: key in `eval.sources` -> name, such as `{"en": "English"}`.
    """
    return tuple(
        metric(f"final_{key}", key=bits_key(key), stage=stage, title=f"{name}, end", unit=BITS)
        for key, name in languages.items()
    )


def bits_curves(stage: str | tuple[str, ...], languages: Mapping[str, str]) -> tuple[Measure, ...]:
    """`bits_per_byte_KEY`: bits per byte at every evaluation, as a curve for each language; see `curve` for `stage`."""
    return tuple(
        curve(f"bits_per_byte_{key}", key=bits_key(key), stage=stage, title=name, unit=BITS)
        for key, name in languages.items()
    )


def training_measures(stage: str) -> tuple[Measure, ...]:
    """`loss` (mean of the last 20 logged updates), `loss_curve`, and `grad_norm_curve` (the norm before clipping)."""
    return (
        metric(
            "loss",
            key="loss",
            stage=stage,
            title="Training loss, last 20 updates",
            unit=NATS,
            reduce=mean_of_last(20),
        ),
        curve("loss_curve", key="loss", stage=stage, title="Training loss", unit=NATS),
        curve("grad_norm_curve", key="grad_norm", stage=stage, title="Gradient norm"),
    )


def curve_names(languages: Mapping[str, str]) -> tuple[str, ...]:
    """The names of the measures of `bits_curves`, for figures."""
    return tuple(f"bits_per_byte_{key}" for key in languages)


def final_names(languages: Mapping[str, str]) -> tuple[str, ...]:
    """The names of the measures of `final_bits`, for figures."""
    return tuple(f"final_{key}" for key in languages)


def bits_key(language: str) -> str:
    """The name of a language's bits per byte among the metrics of a training run."""
    return metric_key(HELD_OUT, language, "bits_per_byte")
