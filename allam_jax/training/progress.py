"""Measures the speed and the memory of a run, and shows its progress on a terminal."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from jax.sharding import Mesh


class Throughput:
    """Tokens per second, model FLOP utilisation and time left, over the last steps; pauses do not count.

    JAX returns from a step before the device has finished it. Over a few steps the times agree, because the loop waits
    for the metrics of earlier steps.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        tokens_per_step: int,
        flops_per_token: float = 0.0,
        peak_flops: float = 0.0,
        window: int = 20,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Starts the clock.

        Args:
            total_steps: of the run; for the time left.
            tokens_per_step: of the whole batch.
            flops_per_token: model FLOPs of forward and backward; 0 = unknown, no MFU.
            peak_flops: of all devices together, per second; 0 = unknown, no MFU.
            window: how many steps the mean is taken over.
            clock: gives seconds.
        """
        self._total_steps, self._tokens_per_step = total_steps, tokens_per_step
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self._clock = clock
        self._last = clock()
        self._paused = 0.0
        self._window: deque[float] = deque(maxlen=window)  # seconds of the last steps

    def step(self, step: int) -> dict[str, float]:
        """Call after every update; returns `seconds` (this step), `tokens_per_second`, `eta` (seconds) and `mfu`."""
        now = self._clock()
        seconds = now - self._last - self._paused
        self._last, self._paused = now, 0.0
        self._window.append(seconds)
        mean_seconds = max(sum(self._window), 1e-9) / len(self._window)
        rate = self._tokens_per_step / mean_seconds
        timing = {"seconds": seconds, "tokens_per_second": rate, "eta": mean_seconds * (self._total_steps - step)}
        if self._flops_per_token and self._peak_flops:
            timing["mfu"] = rate * self._flops_per_token / self._peak_flops
        return timing

    def restart(self) -> None:
        """Forgets the steps so far: the first one compiles and would spoil the mean."""
        self._window.clear()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent inside is not training: evaluation, checkpoints."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start


def peak_memory(mesh: Mesh) -> dict[str, int]:
    """`peak_memory_bytes`: the most that any device of this process has held so far; {} where that is not known (CPU).

    It counts what JAX allocates, not what the driver and other libraries take.
    """
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in mesh.local_devices]
    known = [peak for peak in peaks if peak is not None]
    return {"peak_memory_bytes": max(known)} if known else {}


class ProgressLine:
    """One line that is rewritten on a terminal; elsewhere a plain line every half minute."""

    def __init__(
        self,
        *,
        total_steps: int,
        stream: TextIO | None = None,
        plain_every_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Writes to `stream` (standard error), at most 10 times a second or every `plain_every_seconds`."""
        self._total_steps = total_steps
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._every = 0.1 if self._live else plain_every_seconds
        self._clock = clock
        self._next = -float("inf")
        self._open = False

    def show(self, row: Mapping[str, Any]) -> None:
        """Shows a row of metrics (step, loss, timing if known) when it is due, and always that of the last step."""
        now = self._clock()
        if now < self._next and row["step"] < self._total_steps:
            return
        self._next = now + self._every
        text = format_progress(row, total_steps=self._total_steps)
        self._stream.write(f"\r\x1b[K{text}" if self._live else text + "\n")
        self._stream.flush()
        self._open = self._live

    def print(self, text: str) -> None:
        """A line of its own, above the progress line."""
        self.end()
        self._stream.write(text + "\n")
        self._stream.flush()

    def end(self) -> None:
        """Leaves the progress line as it is; what follows begins on a new one."""
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
            self._open = False


def format_progress(row: Mapping[str, Any], *, total_steps: int) -> str:
    """For example `step 120/640  loss 3.412  lr 5.0e-04  4,312 tokens/s  MFU 31 %  ETA 0:08:40`."""
    parts = [f"step {row['step']}/{total_steps}"]
    if "loss" in row:
        parts.append(f"loss {row['loss']:.3f}")
    if "learning_rate" in row:
        parts.append(f"lr {row['learning_rate']:.1e}")
    if "tokens_per_second" in row:
        parts.append(f"{row['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in row:
        parts.append(f"MFU {100 * row['mfu']:.0f} %")
    if "eta" in row:
        minutes, seconds = divmod(round(row["eta"]), 60)
        parts.append(f"ETA {minutes // 60}:{minutes % 60:02d}:{seconds:02d}")
    return "  ".join(parts)
