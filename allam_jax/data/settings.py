"""Settings of the training data and of task mixture."""

from collections.abc import Mapping

from allam_jax.settings import Section, entries, setting

_TRILLIONS = 2**53


class SourceSettings(Section):
    """One source of a mixture, or of held-out documents."""

    path: str = setting(
        "", "a TFDS dataset directory written by task corpus, or its tokens, written by task tokenize", path="files"
    )
    split: str = setting("train", "train or validation")
    weight: float = setting(1.0, "share of the tokens, relative to the sum over sources", least=0)
    epochs: float = setting(
        0.0, "how often the source is read, if every source says so; weights then do not count", least=0
    )
    tokens: int = setting(
        0,
        "tokens of one epoch; 0: counted from path (epochs of a training run need a token cache)",
        least=0,
        most=_TRILLIONS,
    )
    language: str = setting("", "label in tables, such as en")
    domain: str = setting("", "label in tables, such as web")
    origin: str = setting("", "label in tables: natural or translated")


class PhaseSettings(Section):
    """A mixture that holds from a step on."""

    from_step: int = setting(1, "updates made when it begins", least=1)
    weights: Mapping[str, float] = entries("source of data.sources -> relative weight; an unnamed source is not drawn")


class RowSettings(Section, name="data"):
    """The shape of a batch."""

    seq_len: int = setting(256, "tokens of a row", least=1)
    batch_size: int = setting(8, "rows of an optimizer step, over all devices", least=1)


class DataSettings(RowSettings, name="data"):
    """What batches are made of."""

    sources: Mapping[str, SourceSettings] = entries("base.mixture(...): what is drawn from")
    phases: Mapping[str, PhaseSettings] = entries("base.phase(from_step=..., SOURCE=weight, ...): later mixtures")
    lanes: int = setting(
        0, "independent streams that make up a batch, whatever the hosts; 0: as many of 8 as divide it", least=0
    )


class MixtureSettings(Section, name="mixture"):
    """What task mixture checks of data.sources and data.phases."""

    tokens: int = setting(
        0, "budget; 0: train.steps steps, or what the epochs of the sources add up to", least=0, most=_TRILLIONS
    )
    max_epochs: float = setting(0.0, "more epochs of a source than this are refused; 0: no limit", least=0)
    sum_of_weights: float = setting(
        0.0, "1 or 100 where weights are shares that must add up; 0: they are relative", least=0
    )
