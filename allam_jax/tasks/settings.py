"""Settings that no room owns: keys at the top level of a config, and the stages that a report reads."""

from collections.abc import Mapping

from allam_jax.errors import UserError
from allam_jax.settings import Section, entries, setting


class SeedSettings(Section):
    """Where randomness comes from."""

    seed: int = setting(0, "everything random follows from it", least=0, most=2**32 - 1)


class TokenizerSettings(Section):
    """Which tokenizer is used."""

    tokenizer: str = setting(
        "", "tokenizer directory (or tokenizer.model); empty takes the one beside the weights", path="tokenizer"
    )


class VerifySettings(Section, name="verify"):
    """What is checked for damage."""

    path: str = setting("", "a workdir, checkpoint, export, weights directory, tokenizer, dataset, or a folder of them")


class ArmSettings(Section):
    """An expanded model and its continued pre-training."""

    expand: str = setting("", "directory of the stage that expanded it", path="stage")
    continued: str = setting("", "directory of the stage that trained it on", path="stage")


class AdaptedSettings(Section):
    """One way in which a base was adapted: what trained it, and what it can do now."""

    run: str = setting("", "directory of the last stage that trained it", path="stage")
    before: Mapping[str, str] = entries("name -> directory of a stage that it went on from", path="stage")
    probe: str = setting("", "directory of its probe; empty: it was not asked", path="stage")
    average: str = setting("", "directory of the probe of its averaged weights; empty: there is none", path="stage")


class AdaptationSettings(Section, name="adaptation"):
    """Directories of the stages that the report of an adapted model reads."""

    base: str = setting("", "of the base's probe; empty: it was not asked", path="stage")
    expanded: str = setting("", "of an expansion of the base, whose report has its bits per byte", path="stage")
    arms: Mapping[str, AdaptedSettings] = entries("name -> base.adapted(...)")
    target: tuple[str, ...] = setting(("ar",), "sources of data.sources in the new language, whose bytes are counted")
    kept: str = setting("en", "held-out source of the base's language")


class TunedSettings(Section):
    """A model on its way to an aligned one, by the stages that have measured it. Empty: it was not measured so."""

    bits: str = setting("", "directory of its evaluation, or of the training run that it came out of", path="stage")
    losses: str = setting("", "directory of a chat_losses stage", path="stage")
    answers: str = setting("", "directory of a generate stage over prompts with `expected`", path="stage")
    probe: str = setting("", "directory of its probe", path="stage")


class TuningSettings(Section, name="tuning"):
    """Directories of the stages that the report of an aligned model reads."""

    data: str = setting("", "of the instruction_data stage", path="stage")
    quality: str = setting("", "of the sft_quality stage", path="stage")
    pairs: str = setting("", "of the preferences stage", path="stage")
    models: Mapping[str, TunedSettings] = entries("name -> base.tuned(...)")
    order: tuple[str, ...] = setting((), "of the models, by name; changes are those against the first")
    bootstrap: int = setting(2000, "samples for the intervals of differences", least=100, most=1_000_000)
    shown: int = setting(3, "held-out prompts of each kind whose answers are shown", least=0)

    def check(self) -> None:
        """UserError for an order that is not one of the models."""
        if set(self.order) != set(self.models):
            raise UserError("config.tuning.order: name each of tuning.models once, from the first model to the last")


class ReportSettings(Section, name="report"):
    """Directories of the stages that the report of a recipe reads."""

    base: str = setting("", "of the base's training; empty: the base's scores are those of the expansion", path="stage")
    tokenizers: str = setting("", "of the merged tokenizer", path="stage")
    export: str = setting("", "of the export", path="stage")
    evaluation: str = setting("", "of the export's evaluation; empty: there is none", path="stage")
    arms: Mapping[str, ArmSettings] = entries("method -> base.arm(...)")
