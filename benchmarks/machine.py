"""The cores of a benchmark, and what its machine can do at best: products of matrices, and copies."""

import os
import time
from collections.abc import Callable

import numpy as np


def pin(count: int) -> int:
    """Restricts this process and torch's threads to the first `count` cores that it may use; returns their number.

    To be called before any library has started its threads.
    """
    cores = sorted(os.sched_getaffinity(0))[:count]
    os.sched_setaffinity(0, cores)
    import torch  # only now

    torch.set_num_threads(len(cores))
    return len(cores)


def sgemm_peaks(size: int = 2048, repeats: int = 5) -> dict[str, float]:
    """GFLOP/s of the fastest of several square float32 matrix products, for each library."""
    import jax
    import torch

    a = np.random.default_rng(0).standard_normal((size, size), np.float32)
    torch_a, jax_a, jax_product = torch.from_numpy(a), jax.device_put(a), jax.jit(lambda a: a @ a)
    products: dict[str, Callable] = {
        "torch": lambda: torch_a @ torch_a,
        "numpy": lambda: a @ a,
        "jax": lambda: jax.block_until_ready(jax_product(jax_a)),
    }
    return {name: 2e-9 * size**3 / min(times(product, repeats)) for name, product in products.items()}


def times(call: Callable, repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, after one call that is not timed."""
    call()
    result = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        result.append(time.perf_counter() - start)
    return result


def copy_bandwidth(repeats: int = 7) -> float:
    """GB/s that a copy of 512 MB moves, read and written: the best of torch and numpy."""
    import torch

    a = np.ones(1 << 27, np.float32)
    b = np.empty_like(a)
    torch_a, torch_b = torch.from_numpy(a), torch.from_numpy(b)
    copies: tuple[Callable, ...] = (lambda: np.copyto(b, a), lambda: torch_b.copy_(torch_a))
    return 2e-9 * a.nbytes / min(min(times(copy, repeats)) for copy in copies)
