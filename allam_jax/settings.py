"""Settings: each section of a config is a frozen dataclass beside the code that it steers.

    class TrainSettings(Section, name="train"):
        '''How long a run is.'''

        steps: int = setting(100, "updates of the whole run", least=1)

A section imports nothing heavy, so that a config can be written, read and explained without JAX. Every key has a
comment and every number has a bound: a section without them is refused, so no key can be forgotten. Values
are checked whenever a section is made. A config file sees the same keys as an `ml_collections.ConfigDict`
(`to_config`), and `read` turns that back into the dataclass.
"""

import dataclasses
import functools
import math
import operator
import os
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from ml_collections import ConfigDict

from allam_jax.errors import UserError, nearest

_TINIEST, _VASTEST = 1e-30, 1e30  # of numbers that are not 0: float32, in which devices compute, has few beyond
LARGEST_INT = 2**31 - 1  # the bound of whole numbers that state none: more would not fit an int32 on a device

_COMPARISONS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}
Bound = tuple[str, float]  # one of these words, and a number


class BadSetting(UserError):
    """A value that cannot be used."""

    def __init__(self, key: str, problem: str):
        super().__init__(f"config.{key}{problem}")
        self.key, self.problem = key, problem

    def inside(self, name: str) -> "BadSetting":
        """The same error, seen from the section that holds this one as `name`."""
        return BadSetting(f"{name}.{self.key}" if name else self.key, self.problem)


Settings = types.SimpleNamespace  # what a task gets of a config: an attribute for each section and top-level key


def setting(
    default: Any,
    comment: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
    path: str = "",
    changes_results: bool = True,
) -> Any:
    """A key of a section.

    Args:
        default: its value where the config says nothing; `...` for a key that must be given.
        comment: what it is, with its unit; shown by `--help_config`.
        least, above: the smallest value, or the bound that values must exceed; a number needs one of them.
        most, below: the same at the upper end. Whole numbers are at most `LARGEST_INT` unless `most` says otherwise.
        choices: the strings it can be; for a tuple, those that its elements can be.
        path: for a path of the user's, what lies there (tasks/inputs_of_task.py lists the kinds); `~` is expanded.
        changes_results: False for a key that only says how to go on; a finished stage stays finished without it.
    """
    limits = zip(_COMPARISONS, (least, above, most, below), strict=True)
    bounds = [(words, bound) for words, bound in limits if bound is not None]
    metadata: dict[str, Any] = {"comment": comment, "bounds": bounds, "choices": tuple(choices or ()), "path": path}
    metadata["changes_results"] = changes_results
    return dataclasses.field(default=dataclasses.MISSING if default is ... else default, metadata=metadata)


def entries(comment: str, *, path: str = "") -> Any:
    """A key that holds named entries, `Mapping[str, KIND]`, empty by default; users choose the names.

    `path` as for `setting`, where the entries are paths.
    """
    return nested(dict, comment, path=path)


def nested(kind: type, comment: str, *, path: str = "") -> Any:
    """A key that holds a section of its own."""
    metadata: dict[str, Any] = {"comment": comment, "bounds": [], "choices": (), "path": path}
    return dataclasses.field(default_factory=kind, metadata=metadata)


class Section:
    """Base of sections, entries and nested sections. A subclass becomes a frozen, checked dataclass of its keys.

        class TrainSettings(Section, name="train"): ...

    Class arguments:
        name: of the section in a config; empty for keys at the top level, for entries and for nested sections.
        version: raised when a key gets another meaning or a default changes: finished stages then count as changed.
        changes_results: False for a section that only says how a run is watched or where it is computed.

    TypeError for a key without comment, and for a number without a lower bound.
    """

    section_name: ClassVar[str] = ""
    section_version: ClassVar[int] = 1
    changes_results: ClassVar[bool] = True
    __dataclass_fields__: ClassVar[dict[str, Any]]

    if typing.TYPE_CHECKING:  # __init_subclass__ makes it, which type checkers do not see

        def __init__(self, **values: Any) -> None: ...

    def __init_subclass__(cls, *, name: str = "", version: int = 1, changes_results: bool = True):
        """Makes the dataclass."""
        cls.section_name, cls.section_version, cls.changes_results = name, version, changes_results
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        for field, kind in fields_of(cls):
            if not field.metadata.get("comment"):
                raise TypeError(
                    f"{cls.__name__}.{field.name} has no comment: define it with setting, entries or nested"
                )
            lower = [words for words, _ in field.metadata["bounds"] if words in ("at least", "above")]
            if _element(kind) in (int, float) and not lower:
                raise TypeError(f"{cls.__name__}.{field.name} is a number without a lower bound")

    def __post_init__(self) -> None:
        for field, kind in fields_of(type(self)):
            value = getattr(self, field.name)
            meta = field.metadata
            if problem := _problem(kind, value, bounds=meta["bounds"], choices=meta["choices"]):
                raise BadSetting(f"{self.section_name}.{field.name}".lstrip("."), f" = {value!r}: expected {problem}")
            if meta.get("path"):
                object.__setattr__(self, field.name, _expanded(value))
        self.check()

    def check(self) -> None:
        """For a subclass: raises UserError where values do not go together."""

    @classmethod
    def default(cls) -> Self:
        """The section as it is where a config says nothing."""
        return cls()


def fields_of(cls: type[Section]) -> tuple[tuple[dataclasses.Field, Any], ...]:
    """The keys of a section with their types."""
    return _fields_of(typing.cast(Any, cls))


@functools.cache  # resolving the types takes most of the time of reading a config
def _fields_of(cls: Any) -> tuple[tuple[dataclasses.Field, Any], ...]:
    hints = typing.get_type_hints(cls)
    return tuple((field, hints[field.name]) for field in dataclasses.fields(cls))


def to_config(instance: Section) -> ConfigDict:
    """A section or entry as an unlocked ConfigDict of its values."""
    config = ConfigDict()
    for field, kind in fields_of(type(instance)):
        value = getattr(instance, field.name)
        if _is_section(kind):
            value = to_config(value)
        elif _is_entries(kind):
            inner = typing.get_args(kind)[1]
            value = ConfigDict({key: to_config(item) if _is_section(inner) else item for key, item in value.items()})
        config[field.name] = value
    return config


def lock(config: ConfigDict, cls: type[Section]) -> ConfigDict:
    """Locks a section's ConfigDict: only existing keys can be set, but named entries can be added."""
    config.lock()
    for field, kind in fields_of(cls):
        if _is_section(kind):
            lock(config[field.name], kind)
        elif _is_entries(kind):
            config[field.name].unlock()
    return config


def read(cls: type[Section], values: Mapping[str, Any] | ConfigDict, *, where: str = "") -> Any:
    """The section of these values; keys that are missing take their defaults.

    Args:
        cls: the section, entry or nested section.
        values: nested mappings, as in a ConfigDict or in JSON (lists stand for tuples).
        where: the section's dotted key, for errors.

    Raises:
        UserError: an unknown key, or a value that cannot be used; names the dotted key.
    """
    kinds = {field.name: kind for field, kind in fields_of(cls)}
    if not isinstance(values, Mapping | ConfigDict):
        raise UserError(f"config.{where} = {values!r}: expected a section with the keys {', '.join(kinds)}")
    given: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{where}.{key}".lstrip(".")
        if key not in kinds:
            raise UserError(f"config.{dotted}: no such key; {nearest(key, kinds)}")
        given[key] = _converted(kinds[key], value, where=dotted)
    try:
        return dataclasses.replace(cls.default(), **given)
    except BadSetting as error:
        raise error.inside(where.rpartition(".")[0] if cls.section_name else where) from None


def changed(instance: Section) -> dict[str, Any]:
    """The values of a section that differ from its defaults, as JSON-able nested dicts."""
    found: dict[str, Any] = {}
    default = type(instance).default()
    for field, kind in fields_of(type(instance)):
        value, standard = (_ordered(field, getattr(one, field.name)) for one in (instance, default))
        if _is_section(kind):
            different = changed(value) if kind.changes_results else {}
            found |= {field.name: different} if different else {}
        elif value != standard and field.metadata.get("changes_results", True):
            found[field.name] = _changed_entries(kind, value)
    return found


def _ordered(field: dataclasses.Field, value: Any) -> Any:
    """A tuple of choices is a set: in the order of the choices, each once. Other values as they are."""
    choices = field.metadata["choices"]
    return tuple(choice for choice in choices if choice in value) if choices and isinstance(value, tuple) else value


def as_dict(value: Any) -> Any:
    """Sections, ConfigDicts and mappings as JSON-able nested dicts; tuples become lists."""
    if _is_section(type(value)):
        return {field.name: as_dict(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Settings):
        return as_dict(vars(value))
    if isinstance(value, Mapping | ConfigDict):
        return {key: as_dict(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [as_dict(item) for item in value]
    return value


def explain(cls: type[Section], *, prefix: str = "") -> list[str]:
    """Lines `key = default  # comment`, one for each key of a section, its nested sections and its entries."""
    lines = []
    default = cls.default()
    for field, kind in fields_of(cls):
        key = f"{prefix}{field.name}"
        comment, limits = field.metadata["comment"], _limits(field)
        if _is_section(kind):
            lines += [f"# {key}: {comment}", *explain(kind, prefix=f"{key}.")]
        elif _is_entries(kind):
            lines.append(f"# {key}.NAME: {comment}")
            while _is_entries(kind):  # named sets of named entries have two names
                kind, key = typing.get_args(kind)[1], f"{key}.NAME"
            lines += explain(kind, prefix=f"{key}.") if _is_section(kind) else []
        else:
            lines.append(f"{key} = {getattr(default, field.name)!r}  # {comment}{limits}")
    return lines


def _expanded(value: Any) -> Any:
    """A path, or named paths, with the home directory for `~`."""
    if isinstance(value, Mapping):
        return {name: _expanded(path) for name, path in value.items()}
    return os.path.expanduser(value)


def _limits(field: dataclasses.Field) -> str:
    choices, bounds = field.metadata["choices"], field.metadata["bounds"]
    # Bounds that only keep a number in the range of its type tell a reader nothing.
    shown = [f"{words} {bound}" for words, bound in bounds if abs(bound) < LARGEST_INT]
    said = [" | ".join(choice or "''" for choice in choices)] if choices else shown
    return f" ({', '.join(said)})" if said else ""


def _changed_entries(kind: Any, value: Any) -> Any:
    """Entries count by name, even those whose values are all defaults."""
    if _is_section(kind):
        return changed(value)
    if _is_entries(kind):
        return {name: _changed_entries(typing.get_args(kind)[1], item) for name, item in value.items()}
    return as_dict(_as_float(value) if _element(kind) is float else value)


def _converted(kind: Any, value: Any, *, where: str) -> Any:
    """A value of a ConfigDict or of JSON as a section holds it."""
    if _is_section(kind):
        return read(kind, value, where=where)
    if not _is_entries(kind):
        return tuple(value) if isinstance(value, list) else value
    if not isinstance(value, Mapping | ConfigDict):
        raise UserError(f"config.{where} = {value!r}: expected named entries")
    inner = typing.get_args(kind)[1]
    made = {name: _converted(inner, item, where=f"{where}.{name}") for name, item in value.items()}
    for name, item in made.items():
        if problem := _problem(inner, item):
            raise UserError(f"config.{where}.{name} = {item!r}: expected {problem}")
    return made


def _as_float(value: Any) -> Any:
    """Numbers as floats without the sign of zero, so that 1 and 1.0 give one fingerprint."""
    return tuple(map(_as_float, value)) if isinstance(value, tuple) else float(value) + 0.0


def _problem(kind: Any, value: Any, *, bounds: Sequence[Bound] = (), choices: Sequence[str] = ()) -> str:
    """What was expected of a value that does not fit; empty if it does."""
    if _is_section(kind) or _is_entries(kind):
        return ""
    element, plural = _element(kind), kind is not _element(kind)
    noun = {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}[element]
    if choices:
        noun = f"{'a tuple of' if plural else 'one of'} {', '.join(map(repr, choices))}"
    elif plural:
        noun = f"a tuple of {'strings' if element is str else 'numbers'}"
    if plural and not isinstance(value, tuple | list):
        return noun
    limits = list(bounds)
    if element is int and not any(words in ("at most", "below") for words, _ in bounds):
        limits.append(("at most", LARGEST_INT))
    expected = ", ".join([noun, *(f"{words} {bound}" for words, bound in bounds)])
    for item in value if plural else (value,):
        number = isinstance(item, int | float) and not isinstance(item, bool)
        fits = number if element is float else isinstance(item, element) and (number or element is not int)
        if not fits or (choices and item not in choices):
            return expected
        if element is str and "\0" in item:
            return f"{expected} without NUL characters"
        if isinstance(item, float) and not math.isfinite(item):
            return f"{expected}, and a finite one"
        if isinstance(item, float) and item and not _TINIEST <= abs(item) <= _VASTEST:
            return f"{expected}, and none that float32 hardly tells from 0 or infinity"
        for words, bound in limits:
            if not _COMPARISONS[words](item, bound):
                return expected if (words, bound) in bounds else f"{noun}, {words} {bound}"
    return ""


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _element(kind: Any) -> Any:
    """The type of a tuple's elements; other types as they are."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind


def _is_entries(kind: Any) -> bool:
    return typing.get_origin(kind) is Mapping
