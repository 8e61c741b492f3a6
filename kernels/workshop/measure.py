"""Compiles a call of attention for a described GPU, and times calls on a real one."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kernels import aot

Record = dict[str, object]  # a row of a report


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartOptions:
    """What each part of the report for a GPU (`gpu_report`) is given.

    Attributes:
        small: tiny shapes, for a machine without a GPU.
        folder: the report's.
        deadline: nothing is started after it, by `time.monotonic`.
    """

    small: bool
    folder: Path
    deadline: float

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() > self.deadline


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its message, for a record."""
    return f"{type(error).__name__}: {error}".strip().split("\n")[0][:300]


def compile_for(kind: str, function: Callable, arguments: Sequence[jax.ShapeDtypeStruct]) -> aot.CompileReport:
    """Compiles a function of arrays for one described GPU.

    Raises:
        NotImplementedError: from the trace: what is compiled does not serve this.
        jax.errors.JaxRuntimeError: the compiler refuses, for example for too much shared memory.
    """
    devices = aot.topology(kind)
    mesh = Mesh(np.array(devices), ("gpu",))
    on_gpu = NamedSharding(mesh, PartitionSpec())
    placed = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=on_gpu) for a in arguments]
    # The default device is what other people's kernels ask.
    with jax.set_mesh(mesh), jax.default_device(devices[0]):
        lowered = jax.jit(function).lower(*placed)
    return aot.compile_report(lowered)


def seconds(
    functions: dict[str, Callable[[], object]],
    *,
    rounds: int = 15,
    at_least: float = 0.02,
    deadline: float = float("inf"),
) -> dict[str, float]:
    """Median seconds of a call of each function, on an accelerator; empty where the deadline leaves no round.

    Each function queues its work and returns its result. The functions take turns, `rounds` each, so that a change of
    clock or heat meets all of them alike. A turn is as many calls, queued one after the other, as take `at_least`
    seconds, and ends when the device has finished the last one. No round starts after the deadline (`time.monotonic`).
    """

    def turn(function: Callable[[], object], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            result = function()
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / calls

    calls = {}
    for name, function in functions.items():
        turn(function, 3)  # compiles, allocates, wakes the clocks
        calls[name] = max(1, round(at_least / turn(function, 3)))
    measured: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        if time.monotonic() > deadline:
            break
        for name, function in functions.items():
            measured[name].append(turn(function, calls[name]))
    return {name: statistics.median(values) for name, values in measured.items() if values}
