"""What checksums cost: saves and loads a state of 2 GB with and without them, in turn; prints medians and ratios.

python benchmarks/checkpoints.py --gb 2 --rounds 3
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from allam_jax.training import checkpoints, stored_checkpoints
from allam_jax.training.settings import CheckpointSettings
from allam_jax.training.state import TrainState


@contextlib.contextmanager
def without_checksums():
    """The same code, but nothing is hashed."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(checkpoints, "array_checksums", return_value={}))
        stack.enter_context(mock.patch.object(checkpoints, "check_finite"))
        stack.enter_context(mock.patch.object(stored_checkpoints, "check_arrays"))
        stack.enter_context(mock.patch("allam_jax.checksums.hash_file", return_value=None))
        yield


def measure(state, folder: Path) -> dict[str, float]:
    """Seconds until save returns, until the checkpoint is complete, and to load it."""
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    with checkpoints.Checkpointer(folder, CheckpointSettings(keep_last=1)) as checkpointer:
        start = time.perf_counter()
        checkpointer.save(1, state=state, data={}, metadata={})
        blocked = time.perf_counter() - start
        checkpointer.wait()
        saved = time.perf_counter() - start
        os.sync()  # the load would wait for what is still to be written
        start = time.perf_counter()
        jax.block_until_ready(checkpointer.restore(abstract).state)
        loaded = time.perf_counter() - start
    shutil.rmtree(folder)
    os.sync()  # what is still to be written would slow the next measurement
    return {"blocked": blocked, "saved": saved, "loaded": loaded}


def main() -> None:
    """Alternates, so that a busy machine slows both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    layers = max(1, round(args.gb * 1e9 / (3 * 4 * 4096 * 2048)))
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.standard_normal((layers, 4096, 2048), np.float32))}
    moments = {"mu": jax.tree.map(lambda x: x * 0.1, params), "nu": jax.tree.map(jnp.square, params)}
    state = TrainState(step=jnp.int32(1), params=params, optimizer=moments, rng=jax.random.key_data(jax.random.key(0)))
    times: dict[str, list[dict[str, float]]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            for kind in ("with", "without") if number % 2 else ("without", "with"):
                with contextlib.nullcontext() if kind == "with" else without_checksums():
                    times[kind].append(measure(state, Path(folder) / "c"))
    median = {
        kind: {key: statistics.median(one[key] for one in found) for key in found[0]} for kind, found in times.items()
    }
    ratios = {key: round(median["with"][key] / value, 3) for key, value in median["without"].items()}
    print(json.dumps({"rounds": times, "seconds": median, "ratio": ratios}, indent=1))


if __name__ == "__main__":
    main()
