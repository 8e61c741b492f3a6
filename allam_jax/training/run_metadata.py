"""What made a checkpoint: config, data, tokenizer, mesh, code and versions, and the checkpoint it branched from."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax


def run_metadata(
    *,
    config: dict[str, Any],
    mesh: dict[str, int],
    tokenizer: str,
    mixture: str,
    run: str,
    parent: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Metadata of every checkpoint of a run, beside the tokens by source.

    `mesh` has the size of each axis, `tokenizer` is a fingerprint, `mixture` a hash and `run` the run's name. `parent`
    is `{"path", "step"}` of the checkpoint that this run was started from: a branch points to its main run.
    """
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    return {
        "run": run,
        "mesh": mesh,
        "processes": jax.process_count(),
        "code_revision": code_revision(),
        "tokenizer": tokenizer,
        "mixture": mixture,
        "parent": parent,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "config": config,
    }


@functools.cache
def code_revision() -> str | None:
    """Git revision of this code, with "+changes" if the work tree differs from it; None outside a git checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        revision, changes = (
            subprocess.run([*git, *command], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("+changes" if changes else "")
