"""Compares our SFT and DPO steps with TRL's on CPU: alternately in one process, with the same weights and samples.

    python benchmarks/posttrain.py [--rounds 3] [--cores 2] [--items 16] [--layers 30] [--only dpo]

The network has the shape of SmolLM2-135M, with random weights, in float32. A step is forward, backward, clipping of the
gradient at norm 1 and AdamW, on the same conversations or pairs for both. Their lengths are those of real texts
(hadiths in English, in tokens of Mistral's tokenizer); the ids are random. Ours share rows of 512 tokens. TRL's are
padded to the longest, as its collators do without FlashAttention. SFT is the loss of transformers' model, which
SFTTrainer takes; DPO is DPOTrainer's own loss on the log-probabilities of the learned tokens. Both read the reference's
log-probabilities from a cache. The losses of the first steps must agree.

The output is a table, and a JSON object on the last line. It needs torch, transformers and trl.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import app, flags

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from machine import pin  # noqa: E402
from random_weights import write_weights  # noqa: E402
from trl_stand_in import DpoStandIn, padded  # noqa: E402

ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed steps of each contestant.", lower_bound=1)
CORES = flags.DEFINE_integer("cores", 2, "CPU cores to use.", lower_bound=1)
ITEMS = flags.DEFINE_integer("items", 16, "Conversations, or half as many pairs, of a step.", lower_bound=2)
LAYERS = flags.DEFINE_integer("layers", 30, "Layers of the network; SmolLM2-135M has 30.", lower_bound=1)

ONLY = flags.DEFINE_enum("only", "", ["", "sft", "dpo"], "One of the two steps; empty: both.")

SEQ_LEN, LEARNING_RATE = 512, 1e-6
SHAPE = {
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}

Step = Callable[[], float]  # runs one training step and returns its loss


def drawn_samples(directory: Path, *, together: int, count: int):
    """Samples of random ids with the lengths of real texts; a fifth of each is the prompt."""
    from allam_jax.alignment.reply_masks import Made, Sample
    from allam_jax.alignment.sample_cache import open_samples, write_samples
    from allam_jax.corpus import catalog
    from allam_jax.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_sentencepiece(catalog.read_asset("mistral_tokenizer"), source="mistral")
    longest = SEQ_LEN // together
    texts = [document.text for document in catalog.documents("sahih_muslim_en")][: 50 * count]
    lengths = [n for n in map(len, tokenizer.encode_batch(texts)) if 20 <= n <= longest]
    rng = np.random.default_rng(0)

    def made(record):
        samples = []
        prompt = rng.integers(3, SHAPE["vocab_size"], max(4, int(rng.choice(lengths)) // 5))
        for _ in range(together):
            reply = rng.integers(3, SHAPE["vocab_size"], min(int(rng.choice(lengths)), longest - len(prompt)))
            turns = np.concatenate([np.zeros(len(prompt)), np.ones(len(reply))]).astype(np.uint8)
            samples.append(Sample(np.concatenate([prompt, reply]).astype(np.int32), turns))
        return Made(record, samples, [])

    file = directory / f"{together}.jsonl"
    file.write_text("".join(json.dumps({"n": n}) + "\n" for n in range(count // together)))
    write_samples(
        directory / f"samples{together}",
        paths={"hadith": str(file)},
        make=lambda records: [made(record) for record in records],
        identity={},
        vocab_size=SHAPE["vocab_size"],
        held_out_share=0.0,
        max_bad_share=0.0,
    )
    return open_samples(directory / f"samples{together}")


def our_step(weights: Path, samples, *, together: int) -> tuple[Step, dict]:
    """The step of task `sft` or `dpo` on all samples, and how full its rows are."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from allam_jax.alignment.packed_samples import PackedRows, items_of
    from allam_jax.alignment.preference_loss import REFERENCE, Preference
    from allam_jax.alignment.reference_cache import reference_values
    from allam_jax.alignment.settings import DpoSettings
    from allam_jax.model.llama_config import ComputeOptions
    from allam_jax.parallel.mesh import batch_sharding, make_mesh
    from allam_jax.training.objective import NextToken
    from allam_jax.training.optimizer import make_optimizer
    from allam_jax.training.settings import GuardSettings, OptimizerSettings
    from allam_jax.training.state import abstract_state, start_state
    from allam_jax.training.step import make_train_step
    from allam_jax.weights.huggingface import import_huggingface

    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, devices=jax.devices("cpu")[:1])
    params, config = import_huggingface(weights, mesh=mesh)
    rows = PackedRows(samples=samples, items=items_of(samples, together=together), seq_len=SEQ_LEN)
    fitted = rows.fitted().rows(np.random.default_rng(0))
    options = ComputeOptions(remat="dots")
    if together == 1:
        objective = NextToken(model=config, options=options, num_chunks=4)
    else:
        objective = Preference(
            model=config, options=options, settings=DpoSettings(), most_pairs=rows.fitted().most_items, num_chunks=4
        )
        values = reference_values(params, objective=objective, rows=rows, mesh=mesh, batch_size=1)
        ends = np.cumsum(samples.lengths - 1)
        column = {REFERENCE: lambda number: values[ends[number] - samples.lengths[number] + 1 : ends[number]]}
        rows = dataclasses.replace(rows, columns=column)
    batch = jax.device_put(rows.batch([fitted[row] for row in range(len(fitted))]), batch_sharding(mesh))
    settings = OptimizerSettings(weight_decay=0.0)
    optimizer = make_optimizer(settings, schedule=lambda step: jnp.full((), LEARNING_RATE), guard=GuardSettings())
    abstract = abstract_state(config, optimizer=optimizer, mesh=mesh)
    state = start_state(params, abstract=abstract, optimizer=optimizer, seed=0)
    step = make_train_step(objective, optimizer=optimizer, abstract=abstract, num_sources=1)

    def run() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    tokens = int((samples.lengths - 1).sum())
    return run, {"tokens": tokens, "rows": len(fitted), "full": tokens / (len(fitted) * SEQ_LEN)}


def trl_step(weights: Path, samples, *, together: int) -> tuple[Step, dict]:
    """TRL's step on the same samples, padded to the longest; of pairs all chosen sides come first."""
    import torch
    from transformers import LlamaForCausalLM

    from allam_jax.alignment.settings import DpoSettings

    model = LlamaForCausalLM.from_pretrained(weights, attn_implementation="sdpa", dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    order = np.arange(len(samples)).reshape(-1, together).T.ravel().tolist()
    ids, labels, there = padded(samples, order)
    if together == 2:
        pairs = DpoStandIn(DpoSettings(), reference=model, ids=ids, labels=labels, there=there)

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        if together == 1:
            loss = model(input_ids=ids, attention_mask=there, labels=labels, use_cache=False).loss
        else:
            loss = pairs.loss(model)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return run, {"rows": len(order), "full": int(samples.lengths.sum()) / ids.numel()}


def measured(ours: Step, theirs: Step, *, rounds: int) -> dict[str, list[float]]:
    """Seconds of the timed steps of both, in turn; the losses of their first two steps must agree."""
    for number in range(2):  # they compile and touch new memory
        losses = ours(), theirs()
        if abs(losses[0] / losses[1] - 1) > 1e-4:
            raise AssertionError(f"step {number + 1}: our loss is {losses[0]}, TRL's {losses[1]}")
    seconds: dict[str, list[float]] = {"ours": [], "trl": []}
    for _ in range(rounds):
        for name, step in (("ours", ours), ("trl", theirs)):
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main(argv: list[str]) -> None:
    """Runs the comparison."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    pin(CORES.value)
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        weights = Path(directory) / "weights"
        write_weights(weights, num_hidden_layers=LAYERS.value, **SHAPE)
        for name, together in (("SFT", 1), ("DPO", 2)):
            if ONLY.value and name != ONLY.value.upper():
                continue
            samples = drawn_samples(Path(directory), together=together, count=ITEMS.value)
            ours, packing = our_step(weights, samples, together=together)
            theirs, padding = trl_step(weights, samples, together=together)
            seconds = measured(ours, theirs, rounds=ROUNDS.value)
            medians = {who: statistics.median(values) for who, values in seconds.items()}
            ratio = medians["trl"] / medians["ours"]
            found[name] = {"seconds": seconds, "ratio": ratio, "packed": packing, "padded": padding}
            print(
                f"{name}: {packing['tokens']:,} tokens; ours {medians['ours']:.2f} s ({packing['full']:.0%} of "
                f"{packing['rows']} rows), TRL {medians['trl']:.2f} s ({padding['full']:.0%} of {padding['rows']} "
                f"rows): {ratio:.2f} times as fast",
                flush=True,
            )
    print(json.dumps(found))


if __name__ == "__main__":
    app.run(main)
