"""Writes the numbers of a run to metrics.jsonl, by default also to TensorBoard, and on request to Weights & Biases.

Each line is a JSON object, `{"step": 120, "loss": 3.41, ...}`, where `step` counts the updates made. Two identical runs
write identical files except for the keys in `TIMING_KEYS`. What is not finite becomes "NaN", "Infinity" or "-Infinity",
as in the JSON of protocol buffers. Values may be device arrays. They are fetched a few steps later, so that no device
waits for logging.
"""

import contextlib
import functools
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from allam_jax.errors import UserError
from allam_jax.files import atomic_path
from allam_jax.parallel.distributed import is_main_process
from allam_jax.training.settings import MetricsSettings
from allam_jax.training.wandb_sink import WeightsAndBiases

TIMING_KEYS = ("seconds", "tokens_per_second", "mfu", "eta", "peak_memory_bytes")

Row = dict[str, Any]


class MetricsWriter:
    """Writes rows of numbers under `workdir`; a context manager. Only the first process writes.

    Trouble with TensorBoard or Weights & Biases is logged, and the run goes on without them.

    To resume without a gap, write and `flush` everything up to a step before the checkpoint of that step is saved.
    """

    def __init__(
        self,
        workdir: Path,
        settings: MetricsSettings,
        *,
        resume_step: int | None = None,
        lag: int = 2,
        config: Mapping[str, Any] | None = None,
    ):
        """Opens `workdir/metrics.jsonl` and what the settings name beside it.

        Args:
            workdir: of the run; created if missing.
            settings: whether TensorBoard and Weights & Biases get the numbers too.
            resume_step: step of the checkpoint that the run continues: later rows are dropped. None drops all rows.
            lag: how many rows wait before the oldest is fetched from the device.
            config: shown beside the run in Weights & Biases.
        """
        self._queue: deque[Row] = deque()
        self._lag = lag
        self._file = None
        self._sinks: dict[str, _TensorBoard | WeightsAndBiases] = {}
        if not is_main_process():
            return
        workdir = Path(workdir)
        path = workdir / "metrics.jsonl"
        truncate_metrics(path, last_step=-1 if resume_step is None else resume_step)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)
        with contextlib.ExitStack() as stack:
            stack.callback(self._file.close)
            if settings.tensorboard:
                self._open("TensorBoard", lambda: _TensorBoard(workdir / "tensorboard", resume_step=resume_step))
            if settings.wandb_project:
                project = settings.wandb_project
                self._open("Weights & Biases", lambda: WeightsAndBiases(workdir, project=project, config=config or {}))
            stack.pop_all()

    def write(self, step: int, values: Mapping[str, Any], *, timing: Mapping[str, float] | None = None) -> list[Row]:
        """Queues a row; returns the rows that have been fetched and written by now, oldest first.

        Args:
            step: updates made.
            values: name -> scalar or vector (number, numpy or jax array, replicated); the same in every identical run.
            timing: name in `TIMING_KEYS` -> number; what may differ between identical runs.
        """
        timing = timing or {}
        if wrong := (set(values) & set(TIMING_KEYS)) | (set(timing) - set(TIMING_KEYS)):
            raise ValueError(f"values and timing must not hold each other's keys: {sorted(wrong)}")
        for value in values.values():
            if isinstance(value, jax.Array):
                value.copy_to_host_async()
        self._queue.append({"step": step, **values, **timing})
        return self._drain(keep=self._lag)

    def flush(self) -> list[Row]:
        """Fetches all waiting rows and writes them to the disk; returns them."""
        rows = self._drain(keep=0)
        if self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._each(lambda sink: sink.flush())
        return rows

    def close(self) -> None:
        """Flushes and closes everything."""
        try:
            self.flush()
        finally:
            self._each(lambda sink: sink.close())
            if self._file:
                self._file.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, name: str, opening: Callable[[], "_TensorBoard | WeightsAndBiases"]) -> None:
        try:
            self._sinks[name] = opening()
        except UserError:
            raise
        except Exception as error:
            _give_up(name, error)

    def _each(self, call: Callable[["_TensorBoard | WeightsAndBiases"], None]) -> None:
        """Calls every sink, and drops one that fails: it is a copy of metrics.jsonl, for which no run must end."""
        for name, sink in list(self._sinks.items()):
            try:
                call(sink)
            except Exception as error:
                del self._sinks[name]
                _give_up(name, error)

    def _drain(self, *, keep: int) -> list[Row]:
        rows = []
        while len(self._queue) > keep:
            row = {name: _plain(value) for name, value in self._queue.popleft().items()}
            rows.append(row)
            if self._file:
                self._file.write(json.dumps(_strict(row), allow_nan=False) + "\n")
                self._file.flush()
            self._each(functools.partial(_write_row, row=row))
        return rows


def _write_row(sink: "_TensorBoard | WeightsAndBiases", *, row: Row) -> None:
    sink.write(row)


def _give_up(name: str, error: Exception) -> None:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    logging.error("%s: %s; the run goes on without it, and metrics.jsonl has all numbers", name, reason)


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl; a last line that was cut off by a crash is left out.

    Raises:
        UserError: no such file, or a line that is no JSON object with a step.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    return [row for _, row in _complete_rows(Path(path))]


def truncate_metrics(path: Path, *, last_step: int) -> None:
    """Drops the rows after `last_step` and a line cut off by a crash; atomic. Creates nothing if there is no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            file.writelines(line for line, row in _complete_rows(path) if row["step"] <= last_step)
            file.flush()
            os.fsync(file.fileno())


def _complete_rows(path: Path) -> Iterator[tuple[bytes, Row]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):  # only the last line can lack it: the crash came while it was written
                return
            try:
                row = _loose(json.loads(line))
                row["step"] + 0
            except (ValueError, TypeError, KeyError):
                raise UserError(f"{path}, line {number}: not a JSON object with a step; mend or remove it") from None
            yield line, row


_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _strict(value: Any) -> Any:
    """A row or value as strict JSON can hold it."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _loose(value: Any) -> Any:
    """What `_strict` has written, as numbers."""
    if isinstance(value, dict):
        return {key: _loose(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_loose(item) for item in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    """A number or list for JSON; float32 in the fewest digits that give the same float32 back."""
    array = np.asarray(value)
    if array.ndim:
        return [_plain(element) for element in array]
    if np.issubdtype(array.dtype, np.floating) and array.dtype != np.float64:
        return float(str(array.astype(np.float32)[()]))
    return array.item()


class _TensorBoard:
    """Event files, written by the thread that calls: tensorboardX's own thread and queue hang on a full disk."""

    def __init__(self, directory: Path, *, resume_step: int | None):
        from tensorboardX.event_file_writer import EventsWriter  # slow to import
        from tensorboardX.proto import event_pb2

        self._event = event_pb2.Event
        # Rows after the restored step (all, if there is none) will come again. TensorBoard hides their first version.
        purge_step = 0 if resume_step is None else resume_step + 1
        directory.mkdir(parents=True, exist_ok=True)
        # Files are named by the second. The suffix keeps a quick resume from overwriting its predecessor's file.
        self._writer = EventsWriter(str(directory / "events"), f".{purge_step}")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=purge_step, session_log=start))

    def write(self, row: Row) -> None:
        event = self._event(wall_time=time.time(), step=row["step"])
        for name, value in row.items():
            if isinstance(value, list):
                for i, element in enumerate(value):
                    event.summary.value.add(tag=f"{name}/{i:02d}", simple_value=element)
            elif name != "step":
                event.summary.value.add(tag=name, simple_value=value)
        self._writer.write_event(event)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
