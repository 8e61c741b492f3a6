"""Compares our training step with transformers + torch on CPU: alternately in one process, with the same weights.

    python benchmarks/train_step.py [--shape small] [--dtype float32] [--rounds 15] [--cores 2] [--nocompile]

The network is a Llama in float32. With `--dtype bfloat16` its products take operands of bfloat16, in torch by autocast.
`small` has width 256, 6 layers, 8 heads, feed-forward 688 and vocabulary 8,192, and 8 x 256 tokens a batch; `smollm2`
has the shape of SmolLM2-135M, and 4 x 512 tokens. A step is forward, backward, clipping of the gradient at norm 1, and
AdamW. The contestants take turns step by step, so that other load on the machine slows all of them; the table compares
their medians. Load does not slow them equally, because torch's waiting threads spin. Measure on an idle machine, or
compare the fastest steps, which are printed too. The benchmark needs torch and transformers, and a C++ compiler for
torch.compile.

The output is a table and, on the last line, a JSON object. FLOPs are those of the model: 6 per matmul parameter and
token, and causal attention at half of its square, whatever a contestant computes. The sgemm peak is the best of torch,
numpy and JAX on 2048 x 2048 matrices in the same process.
"""

import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import app, flags, logging

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from machine import pin, sgemm_peaks  # noqa: E402
from random_weights import write_weights  # noqa: E402

SHAPE = flags.DEFINE_enum("shape", "small", ["small", "smollm2"], "Of the network and the batch.")
ROUNDS = flags.DEFINE_integer("rounds", 15, "Timed steps of each contestant.", lower_bound=1)
CORES = flags.DEFINE_integer("cores", 2, "CPU cores to use.", lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of operands of products; all else is float32.")
COMPILE = flags.DEFINE_bool("compile", True, "Also time torch.compile.")
HUGE_PAGES = flags.DEFINE_bool("huge_pages", False, "Let malloc use huge pages, for all contestants.")

LEARNING_RATE = 3e-4
_PRODUCTS = {"float32": "", "bfloat16": "bfloat16"}
_REMAT = {"float32": "dots", "bfloat16": "full"}  # on CPU, what is quick to compute again is not worth new memory
OURS = "allam_jax"


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of a network, as transformers' `LlamaConfig` has it, and of a batch."""

    batch_size: int
    max_position_embeddings: int  # and tokens of a row
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool


SHAPES = {
    "small": Shape(8, 256, 256, 6, 8, 8, 688, 8192, tie_word_embeddings=False),
    "smollm2": Shape(4, 512, 576, 30, 9, 3, 1536, 49_152, tie_word_embeddings=True),
}

Step = Callable[[], float]  # runs one training step and returns its loss


def our_step(weights: Path, ids_BT: np.ndarray) -> tuple[Step, float]:
    """The step of `task = "train"` with the weights of a Hugging Face directory, and its model FLOPs."""
    import jax
    import jax.numpy as jnp

    from allam_jax.model.llama_config import ComputeOptions
    from allam_jax.parallel.mesh import batch_sharding, make_mesh
    from allam_jax.training.objective import NextToken
    from allam_jax.training.optimizer import make_optimizer
    from allam_jax.training.settings import GuardSettings, OptimizerSettings
    from allam_jax.training.state import abstract_state, start_state
    from allam_jax.training.step import make_train_step
    from allam_jax.weights.huggingface import import_huggingface

    B, T = ids_BT.shape[0], ids_BT.shape[1] - 1
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, devices=jax.devices("cpu")[:1])
    params, config = import_huggingface(weights, mesh=mesh)
    optimizer = make_optimizer(
        OptimizerSettings(), schedule=lambda step: jnp.full((), LEARNING_RATE), guard=GuardSettings()
    )
    abstract = abstract_state(config, optimizer=optimizer, mesh=mesh)
    state = start_state(params, abstract=abstract, optimizer=optimizer, seed=0)
    options = ComputeOptions(products=_PRODUCTS[DTYPE.value], remat=_REMAT[DTYPE.value])
    step = make_train_step(
        NextToken(model=config, options=options, num_chunks=4),
        optimizer=optimizer,
        abstract=abstract,
        num_sources=1,
    )
    batch = {
        "tokens": ids_BT[:, :-1],
        "targets": ids_BT[:, 1:],
        "segment_ids": np.ones((B, T), np.int32),
        "positions": np.tile(np.arange(T, dtype=np.int32), (B, 1)),
        "loss_weights": np.ones((B, T), np.float32),
        "source_ids": np.zeros((B, T), np.int32),
    }
    batch = jax.device_put(batch, batch_sharding(mesh))

    def run() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return run, config.flops_per_token(T) * B * T


def torch_step(weights: Path, ids_BT: np.ndarray, *, attention: str, compiled: bool = False) -> Step:
    """A step of transformers' Llama with torch's fused AdamW (faster than foreach), without decay on norms."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(weights, attn_implementation=attention, dtype=torch.float32).train()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8, fused=True)
    forward = torch.compile(model) if compiled else model
    inputs, targets = torch.tensor(ids_BT[:, :-1]).long(), torch.tensor(ids_BT[:, 1:]).long()

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=DTYPE.value == "bfloat16"):
            loss = forward(input_ids=inputs, labels=targets, shift_labels=targets, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return run


def measure(contestants: dict[str, Step], rounds: int) -> dict[str, dict]:
    """Runs the steps in turn. Returns median and fastest wall seconds, median CPU seconds, and all losses."""
    names = list(contestants)
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    losses: dict[str, list[float]] = {name: [] for name in names}
    for name in names:  # the first step compiles and touches new memory
        losses[name] += [contestants[name](), contestants[name]()]
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            time.sleep(0.05)  # until the threads of the previous contestant stop spinning
            wall, cpu = time.perf_counter(), time.process_time()
            losses[name].append(contestants[name]())
            runs[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: {
            "seconds": statistics.median(wall for wall, _ in runs[name]),
            "fastest_seconds": min(wall for wall, _ in runs[name]),
            "cpu_seconds": statistics.median(cpu for _, cpu in runs[name]),
            "losses": losses[name],
        }
        for name in names
    }


def check_same_maths(results: dict[str, dict]) -> None:
    """Checks that the losses of all steps agree, so that all contestants compute the same."""
    tolerance = {"float32": 1e-4, "bfloat16": 1e-2}[DTYPE.value]
    ours = np.array(results[OURS]["losses"])
    for name, result in results.items():
        difference = np.max(np.abs(np.array(result["losses"]) / ours - 1))
        if difference > tolerance:
            raise AssertionError(f"losses of {name} and {OURS} differ by {difference:.1e} (relative)")


def main(argv: list[str]) -> None:
    """Runs the comparison."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    tunable = "glibc.malloc.hugetlb=1"
    if HUGE_PAGES.value and tunable not in os.environ.get("GLIBC_TUNABLES", ""):  # read at the start of a process
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "GLIBC_TUNABLES": tunable})
    cores = pin(CORES.value)
    shape = SHAPES[SHAPE.value]
    B, T = shape.batch_size, shape.max_position_embeddings
    ids_BT = np.random.default_rng(0).integers(0, shape.vocab_size, (B, T + 1)).astype(np.int32)
    with tempfile.TemporaryDirectory() as directory:
        weights = Path(directory) / "weights"
        write_weights(weights, **{key: value for key, value in vars(shape).items() if key != "batch_size"})
        ours, flops = our_step(weights, ids_BT)
        contestants = {
            OURS: ours,
            "torch sdpa": torch_step(weights, ids_BT, attention="sdpa"),
            "torch eager": torch_step(weights, ids_BT, attention="eager"),
        }
        if COMPILE.value:
            compiled = torch_step(weights, ids_BT, attention="sdpa", compiled=True)
            try:
                compiled()
                # Its first step takes the compiled code from the cache.
                contestants["torch sdpa compiled"] = torch_step(weights, ids_BT, attention="sdpa", compiled=True)
            except Exception as error:  # without a working compiler, compare the others
                logging.warning("torch.compile failed and is left out: %s", str(error).splitlines()[0])
        results = measure(contestants, ROUNDS.value)
        peaks = sgemm_peaks()

    check_same_maths(results)
    peak = max(peaks.values())
    ratios = {
        field: min(result[field] for name, result in results.items() if name != OURS) / results[OURS][field]
        for field in ("seconds", "fastest_seconds", "cpu_seconds")
    }
    print(f"{cores} cores; sgemm GFLOP/s: " + ", ".join(f"{name} {value:.0f}" for name, value in peaks.items()))
    print(f"model FLOPs of a step: {flops / 1e9:.1f} G; losses of all steps agree")
    print(f"{'':22}{'s/step':>8}{'fastest':>8}{'CPU s':>8}{'tokens/s':>10}{'of peak':>9}{'ours/it':>9}")
    for name, result in results.items():
        seconds = result["seconds"]
        result["tokens_per_second"] = B * T / seconds
        result["share_of_peak"] = flops / 1e9 / seconds / peak
        result["speed_ratio_of_ours"] = seconds / results[OURS]["seconds"]
        print(
            f"{name:22}{seconds:8.3f}{result['fastest_seconds']:8.3f}{result['cpu_seconds']:8.3f}"
            f"{result['tokens_per_second']:10.0f}"
            f"{result['share_of_peak']:9.1%}{result['speed_ratio_of_ours']:9.2f}"
        )
    for result in results.values():
        losses = result.pop("losses")
        result["first_loss"], result["last_loss"] = losses[0], losses[-1]
    print(
        json.dumps(
            {
                "ratio_to_best_peer": ratios["seconds"],
                "ratio_to_best_peer_fastest_steps": ratios["fastest_seconds"],
                "ratio_to_best_peer_cpu_seconds": ratios["cpu_seconds"],
                "shape": SHAPE.value,
                "dtype": DTYPE.value,
                "rounds": ROUNDS.value,
                "cores": cores,
                "huge_pages": tunable in os.environ.get("GLIBC_TUNABLES", ""),
                "sgemm_gflops": peaks,
                "model_gflops_per_step": flops / 1e9,
                "results": results,
            }
        )
    )


if __name__ == "__main__":
    app.run(main)
