"""Setting config keys by dotted path; of a key that is not there, the error says which one may have been meant."""

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
        config: changed; which keys it has stays as it is.
        overrides: dotted key -> value. `*` in a key stands for any one part of it. A plain dict sets keys below the
            key; a ConfigDict takes the place of a whole section.
        where: says in errors whose overrides these are.

    Raises:
        UserError: no such key, or a value of another type.
    """
    for key, value in overrides.items():
        for found in _matching(config, key, where=where):
            _set(config, found, value, where=where)


def parse(texts: list[str]) -> dict[str, Any]:
    """`KEY=VALUE` as given on a command line; a value that is no Python literal is a string."""
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
    """The keys meant by one that may hold `*`; it must be at least one."""
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
            raise UserError(f"{where}: {key!r} is a section (its keys: {keys}); expected the key of one value")
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
    """What may have been meant: a key that differs in the first part that is wrong, or else the most alike."""
    parts = key.split(".")
    node: Any = config
    for depth, part in enumerate(parts):
        if isinstance(node, ConfigDict) and part in node:
            node = node[part]
            continue
        if not isinstance(node, ConfigDict):
            break
        rest = parts[depth + 1 :]
        names = difflib.get_close_matches(part, list(node), n=3, cutoff=0.6)
        whole = [".".join([*parts[:depth], name, *rest]) for name in names if _has(node[name], rest)]
        if whole:
            return f"; did you mean {whole[0]!r}?"
        break
    leaves = list(flatten(as_dict(config)))
    same_end = [leaf for leaf in leaves if leaf.rpartition(".")[2] == parts[-1]]
    close = difflib.get_close_matches(key, same_end, n=1, cutoff=0.0) or difflib.get_close_matches(key, leaves, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _has(node: Any, parts: list[str]) -> bool:
    for part in parts:
        if not isinstance(node, ConfigDict) or part not in node:
            return False
        node = node[part]
    return True
