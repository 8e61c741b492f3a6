"""The choices of a sweep, as a small language.

    grid(
        arms("method", random={"stage.expand.expand.method": "random"}, averaged={...}),
        param("stage.continued.schedule.peak_lr", 1e-4, 3e-4, name="lr"),
        seeds(0, 1, 2, keys=("stage.expand.seed", "stage.continued.seed")),
        keep=lambda method, lr, **_: method != "random" or lr == 1e-4,
    )

Every function returns a tuple of choices, so all of them can be combined. A key is a dotted path in the config; `*`
matches any part of it, as in `stage.*.seed`. A value is one leaf, a plain dict of keys below, or a ConfigDict that
replaces a whole section.
"""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

from allam_jax.errors import UserError

_LONGEST = 150  # bytes of a run's name: file systems take 255, and names of files begin with it
SEED = "seed"  # the axis that tables and figures average over


@dataclasses.dataclass(frozen=True)
class Choice:
    """One setting of some axes.

    Attributes:
        labels: axis -> the name of this setting in tables, figures and claims.
        words: the parts of the run's name, one per axis.
        overrides: config key -> value.
    """

    labels: dict[str, Any] = dataclasses.field(default_factory=dict)
    words: tuple[str, ...] = ()
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the run and its directory, such as `random--seed-0`; of a long one the rest becomes a hash."""
        name = "--".join(re.sub(r"[^\w.+-]|^\.+", "-", word) for word in self.words) or "run"
        if len(name.encode()) <= _LONGEST:
            return name
        start = name.encode()[: _LONGEST - 9].decode(errors="ignore")
        return f"{start}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


Choices = tuple[Choice, ...]


def arms(axis: str, /, **named: Mapping[str, Any]) -> Choices:
    """An axis of named arms, each with its overrides. An arm without overrides is the base config.

    A name that is no Python identifier is given as `**{"55/45": {...}}`.
    """
    return tuple(Choice({axis: name}, (name,), dict(overrides)) for name, overrides in named.items())


def param(key: str, /, *values: Any, name: str = "") -> Choices:
    """An axis of values of one key. Its name is `name`, or else the last part of the key."""
    axis = name or key.rpartition(".")[2]
    return tuple(
        Choice({axis: value}, (value if isinstance(value, str) else f"{axis}-{value}",), {key: value})
        for value in values
    )


def seeds(*values: int, keys: tuple[str, ...] = ("stage.*.seed",)) -> Choices:
    """The axis `seed`, over which results are averaged: all `keys` take the same value."""
    return tuple(Choice({SEED: value}, (f"{SEED}-{value}",), dict.fromkeys(keys, value)) for value in values)


def always(overrides: Mapping[str, Any], /) -> Choices:
    """Overrides for all runs of a grid, without an axis."""
    return (Choice(overrides=dict(overrides)),)


def grid(*axes: Choices, keep: Callable[..., bool] | None = None) -> Choices:
    """All combinations of the axes; the last axis varies fastest.

    `keep` is called with the labels as keyword arguments and returns whether to keep a combination.
    """
    combined = tuple(_joined(choices) for choices in itertools.product(*axes))
    return tuple(choice for choice in combined if keep is None or keep(**choice.labels))


def zipped(*axes: Choices) -> Choices:
    """Combines the axes elementwise: first with first, second with second. Raises UserError for unequal lengths."""
    lengths = [len(axis) for axis in axes]
    if len(set(lengths)) > 1:
        raise UserError(f"zipped: the axes have {' and '.join(map(str, lengths))} values; expected equal numbers")
    return tuple(_joined(choices) for choices in zip(*axes, strict=True))


def _joined(choices: tuple[Choice, ...]) -> Choice:
    labels: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    for choice in choices:
        if twice := labels.keys() & choice.labels.keys():
            raise UserError(f"two axes are called {min(twice)!r}; give one of them another name")
        if twice := overrides.keys() & choice.overrides.keys():
            raise UserError(f"two axes set {min(twice)!r}; expected each key in one axis")
        labels |= choice.labels
        overrides |= choice.overrides
    return Choice(labels, tuple(word for choice in choices for word in choice.words), overrides)
