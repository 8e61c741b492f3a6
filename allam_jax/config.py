"""Configs as trees: stage references, saving, comparing. What keys mean and accept: `settings.py` of each room."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from allam_jax import files
from allam_jax.checksums import FILE_LIST, write_listed
from allam_jax.errors import UserError
from allam_jax.settings import as_dict

CONFIG_FILE = "config.json"
CHECKPOINTS_FOLDER = "checkpoints"
RUN_FILE = "run.json"  # the name of a training run
_LONGEST_SHOWN = 80  # characters of a value
_TRAINING = ("train", "sft", "dpo")  # tasks whose workdirs are training runs


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


_ABSENT = _Absent()


def resolve_stages(config: ConfigDict, *, stage_dirs: Mapping[str, Path]) -> tuple[ConfigDict, list[str]]:
    """Replaces `@stage/rest` in string values by a path inside that stage's directory.

    Returns the resolved copy and the stages it refers to. UserError for a stage that is not among `stage_dirs`
    (the stages that come earlier in the recipe).
    """
    used: list[str] = []
    copy = config.copy_and_resolve_references()

    def visit(node: ConfigDict, prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, ConfigDict):
                visit(value, f"{prefix}{key}.")
            elif isinstance(value, str) and re.match(r"@\w", value):
                name, _, rest = value[1:].partition("/")
                if name not in stage_dirs:
                    earlier = ", ".join(stage_dirs) or "none"
                    raise UserError(
                        f"config.{prefix}{key} = {value!r}: no earlier stage is called {name!r} "
                        f"(earlier stages: {earlier})"
                    )
                if name not in used:
                    used.append(name)
                node[key] = str(stage_dirs[name] / rest)

    visit(copy, "")
    return copy, used


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines `key: old -> new` for every leaf that differs between two configs in dict form."""
    lines = []
    for key in sorted(set(old) | set(new)):
        before, after = (side.get(key, _ABSENT) for side in (old, new))
        trees = [{} if side is _ABSENT else side for side in (before, after)]
        if all(isinstance(tree, Mapping) for tree in trees) and any(trees):  # also a name that one side lacks
            lines += differences(trees[0], trees[1], prefix=f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {_shown(before)} -> {_shown(after)}")
    return lines


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 4]} ..."


def save(config: ConfigDict, *, workdir: Path) -> list[str]:
    """Writes `config.json` into the workdir; returns how it differs from the one that was there."""
    path = workdir / CONFIG_FILE
    new = as_dict(config)
    changed = []
    if path.exists():
        try:
            changed = differences(files.read_json(path, kind=dict), new)
        except UserError as error:  # it is only compared, and is written anew here
            changed = [str(error)]
    write_listed(workdir, {CONFIG_FILE: f"{files.json_text(new, indent=2)}\n".encode()})
    return changed


def check_own(workdir: Path, *, task: str) -> None:
    """UserError unless a workdir is new, is empty, or was written by a task: nothing of others is overwritten.

    A training run's workdir is that of its task alone: its config says what its checkpoints came from.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir}: is a file, not a directory")
    there = {path.name for path in workdir.iterdir() if not path.name.startswith(".")} if workdir.exists() else set()
    if not there:
        return
    recorded = None
    try:
        recorded = files.read_json(workdir / CONFIG_FILE, kind=dict).get("task")
        own = recorded is not None
    except UserError:  # missing, or lost in a crash
        own = {CONFIG_FILE, FILE_LIST} <= there or CHECKPOINTS_FOLDER in there
    if RUN_FILE in there and (task not in _TRAINING or recorded not in (None, task)):
        raise UserError(
            f"--workdir {workdir}: holds a training run, whose config.json the task {task} would replace; "
            "give another directory"
        )
    if not own:
        names = ", ".join(sorted(there)[:4]) + (", ..." if len(there) > 4 else "")
        raise UserError(f"--workdir {workdir}: holds files that no task wrote ({names}); give a new or empty directory")


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
