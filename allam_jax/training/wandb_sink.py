"""The numbers of a run in Weights & Biases, which must never stop the run."""

import functools
import importlib
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from allam_jax.errors import UserError
from allam_jax.files import read_json, write_json

_SECONDS = 30.0  # for the server to answer before a run starts, and for each call of the library later
_Answer = TypeVar("_Answer")


@functools.cache
def check_wandb(project: str) -> None:
    """Asks once, before anything starts, whether the project can be logged to.

    Raises:
        UserError: the package is missing, nobody is logged in, or the server does not answer within 30 s.
    """
    wandb = _package(project)
    if os.environ.get("WANDB_MODE", "online") in ("offline", "disabled", "dryrun"):
        return
    remedy = "log in with `wandb login`, set WANDB_MODE=offline, or leave metrics.wandb_project empty"
    try:
        if not wandb.api.api_key:
            raise UserError(
                f"metrics.wandb_project: {project!r} needs Weights & Biases, but nobody is logged in; {remedy}"
            )
        within(_SECONDS, lambda: wandb.Api(timeout=int(_SECONDS)).viewer)
    except UserError:
        raise
    except Exception as error:  # the library has many, and takes those of others
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"metrics.wandb_project: {project!r}: Weights & Biases does not answer ({reason}); {remedy}"
        ) from error


def within(seconds: float, call: Callable[[], _Answer]) -> _Answer:
    """The answer of `call`, which runs in a thread of its own; TimeoutError if there is none after so many seconds."""
    answers: list[_Answer] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(call())
        except BaseException as error:  # raised again below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return answers[0]


def _package(project: str) -> Any:
    try:
        return importlib.import_module("wandb")
    except Exception as error:  # a broken installation raises anything
        missing = isinstance(error, ModuleNotFoundError) and error.name == "wandb"
        reason = "is not installed" if missing else f"cannot be imported ({' '.join(str(error).split())[:200]})"
        raise UserError(
            f"metrics.wandb_project: {project!r} needs the package wandb, which {reason}; "
            "run `pip install wandb` or leave it empty"
        ) from None


class WeightsAndBiases:
    """The run of this workdir, continued after a restart; calls raise what the library raises, or TimeoutError."""

    def __init__(self, workdir: Path, *, project: str, config: Mapping[str, Any]):
        """Opens it; the run's id is kept in `workdir/wandb.json`."""
        wandb = _package(project)
        identity = workdir / "wandb.json"
        run_id = read_json(identity)["id"] if identity.is_file() else uuid.uuid4().hex[:8]
        self._run = within(
            2 * _SECONDS,
            lambda: wandb.init(project=project, id=run_id, resume="allow", dir=str(workdir), config=dict(config)),
        )
        write_json(identity, {"project": project, "id": run_id})

    def write(self, row: Mapping[str, Any]) -> None:
        """Logs a row at its step."""
        within(_SECONDS, lambda: self._run.log(dict(row), step=row["step"]))

    def flush(self) -> None:
        """Weights & Biases uploads in its own time."""

    def close(self) -> None:
        """Uploads the rest, for a minute at most."""
        within(2 * _SECONDS, self._run.finish)
