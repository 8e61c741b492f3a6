"""Configs: stage references, saving, comparing. The schema is `configs/base.py`; there is no second one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from allam_jax import files
from allam_jax.errors import UserError


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """A config as JSON-able nested dicts; tuples become lists."""

    def convert(value):
        if isinstance(value, Mapping | ConfigDict):
            return {key: convert(item) for key, item in value.items()}
        if isinstance(value, tuple | list):
            return [convert(item) for item in value]
        return value

    return convert(config)


def map_strings(config: ConfigDict, function: Callable[[str, str], str]) -> ConfigDict:
    """A copy with every string leaf replaced by `function(dotted_key, value)`."""
    copy = config.copy_and_resolve_references()

    def visit(node: ConfigDict, prefix: str) -> None:
        for key, value in node.items():
            dotted = f"{prefix}{key}"
            if isinstance(value, ConfigDict):
                visit(value, f"{dotted}.")
            elif isinstance(value, str):
                node[key] = function(dotted, value)

    visit(copy, "")
    return copy


def resolve_stages(config: ConfigDict, *, stage_dirs: Mapping[str, Path]) -> tuple[ConfigDict, list[str]]:
    """Replaces `@stage/rest` in string values by a path inside that stage's directory.

    Returns the resolved copy and the stages it refers to. UserError for a stage that is not among `stage_dirs`
    (the stages that come earlier in the recipe).
    """
    used: list[str] = []

    def resolve(key: str, value: str) -> str:
        if not value.startswith("@"):
            return value
        name, _, rest = value[1:].partition("/")
        if name not in stage_dirs:
            earlier = ", ".join(stage_dirs) or "none"
            raise UserError(
                f"config.{key} = {value!r}: no earlier stage is called {name!r} (earlier stages: {earlier})"
            )
        if name not in used:
            used.append(name)
        return str(stage_dirs[name] / rest)

    return map_strings(config, resolve), used


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines `key: old -> new` for every leaf that differs between two configs in dict form."""
    lines = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return lines


def save(config: ConfigDict, *, workdir: Path) -> list[str]:
    """Writes `config.json` into the workdir; returns how it differs from the one that was there."""
    path = workdir / "config.json"
    new = to_dict(config)
    changed = differences(files.read_json(path), new) if path.exists() else []
    files.write_json(path, new)
    return changed


# Smallest sensible value of the numbers, and the values of the names, that nobody checks before using them.
_MINIMUM = {
    "train.steps": 1,
    "train.accumulation": 1,
    "train.loss_chunks": 1,
    "train.log_every": 1,
    "data.seq_len": 1,
    "data.batch_size": 1,
    "eval.every": 0,
    "eval.batch_size": 1,
    "eval.max_bytes": 0,
    "checkpoint.every": 0,
    "guard.max_in_a_row": 0,
    "corpus.parts": 1,
    "corpus.shard_bytes": 1,
    "planted.files": 1,
}
_CHOICES = {
    "param_dtype": ("float32", "bfloat16", "float16"),
    "optimizer.first_moment_dtype": ("float32", "bfloat16"),
    "export.dtype": ("", "float32", "bfloat16", "float16"),
}


def check_values(config: ConfigDict) -> None:
    """UserError naming the first value that no task can use; for what would otherwise fail late, or in a library."""
    values = flatten(to_dict(config))
    for key, least in _MINIMUM.items():
        if values[key] < least:
            raise UserError(f"config.{key} = {values[key]}: expected at least {least}")
    for key, choices in _CHOICES.items():
        if values[key] not in choices:
            raise UserError(f"config.{key} = {values[key]!r}: expected one of {', '.join(map(repr, choices))}")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def require(value: Any, *, key: str, hint: str) -> Any:
    """Returns `value`; UserError naming the config key when it is empty."""
    if not value and value != 0:
        raise UserError(f"config.{key} is empty: {hint}")
    return value
