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
    parent: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Metadata of every checkpoint of a run, beside the tokens by source.

    Args:
        config: the resolved config.
        mesh: size of each mesh axis.
        tokenizer: fingerprint.
        mixture: hash of the data mixture.
        parent: `{"path", "step"}` of the checkpoint that this run was started from; a branch points to its main run.
    """
    return {
        "mesh": mesh,
        "processes": jax.process_count(),
        "code_revision": code_revision(),
        "tokenizer": tokenizer,
        "mixture": mixture,
        "parent": parent,
        "versions": {
            "python": platform.python_version(),
            **{
                name: importlib.metadata.version(name)
                for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
            },
        },
        "config": config,
    }


@functools.cache
def code_revision() -> str | None:
    """Git revision of this code, with "+changes" if the work tree differs from it; None outside a git checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        status = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision.stdout.strip() + ("+changes" if status.stdout.strip() else "")
