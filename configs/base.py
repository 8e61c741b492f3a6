"""Where configs begin: the defaults of a task, and the named entries that its sections hold.

Every key with its default and meaning: docs/config.md, or `python run.py --help_config TASK`. A config states only what
differs. String values may start with `@stage`: the directory of an earlier stage of the same recipe.
"""

import dataclasses

from ml_collections import ConfigDict

from allam_jax.alignment.settings import ConversationSourceSettings
from allam_jax.corpus.settings import DocumentsSettings, RuleSettings, TextsSettings
from allam_jax.data.settings import PhaseSettings, SourceSettings
from allam_jax.evaluation.settings import SuiteSettings
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.settings import Section, lock, to_config
from allam_jax.tasks.registry import default_config
from allam_jax.tasks.settings import AdaptedSettings, ArmSettings, TunedSettings
from allam_jax.weights.settings import MergeInputSettings


def get_config(task: str) -> ConfigDict:
    """The defaults of a task of allam_jax/tasks/registry.py; only its keys can be set."""
    return default_config(task)


def recipe(**stages: ConfigDict) -> ConfigDict:
    """A recipe: named configs that run in order; `--config.stage.NAME.key=value` changes one."""
    config = ConfigDict()
    config.task = "recipe"
    config.stages = tuple(stages)
    config.stage = ConfigDict(stages)
    return config


def longer(first: ConfigDict, **stages: ConfigDict) -> ConfigDict:
    """A recipe with further stages behind its own."""
    return recipe(**{name: first.stage[name] for name in first.stages}, **stages)


def model(config: LlamaConfig) -> ConfigDict:
    """A preset as config values."""
    return ConfigDict(dataclasses.asdict(config))


def documents(**values) -> ConfigDict:
    """One entry of `corpus.sources`: where documents come from."""
    return _entry(DocumentsSettings, values)


def rule(tag: str, drop: str, threshold: float) -> ConfigDict:
    """One entry of a set in `corpus.rules`: a document is dropped where `tag drop threshold` holds."""
    return _entry(RuleSettings, {"tag": tag, "drop": drop, "threshold": float(threshold)})


def mixture(**values) -> ConfigDict:
    """One entry of `data.sources` or `eval.sources`: documents to draw from."""
    return _entry(SourceSettings, values)


def phase(*, from_step: int, **weights: float) -> ConfigDict:
    """One entry of `data.phases`: the mixture from a step on, as weights of `data.sources` by name."""
    return _entry(PhaseSettings, {"from_step": from_step, "weights": weights})


def conversations(**values) -> ConfigDict:
    """One entry of `conversations.sources`: conversations, or pairs of them, of one language."""
    return _entry(ConversationSourceSettings, values)


def texts(**values) -> ConfigDict:
    """One entry of the sources of a tokenizer, a merge or a classifier: whole texts to read."""
    return _entry(TextsSettings, values)


def arm(**values) -> ConfigDict:
    """One entry of `report.arms`: an expanded model and its continued pre-training."""
    return _entry(ArmSettings, values)


def adapted(**values) -> ConfigDict:
    """One entry of `adaptation.arms`: a training run, the runs before it, and its probes."""
    return _entry(AdaptedSettings, values)


def tuned(**values) -> ConfigDict:
    """One entry of `tuning.models`: a model, by the stages that have measured it."""
    return _entry(TunedSettings, values)


def merge_input(**values) -> ConfigDict:
    """One entry of `merge.models`: a model, or checkpoints of a run."""
    return _entry(MergeInputSettings, values)


def suite(**values) -> ConfigDict:
    """One entry of `harness.suites`: questions with choices, in files of the user's."""
    return _entry(SuiteSettings, values)


def _entry(kind: type[Section], values: dict) -> ConfigDict:
    config = lock(to_config(kind.default()), kind)
    config.update(values)
    return config
