"""From an experiment and a base config to named runs, each a recipe of the stages that its measures need."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.vary import Choice
from allam_jax.config import differences
from allam_jax.errors import UserError
from allam_jax.files import write_json
from allam_jax.launch.overrides import override
from allam_jax.settings import as_dict
from allam_jax.tasks.recipe import Stage, is_finished, link_stage, stages_of
from allam_jax.tasks.runner import check

RECIPE_FILE = "recipe.json"  # a run's config, which `configs/saved.py` reads back


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        name: also of its directory.
        labels: axis -> its setting.
        config: its recipe.
        stages: of the recipe, in order.
        workdir: holds its config and a link to each stage.
        store: where the stages lie.
    """

    name: str
    labels: dict[str, Any]
    config: ConfigDict
    stages: tuple[Stage, ...]
    workdir: Path
    store: Path

    @property
    def directories(self) -> dict[str, Path]:
        """Where each stage lies."""
        return {stage.name: stage.directory(workdir=self.workdir, store=self.store) for stage in self.stages}

    @property
    def finished(self) -> bool:
        """Whether every stage has ended well."""
        return all(is_finished(directory) for directory in self.directories.values())

    def save(self) -> None:
        """Writes the recipe into the run's directory, and links to where its stages are or will be."""
        write_json(self.workdir / RECIPE_FILE, as_dict(self.config))
        for name, directory in self.directories.items():
            link_stage(self.workdir / name, directory)


def expand(
    experiment: Experiment, base: ConfigDict, *, workdir: Path, store: Path, overrides: Mapping[str, Any]
) -> list[Run]:
    """The runs of a sweep, in the order of `experiment.vary`.

    Args:
        experiment: what varies and what is measured.
        base: the config to start from; not changed. A single task becomes a recipe of one stage, named as the task.
        workdir: of the sweep.
        store: where stages lie.
        overrides: keys set in every run before its own; also in the stages that the experiment adds.

    Raises:
        UserError: a key or stage is not there, a value cannot be used, or two runs come out the same.
    """
    recipe = _recipe(base, experiment=experiment)
    override(recipe, overrides, where="--set")
    names = [choice.name for choice in experiment.vary]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"vary: two runs are called {min(twice)!r}; give an axis another name or other values")
    runs = [
        _run(choice, recipe, experiment=experiment, workdir=workdir / "runs" / choice.name, store=store)
        for choice in experiment.vary
    ]
    by_stages: dict[tuple[str, ...], Run] = {}
    for run in runs:
        same = by_stages.setdefault(tuple(stage.fingerprint for stage in run.stages), run)
        if same is not run:
            raise UserError(
                f"runs {same.name!r} and {run.name!r} are the same: what differs between them is in no stage that a "
                "measure needs; vary a key of one of their stages, or measure another stage"
            )
    return runs


def _recipe(base: ConfigDict, *, experiment: Experiment) -> ConfigDict:
    """A copy of the base with the experiment's stages; for a single task, a recipe with one stage."""
    stages = {name: base.stage[name] for name in base.stages} if base.task == "recipe" else {base.task: base}
    more = dict(experiment.extend(base)) if experiment.extend else {}
    if twice := stages.keys() & more.keys():
        raise UserError(f"extend: the recipe has a stage {min(twice)!r} already; call the new one something else")
    return _as_recipe(stages | more)


def _as_recipe(stages: Mapping[str, ConfigDict]) -> ConfigDict:
    copies = {name: stage.copy_and_resolve_references() for name, stage in stages.items()}
    recipe = ConfigDict({"task": "recipe", "stages": tuple(copies), "stage": copies})
    recipe.lock()
    return recipe


def _run(choice: Choice, recipe: ConfigDict, *, experiment: Experiment, workdir: Path, store: Path) -> Run:
    config = recipe.copy_and_resolve_references()
    config.lock()
    override(config, choice.overrides, where=f"run {choice.name}")
    missing = [stage for stage in experiment.stages if stage not in config.stages]
    if missing:
        raise UserError(f"measures: no stage is called {missing[0]!r}; there are {', '.join(config.stages)}")
    needed: set[str] = set()
    try:
        for stage in reversed(stages_of(config)):
            if stage.name in experiment.stages or stage.name in needed:
                needed |= {stage.name, *stage.uses}
        config = _as_recipe({name: config.stage[name] for name in config.stages if name in needed})
        check(config)
    except UserError as error:
        raise UserError(f"run {choice.name}: {error}") from None
    return Run(choice.name, dict(choice.labels), config, tuple(stages_of(config)), workdir, store)


def differing(run: Run, other: Run) -> list[str]:
    """Lines `key: value -> value` for every key in which two runs differ."""
    return differences(as_dict(run.config), as_dict(other.config))
