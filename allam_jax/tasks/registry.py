"""The tasks: which module runs each, which sections of a config it reads, and whether it runs on devices.

A new task is its module, its settings and one row here. Nothing in this file imports JAX.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from allam_jax import settings
from allam_jax.alignment.settings import (
    ChatQualitySettings,
    ConversationSettings,
    DamageChatsSettings,
    DpoSettings,
    InstructionDataSettings,
    PreferenceSettings,
    ReplaySettings,
    ReviewSettings,
    SftSettings,
    WatchSettings,
)
from allam_jax.corpus.settings import CorpusSettings, PlantedCheckSettings, PlantedSettings, QualitySettings
from allam_jax.data.settings import DataSettings, MixtureSettings, RowSettings
from allam_jax.errors import UserError, nearest
from allam_jax.evaluation.settings import (
    ArenaSettings,
    ContaminationSettings,
    EvalSettings,
    HarnessSettings,
    JudgeSettings,
    LikelihoodSettings,
    ProbeSettings,
    ProgramsSettings,
    SuiteCurvesSettings,
    SuiteEvalSettings,
    SuiteReportSettings,
)
from allam_jax.generation.settings import ChatSettings, EngineSettings, GenerateSettings, ServeSettings
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig
from allam_jax.model.settings import ExpandSettings, LoraSettings
from allam_jax.parallel.settings import MeshSettings
from allam_jax.planning.settings import PlanSettings, RewritePlanSettings
from allam_jax.rewriting.settings import (
    CompareCorporaSettings,
    DamageSettings,
    JoinSettings,
    RewriteSettings,
    SeedPairsSettings,
    SeedPoolSettings,
    TranslateSettings,
)
from allam_jax.settings import Section, Settings
from allam_jax.tasks.settings import (
    AdaptationSettings,
    ReportSettings,
    SeedSettings,
    TokenizerSettings,
    TuningSettings,
    VerifySettings,
)
from allam_jax.tokenizer.settings import TokenizerExtensionSettings, TokenizerMergeSettings, TokenizerTrainingSettings
from allam_jax.training.settings import (
    CheckpointSettings,
    GuardSettings,
    InitSettings,
    MetricsSettings,
    OptimizerSettings,
    ParameterSettings,
    ScheduleSettings,
    TrainableSettings,
    TrainSettings,
)
from allam_jax.weights.settings import ExportSettings, MergeSettings, WeightsSettings


@dataclasses.dataclass(frozen=True)
class Task:
    """One row. The task's module has `run(config, workdir) -> dict` and is imported when the task runs."""

    sections: tuple[type[Section], ...]  # what it reads of a config
    on_devices: bool = False  # whether all processes take part; otherwise the first one works alone
    looks_at: str = ""  # another task, whose configs this one can run on too
    module: str = ""  # empty: allam_jax.tasks.NAME


_UPDATE = (
    LlamaConfig,
    ComputeOptions,
    ParameterSettings,
    MeshSettings,
    TrainSettings,
    TrainableSettings,
    LoraSettings,
    OptimizerSettings,
    ScheduleSettings,
    GuardSettings,
)
_STEP = (*_UPDATE, DataSettings)  # what decides the compiled training step
_RUN = (
    SeedSettings,
    TokenizerSettings,
    InitSettings,
    EvalSettings,
    SuiteEvalSettings,
    LikelihoodSettings,
    CheckpointSettings,
    MetricsSettings,
)
_MODEL = (TokenizerSettings, WeightsSettings, MeshSettings, ComputeOptions)  # a finished model on devices

TASKS: dict[str, Task] = {
    "corpus": Task((SeedSettings, CorpusSettings)),
    "plant": Task((SeedSettings, PlantedSettings)),
    "check_planted": Task((PlantedCheckSettings,)),
    "quality_classifier": Task((SeedSettings, QualitySettings)),
    "tokenizer": Task((TokenizerTrainingSettings,)),
    "merge_tokenizer": Task((TokenizerMergeSettings,)),
    "extend_tokenizer": Task((TokenizerExtensionSettings,)),
    "train": Task((*_RUN, *_STEP), on_devices=True),
    "sft": Task(
        (*_RUN, *_UPDATE, RowSettings, ConversationSettings, ReplaySettings, SftSettings, WatchSettings),
        on_devices=True,
    ),
    "dpo": Task((*_RUN, *_UPDATE, RowSettings, ConversationSettings, DpoSettings, WatchSettings), on_devices=True),
    "instruction_data": Task((SeedSettings, InstructionDataSettings)),
    "chat_losses": Task((*_MODEL, RowSettings, ConversationSettings), on_devices=True),
    "damage_chats": Task((SeedSettings, DamageChatsSettings)),
    "sft_quality": Task((SeedSettings, TokenizerSettings, WeightsSettings, ComputeOptions, ChatQualitySettings)),
    "preferences": Task((SeedSettings, *_MODEL, PreferenceSettings, EngineSettings), on_devices=True),
    "review": Task((ReviewSettings,)),
    "seed": Task((SeedSettings, SeedPoolSettings)),
    "seed_pairs": Task((SeedSettings, *_MODEL, SeedPairsSettings, LikelihoodSettings), on_devices=True),
    "damage": Task((SeedSettings, DamageSettings)),
    "compare_corpora": Task((SeedSettings, *_MODEL, CompareCorporaSettings, LikelihoodSettings), on_devices=True),
    "rewrite": Task((SeedSettings, *_MODEL, RewriteSettings, EngineSettings), on_devices=True),
    "translate": Task(
        (SeedSettings, *_MODEL, TranslateSettings, EngineSettings), on_devices=True, module="allam_jax.tasks.rewrite"
    ),
    "join_rewrites": Task((JoinSettings,)),
    "tokenize": Task((TokenizerSettings, DataSettings), looks_at="train"),
    "mixture": Task((TokenizerSettings, DataSettings, TrainSettings, MixtureSettings), looks_at="train"),
    "plan": Task((*_STEP, InitSettings, PlanSettings), looks_at="train"),
    "plan_rewrite": Task((LlamaConfig, WeightsSettings, RewritePlanSettings)),
    "expand": Task((SeedSettings, *_MODEL, ExpandSettings, EvalSettings), on_devices=True),
    "evaluate": Task((*_MODEL, EvalSettings), on_devices=True),
    "harness": Task((SeedSettings, *_MODEL, HarnessSettings, LikelihoodSettings, EngineSettings), on_devices=True),
    "programs": Task((SeedSettings, *_MODEL, ProgramsSettings, EngineSettings), on_devices=True),
    "probe": Task((SeedSettings, *_MODEL, ProbeSettings, LikelihoodSettings), on_devices=True),
    "suite_curves": Task((SuiteCurvesSettings,)),
    "suite_report": Task((SeedSettings, SuiteReportSettings)),
    "contamination": Task((ContaminationSettings,)),
    "mt_bench_answers": Task((SeedSettings, *_MODEL, GenerateSettings, EngineSettings), on_devices=True),
    "judge": Task((SeedSettings, JudgeSettings)),
    "arena": Task((SeedSettings, ArenaSettings)),
    "generate": Task((SeedSettings, *_MODEL, GenerateSettings, EngineSettings), on_devices=True),
    "chat": Task((SeedSettings, *_MODEL, ChatSettings, EngineSettings), on_devices=True),
    "serve": Task((*_MODEL, ServeSettings, EngineSettings), on_devices=True),
    "export": Task((TokenizerSettings, WeightsSettings, MeshSettings, ExportSettings), on_devices=True),
    "merge": Task((TokenizerSettings, MergeSettings, ExportSettings), on_devices=True),
    "expansion_report": Task((ReportSettings,)),
    "adaptation_report": Task((AdaptationSettings,)),
    "tuning_report": Task((SeedSettings, TuningSettings)),
    "verify": Task((VerifySettings,)),
}


def task_named(name: str) -> Task:
    """The row of a task; UserError for a name that there is not."""
    if name not in TASKS:
        raise UserError(f"no task is called {name!r}; {nearest(name, [*TASKS, 'recipe'])}")
    return TASKS[name]


def sections_in_config(name: str) -> tuple[type[Section], ...]:
    """The sections of a config for this task: its own, and those of tasks that look at such configs."""
    host = task_named(name).looks_at or name
    guests = [row.sections for row in TASKS.values() if row.looks_at == host]
    found: dict[str, type[Section]] = {}
    for cls in (*TASKS[host].sections, *(cls for sections in guests for cls in sections)):
        found.setdefault(cls.section_name or cls.__name__, cls)
    return tuple(found.values())


def default_config(name: str) -> ConfigDict:
    """The defaults of a task, locked: only existing keys can be set, and named entries added."""
    config = ConfigDict({"task": name})
    for cls in sections_in_config(name):
        values = settings.to_config(cls.default())
        if cls.section_name:
            config[cls.section_name] = values
        else:
            config.update(values)
    config.lock()
    for cls in sections_in_config(name):
        settings.lock(config[cls.section_name] if cls.section_name else config, cls)
    return config


def settings_of(config: Mapping[str, Any] | ConfigDict, *, task: str = "") -> Settings:
    """What a task reads of a config, as checked dataclasses: an attribute for each section and top-level key.

    Args:
        config: made for the task, or for one that the task looks at.
        task: empty: the config's own.

    Raises:
        UserError: a value cannot be used, or the config lacks a section that the task needs.
    """
    name = task or config["task"]
    found: dict[str, Any] = {"task": name}
    for cls in task_named(name).sections:
        found |= _section_of(config, cls, task=name)
    for cls in sections_in_config(name):  # those of tasks that look at the same config are checked too
        if cls.section_name not in found and cls.section_name in config:
            _section_of(config, cls, task=name)
    return Settings(**found)


def changed_settings(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """What decides the result of a stage: its task, and the values of its sections that are not the defaults.

    A section's version comes in from 2 on. So a new key with a default changes nothing, and neither does a new section.
    """
    name = config["task"]
    found: dict[str, Any] = {"task": name}
    for cls in task_named(name).sections:
        read = _section_of(config, cls, task=name) if cls.changes_results else {}
        for attribute, value in read.items():
            if isinstance(value, Section):
                values = settings.changed(value)
                if cls.section_version > 1:
                    values["version"] = cls.section_version
                found |= {attribute: values} if values else {}
            elif value != getattr(cls.default(), attribute):
                found[attribute] = value
    return found


def owners_of(key: str) -> list[str]:
    """The tasks whose configs have a section or a top-level key of this name."""
    return [
        name
        for name, row in TASKS.items()
        for cls in row.sections
        if key == cls.section_name or (not cls.section_name and key in {f.name for f in dataclasses.fields(cls)})
    ]


def _section_of(config: Mapping[str, Any] | ConfigDict, cls: type[Section], *, task: str) -> dict[str, Any]:
    if not cls.section_name:
        keys = [field.name for field in dataclasses.fields(cls)]
        read = settings.read(cls, {key: config[key] for key in keys if key in config})
        return {key: getattr(read, key) for key in keys}
    if cls.section_name not in config:
        raise UserError(
            f"config.task = {task!r}: the config has no section {cls.section_name!r}, which this task reads; make it "
            f"with base.get_config({task!r})"
        )
    return {cls.section_name: settings.read(cls, config[cls.section_name], where=cls.section_name)}
