"""Compares our generation engine with transformers + torch on CPU: alternately in one process, with the same weights.

    python benchmarks/generate.py [--rounds 7] [--cores 2] [--nocompile] [--cases prefill,1,8,32,rows]

The network has the shape of SmolLM2-135M, float32. Decoding: all texts of a batch have a prompt of 128 tokens, and a
contestant takes the likeliest token of each for `STEPS` steps, with its cache. Ours is the engine as it is used, with
text of all penalties and filters off; theirs is a loop around the model, without the overhead of `generate`, with a
cache that grows ("eager") and with a static cache and torch.compile ("static, compiled"). Prefill: 1,024 tokens and the
first new one. Rows: `ROWS` prompts of 20 to 120 tokens with answers of 4 to 64, as the rows of a file have them, 8 at a
time, from the first prompt to the last answer. The engine refills a slot as soon as its answer has ended; a batch of
theirs, padded on the left, goes on until its longest answer has. A compiled loop would compile anew for each length of
a prompt, so it is left out there.

Beside it the floors of the same run: at batch 1 the bytes of the weights over the bandwidth of a copy (read + write),
at large batches their FLOPs over the best square sgemm. The contestants take turns, so that other load on the machine
slows all of them. The output is a table and, on the last line, a JSON object.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import app, flags, logging

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from machine import copy_bandwidth, pin, sgemm_peaks  # noqa: E402
from random_weights import write_weights  # noqa: E402

ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed runs of each contestant.", lower_bound=1)
CORES = flags.DEFINE_integer("cores", 2, "CPU cores to use.", lower_bound=1)
COMPILE = flags.DEFINE_bool("compile", True, "Also time torch.compile with a static cache.")
CASES = flags.DEFINE_list("cases", ["prefill", "1", "8", "32", "rows"], "prefill, rows, or texts at a time.")
PACKED = flags.DEFINE_bool("packed", False, "Ours prefills several prompts of a case in one row (engine.packed).")

PROMPT, STEPS, LONG_PROMPT, CAPACITY, V = 128, 16, 1024, 1152, 49_152
ROWS, SLOTS = 48, 8
PREFILL, ALL_ROWS = "prefill", "rows"
OURS, COMPILED = "allam_jax", "static, compiled"
SHAPE = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": V,
    "max_position_embeddings": 8192,
    "rope_theta": 100_000.0,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
}

Run = Callable[[], tuple[float, list[int]]]  # seconds, and the tokens of the first text
Side = Callable[[str], Run]  # of a case: "prefill", "rows", or the number of texts at a time


def rows_of(prompts: np.ndarray) -> list[tuple[list[int], int]]:
    """Prompts of other lengths, and how many tokens are to follow each."""
    rng = np.random.default_rng(1)
    lengths, answers = rng.integers(20, 121, ROWS), rng.integers(4, 65, ROWS)
    return [
        (prompt[:length].tolist(), int(answer))
        for prompt, length, answer in zip(prompts[:ROWS], lengths, answers, strict=True)
    ]


def ours(weights: Path, prompts: np.ndarray) -> Side:
    """The engine."""
    import jax

    from allam_jax.generation.engine import Engine
    from allam_jax.generation.requests import Request, Sampling
    from allam_jax.generation.settings import EngineSettings
    from allam_jax.model.llama_config import ComputeOptions
    from allam_jax.parallel.mesh import make_mesh
    from allam_jax.weights.huggingface import import_huggingface

    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, devices=jax.devices("cpu")[:1])
    params, config = import_huggingface(weights, mesh=mesh)

    def engine_with(slots: int, **more: int | bool) -> Engine:
        settings = EngineSettings(**({"slots": slots, "burst": STEPS, "capacity": CAPACITY} | more))
        return Engine(params, config=config, options=ComputeOptions(), settings=settings)

    def decoding(batch: int) -> Run:
        engine = engine_with(batch, prefill_tokens=1 << 20)

        def run() -> tuple[float, list[int]]:
            # The first burst, which prefills too, is not timed; the second one is.
            asked = Sampling(max_new_tokens=2 * STEPS, temperature=0.0)
            for row in range(batch):
                engine.submit(Request(str(row), tuple(prompts[row, :PROMPT].tolist()), asked))
            tokens = [index for delta in engine.step() if delta.name == "0" for index in delta.ids]
            start = time.perf_counter()
            deltas = engine.step()
            seconds = time.perf_counter() - start
            assert not engine.busy
            return seconds, tokens + [index for delta in deltas if delta.name == "0" for index in delta.ids]

        return run

    def prefilling() -> Run:
        engine = engine_with(1)

        def run() -> tuple[float, list[int]]:
            engine.submit(Request("0", tuple(prompts[0].tolist()), Sampling(max_new_tokens=1, temperature=0.0)))
            start = time.perf_counter()
            (delta,) = engine.step()
            return time.perf_counter() - start, list(delta.ids)

        return run

    def all_rows() -> Run:
        engine = engine_with(SLOTS, capacity=256, packed=PACKED.value)

        def run() -> tuple[float, list[int]]:
            requests = (
                Request(str(row), tuple(prompt), Sampling(max_new_tokens=answer, temperature=0.0))
                for row, (prompt, answer) in enumerate(rows_of(prompts))
            )
            start = time.perf_counter()
            answers = list(engine.complete(requests))
            return time.perf_counter() - start, [index for answer in answers for index in answer.ids]

        return run

    others = {PREFILL: prefilling, ALL_ROWS: all_rows}
    return lambda case: others[case]() if case in others else decoding(int(case))


def theirs(weights: Path, prompts: np.ndarray, *, static: bool) -> Side:
    """transformers."""
    import torch
    from transformers import DynamicCache, LlamaForCausalLM, StaticCache

    model = LlamaForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()
    step = torch.compile(model, dynamic=False) if static else model

    def filled(tokens: "torch.Tensor"):
        cache = StaticCache(model.config, max_cache_len=CAPACITY) if static else DynamicCache(config=model.config)
        logits = model(
            tokens, past_key_values=cache, cache_position=torch.arange(tokens.shape[1]), logits_to_keep=1
        ).logits
        return cache, logits[:, -1].argmax(-1, keepdim=True)

    def decoding(batch: int) -> Run:
        def run() -> tuple[float, list[int]]:
            with torch.inference_mode():
                cache, new = filled(torch.tensor(prompts[:batch, :PROMPT]))
                tokens = [int(new[0])]
                for position in range(PROMPT, PROMPT + 2 * STEPS - 1):
                    if position == PROMPT + STEPS - 1:
                        start = time.perf_counter()
                    where = torch.tensor([position])
                    new = step(new, past_key_values=cache, cache_position=where).logits[:, -1].argmax(-1, keepdim=True)
                    tokens.append(int(new[0]))
                return time.perf_counter() - start, tokens

        return run

    def prefill() -> tuple[float, list[int]]:
        with torch.inference_mode():
            start = time.perf_counter()
            _, new = filled(torch.tensor(prompts[:1]))
            return time.perf_counter() - start, [int(new[0])]

    def all_rows() -> tuple[float, list[int]]:
        rows = rows_of(prompts)
        start, tokens = time.perf_counter(), []
        with torch.inference_mode():
            for first in range(0, ROWS, SLOTS):
                batch = rows[first : first + SLOTS]
                width, steps = max(len(prompt) for prompt, _ in batch), max(answer for _, answer in batch)
                ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt, _ in batch])
                mask = torch.tensor([[0] * (width - len(p)) + [1] * (len(p) + steps) for p, _ in batch])
                places = (mask.cumsum(1) - 1).clamp(min=0)
                cache, given = DynamicCache(config=model.config), []
                for step in range(steps):
                    end = width + step
                    logits = model(
                        ids if not step else given[-1],
                        past_key_values=cache,
                        attention_mask=mask[:, :end],
                        position_ids=places[:, end - ids.shape[1] if not step else end - 1 : end],
                        logits_to_keep=1,
                    ).logits
                    given.append(logits[:, -1].argmax(-1, keepdim=True))
                new = torch.cat(given, 1).tolist()
                tokens += [index for (_, answer), row in zip(batch, new, strict=True) for index in row[:answer]]
        return time.perf_counter() - start, tokens

    others = {PREFILL: prefill, ALL_ROWS: all_rows}
    return lambda case: others[case] if case in others else decoding(int(case))


def measure(contestants: dict[str, Run], rounds: int) -> dict[str, dict]:
    """Runs the contestants in turn, and checks that all choose the same tokens."""
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    tokens = {name: (contestants[name](), contestants[name]())[1][1] for name in names}  # compiles, touches memory
    for name in names:
        if tokens[name] != tokens[OURS]:
            raise AssertionError(f"{name} and {OURS} choose other tokens: {tokens[name]} and {tokens[OURS]}")
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            time.sleep(0.05)  # until the threads of the previous contestant stop spinning
            seconds[name].append(contestants[name]()[0])
    return {name: {"seconds": statistics.median(s), "fastest_seconds": min(s)} for name, s in seconds.items()}


def main(argv: list[str]) -> None:
    """Runs the comparison."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    cores = pin(CORES.value)
    cases = CASES.value
    batches = [int(case) for case in cases if case not in (PREFILL, ALL_ROWS)]
    prompts = np.random.default_rng(0).integers(3, V, (max([ROWS, *batches]), LONG_PROMPT))
    with tempfile.TemporaryDirectory() as directory:
        weights = Path(directory) / "weights"
        write_weights(weights, **SHAPE)
        sides = {OURS: ours(weights, prompts), "eager": theirs(weights, prompts, static=False)}
        if COMPILE.value:
            compiled = theirs(weights, prompts, static=True)
            try:
                compiled(cases[0] if cases[0] != ALL_ROWS else PREFILL)()
                sides[COMPILED] = compiled
            except Exception as error:  # without a working compiler, compare the others
                logging.warning("torch.compile failed and is left out: %s", str(error).splitlines()[0])
        results = {
            case: measure(
                {name: side(case) for name, side in sides.items() if (case, name) != (ALL_ROWS, COMPILED)}, ROUNDS.value
            )
            for case in cases
        }
        bandwidth, peak = copy_bandwidth(), max(sgemm_peaks().values())

    parameters = 30 * (576 * 64 * (9 + 3 + 3 + 9) + 3 * 576 * 1536) + V * 576
    print(f"{cores} cores; a copy moves {bandwidth:.1f} GB/s (read + write), sgemm {peak:.0f} GFLOP/s")
    print(f"{'':34}{'s':>9}{'fastest':>9}{'tokens/s':>10}{'floor ms':>10}{'of floor':>10}{'ours/it':>9}")
    table = {}
    for case, result in results.items():
        # Tokens that pass through the layers, those that also pass through the head, and steps.
        if case == PREFILL:
            tokens, new, steps, title = LONG_PROMPT, 0, 1, "prefill 1,024"
        elif case == ALL_ROWS:
            new = sum(answer for _, answer in rows_of(prompts))
            tokens = new + sum(len(prompt) for prompt, _ in rows_of(prompts))
            steps, title = -(-new // SLOTS), f"{ROWS} rows"
        else:
            tokens = new = int(case) * STEPS
            steps, title = STEPS, f"batch {case}"
        flops = 2 * (parameters - V * 576) * tokens + 2 * V * 576 * new
        floor = max(4 * parameters * steps / bandwidth / 1e9, flops / peak / 1e9)
        for name, row in result.items():
            row |= {"tokens_per_second": (new or tokens) / row["seconds"], "floor_seconds": floor}
            row["speed_ratio_of_ours"] = row["seconds"] / result[OURS]["seconds"]
            row["fastest_ratio_of_ours"] = row["fastest_seconds"] / result[OURS]["fastest_seconds"]
            label = f"{title}, {name}"
            print(
                f"{label:34}{row['seconds']:9.3f}{row['fastest_seconds']:9.3f}{row['tokens_per_second']:10.1f}"
                f"{1e3 * floor / steps:10.1f}{floor / row['seconds']:10.1%}{row['speed_ratio_of_ours']:9.2f}"
            )
        table[title] = result
    print(json.dumps({"copy_gb_per_second": bandwidth, "sgemm_gflops": peak, "cores": cores, "results": table}))


if __name__ == "__main__":
    app.run(main)
