"""Sets config keys by dotted path. The error for an unknown key names the most similar key."""

import ast
import difflib
import fnmatch
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from allam_jax.config import flatten
from allam_jax.errors import UserError
from allam_jax.settings import as_dict


def override(config: ConfigDict, overrides: Mapping[str, Any], *, where: str) -> None:
    """Sets keys of `config` in place.

    Args:
        config: the config to change; it keeps its set of keys.
        overrides: dotted key -> value. `*` in a key matches any single part. A plain dict sets keys below the key; a
            ConfigDict replaces a whole section.
        where: the origin of the overrides, for error messages.

    Raises:
        UserError: a key is unknown or a value has the wrong type.
    """
    for key, value in overrides.items():
        for found in _matching(config, key, where=where):
            _set(config, found, value, where=where)


def parse(texts: list[str]) -> dict[str, Any]:
    """Key -> value of texts `KEY=VALUE` from the command line. A value that is no Python literal is a string."""
    overrides: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise UserError(f"--set {text}: expected KEY=VALUE")
        try:
            overrides[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            overrides[key] = value
    return overrides


def _matching(config: ConfigDict, key: str, *, where: str) -> list[str]:
    """The keys that `key`, which may contain `*`, matches. Raises UserError if there are none."""
    found = [""]
    for part in key.split("."):
        deeper = []
        for prefix in found:
            node = _get(config, prefix)
            names = node.keys() if isinstance(node, ConfigDict) else ()
            deeper += [f"{prefix}.{name}".lstrip(".") for name in names if fnmatch.fnmatchcase(name, part)]
        found = deeper
    if not found:
        raise UserError(f"{where}: the config has no key {key!r}{_hint(config, key)}")
    return found


def _set(config: ConfigDict, key: str, value: Any, *, where: str) -> None:
    parent = _get(config, key.rpartition(".")[0])
    name = key.rpartition(".")[2]
    if isinstance(parent[name], ConfigDict):
        if isinstance(value, ConfigDict):
            with parent.unlocked():
                parent[name] = value
        elif isinstance(value, Mapping):
            override(config, {f"{key}.{below}": item for below, item in value.items()}, where=where)
        else:
            keys = ", ".join(parent[name]) or "none yet"
            raise UserError(f"{where}: {key!r} is a section (its keys: {keys}); give the key of a single value")
        return
    try:
        parent[name] = value
    except (TypeError, ValueError):
        kind = type(parent[name]).__name__
        raise UserError(f"{where}: {key} = {value!r}: expected a value like {parent[name]!r} ({kind})") from None


def _get(config: ConfigDict, key: str) -> Any:
    node: Any = config
    for part in key.split(".") if key else ():
        node = node[part]
    return node


def _hint(config: ConfigDict, key: str) -> str:
    """The most similar key: one that differs in a single part, else one with the same last part, else any."""
    leaves = list(flatten(as_dict(config)))
    parts = key.split(".")

    def differing(leaf: str) -> int:
        others = leaf.split(".")
        return sum(a != b for a, b in zip(parts, others, strict=False)) + abs(len(parts) - len(others))

    one_wrong = [leaf for leaf in leaves if differing(leaf) == 1]
    same_end = [leaf for leaf in leaves if leaf.rpartition(".")[2] == parts[-1]]
    for candidates, cutoff in ((one_wrong, 0.6), (same_end, 0.0), (leaves, 0.6)):
        if close := difflib.get_close_matches(key, candidates, n=1, cutoff=cutoff):
            return f"; did you mean {close[0]!r}?"
    return ""
