"""Experiments, and the files that define them.

A file defines `get_experiment()`, or `get_experiment(arg)` for `--sweep FILE:ARG`. Its docstring states the claim.
"""

import dataclasses
import importlib.util
import inspect
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from allam_jax.ablation.claims import Claim
from allam_jax.ablation.figures import Figure
from allam_jax.ablation.measures import Measure
from allam_jax.ablation.vary import SEED, Choices
from allam_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One ablation; see docs/sweeps.md.

    Attributes:
        title: the heading of the report.
        claim: the tested claim in a sentence, with its source.
        config: the config file `FILE[:ARG]` of the experiment; the flag `--config` replaces it.
        vary: the runs, as choices that differ from the config.
        measures: the numbers and curves to read from every run.
        figures: the figures to draw.
        claims: the claims to judge.
        extend: base config -> further stages, which are appended to its recipe.
    """

    title: str
    claim: str
    config: str
    vary: Choices
    measures: tuple[Measure, ...]
    figures: tuple[Figure, ...] = ()
    claims: tuple[Claim, ...] = ()
    extend: Callable[[ConfigDict], Mapping[str, ConfigDict]] | None = None

    def __post_init__(self):
        if not self.vary:
            raise UserError("vary: there are no runs; relax `keep`")
        if not self.measures:
            raise UserError("measures: expected at least one")
        names = [measure.name for measure in self.measures]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(f"measures: two are called {min(twice)!r}")
        axes = set().union(*(choice.labels for choice in self.vary))
        if clash := {"run", "seconds"} & axes | set(names) & axes:
            raise UserError(f"{min(clash)!r} is the name of an axis and of a column; rename one of them")
        for used in (*self.figures, *self.claims):
            for name in used.measure_names:
                if name not in names:
                    raise UserError(f"{used.what}: no measure is called {name!r}; {nearest(name, names)}")
            for axis in used.axis_names:
                if axis not in axes:
                    raise UserError(f"{used.what}: no axis is called {axis!r}; {nearest(axis, sorted(axes))}")
        for claim in self.claims:
            claim.check([choice.labels for choice in self.vary])

    def measure(self, name: str) -> Measure:
        """The measure of this name."""
        return next(measure for measure in self.measures if measure.name == name)

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of all axes except the seed, in order."""
        return tuple(dict.fromkeys(axis for choice in self.vary for axis in choice.labels if axis != SEED))

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages that the measures read."""
        return tuple(dict.fromkeys(stage for measure in self.measures for stage in measure.stages))


def load_experiment(reference: str) -> Experiment:
    """Loads the experiment `FILE[:ARG]`. Raises UserError with the file, and with the line if it is known."""
    path, separator, arg = reference.partition(":")
    try:
        function = getattr(_module(Path(path)), "get_experiment", None)
        if function is None:
            raise UserError("the file defines no function get_experiment()")
        if separator and not inspect.signature(function).parameters:
            raise UserError(f"get_experiment takes no argument, but {arg!r} was given")
        experiment = function(arg) if separator else function()
    except UserError as error:
        raise UserError(f"--sweep {reference}: {error}") from None
    except (Exception, SystemExit) as error:  # the file is code and can raise anything
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).absolute() == Path(path).absolute()
        ]
        at = f", line {error.lineno}" if isinstance(error, SyntaxError) else f", line {lines[-1]}" if lines else ""
        raise UserError(f"--sweep {path}{at}: {type(error).__name__}: {error}") from error
    if not isinstance(experiment, Experiment):
        kind = type(experiment).__name__
        raise UserError(f"--sweep {path}: get_experiment returned a {kind}; expected an Experiment")
    return experiment


def _module(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError("no such file; the experiments that come with allam_jax are in experiments/")
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path.absolute())
    if spec is None or spec.loader is None:
        raise UserError("expected a Python file, NAME.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
