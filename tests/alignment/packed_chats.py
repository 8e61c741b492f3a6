"""Samples of small conversations, packed, and the loss of a small model on them."""

import dataclasses
import functools
import json

import jax
import numpy as np
from small_chats import ARABIC, ENGLISH, masker, messages, sentencepiece_tokenizer
from small_models import TINY

from allam_jax.alignment.packed_samples import PackedRows, items_of
from allam_jax.alignment.sample_cache import conversations, open_samples, pairs, write_samples
from allam_jax.model.llama import init_params
from allam_jax.model.llama_config import ComputeOptions
from allam_jax.parallel.distributed import global_batch_array
from allam_jax.parallel.mesh import make_mesh
from allam_jax.training.objective import NextToken
from allam_jax.training.optimizer import make_optimizer
from allam_jax.training.settings import GuardSettings, OptimizerSettings
from allam_jax.training.state import abstract_state, start_state
from allam_jax.training.step import make_train_step

CONFIG = dataclasses.replace(TINY, vocab_size=sentencepiece_tokenizer().vocab_size, max_position=512)


@functools.cache
def params():
    return jax.jit(lambda: init_params(jax.random.key(0), config=CONFIG))()


def chats(count=12):
    """Conversations of one to three turns, in both languages."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        turns = [ENGLISH, ARABIC][number % 2]
        first = int(turns[0][0] == "system")
        kept = first + 2 * int(rng.integers(1, (len(turns) - first) // 2 + 1))
        found.append([(role, text * int(rng.integers(1, 3))) for role, text in turns[:kept]])
    return found


def written(directory, records, *, make, held_out_share=0.0, max_bad_share=0.0):
    """The opened samples of records."""
    file = directory.with_suffix(".jsonl")
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    write_samples(
        directory,
        paths={"chats": str(file)},
        make=make,
        identity={"test": len(records)},
        vocab_size=sentencepiece_tokenizer().vocab_size,
        held_out_share=held_out_share,
        max_bad_share=max_bad_share,
    )
    return open_samples(directory)


def samples_of(directory, *, learned="all", seq_len=256, held_out_share=0.0, count=12):
    records = [{"messages": list(messages(turns))} for turns in chats(count)]
    make = conversations(masker(seq_len=seq_len), learned=learned)
    return written(directory, records, make=make, held_out_share=held_out_share)


PAIRS = [
    ("What is the capital of Egypt?", "Cairo.", "Muscat, a city\non the sea."),
    ("ما عاصمة عمان؟", "مسقط، مدينة على البحر.", "القاهرة."),
    ("And of Oman?", "Muscat.", "You are welcome. You are welcome."),
    ("Thanks!", "You are welcome.", "What?"),
    ("ما عاصمة مصر؟", "القاهرة.", "مصر"),
]


def pair_samples(directory, *, seq_len=256, held_out_share=0.0, repeats=1):
    records = [
        {"prompt": question + " ?" * repeat, "chosen": chosen, "rejected": rejected}
        for repeat in range(repeats)
        for question, chosen, rejected in PAIRS
    ]
    make = pairs(masker(seq_len=seq_len, too_long="skip"))
    return written(directory, records, make=make, held_out_share=held_out_share)


def packed(samples, *, seq_len=256, together=1, **given) -> PackedRows:
    return PackedRows(samples=samples, items=items_of(samples, together=together), seq_len=seq_len, **given)


def all_rows(rows: PackedRows, *, count=16):
    """Every row of an epoch in one batch, filled up to a number of rows so that few shapes compile."""
    fitted = rows.fitted().rows(np.random.default_rng(0))
    assert len(fitted) <= count
    return rows.batch([fitted[row] for row in range(len(fitted))] + [np.zeros(0, int)] * (count - len(fitted)))


def used_rows(batch):
    return int(np.sum(batch["segment_ids"].any(axis=1)))


@functools.cache
def _graded(objective):
    def loss(parameters, batch):
        total, sums = objective.summed_loss(parameters, batch, jax.random.key(0))
        normaliser = objective.normaliser(batch)
        return total / normaliser, {name: value / normaliser for name, value in sums.items()}

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def loss_and_gradient(objective, batch):
    """The mean loss of a batch, its metrics and the gradient."""
    (value, metrics), gradient = _graded(objective)(params(), batch)
    return float(value), metrics, gradient


def step_on(objective, batch, *, sizes, accumulation):
    """The loss and the gradient of one training step on a mesh."""
    mesh = make_mesh(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)), devices=jax.devices()[: np.prod(sizes)])
    optimizer = make_optimizer(OptimizerSettings(b1=0.9, clip_norm=0), schedule=lambda step: 0, guard=GuardSettings())
    abstract = abstract_state(CONFIG, optimizer=optimizer, mesh=mesh)
    placed = jax.tree.map(lambda p, a: jax.device_put(np.asarray(p), a.sharding), params(), abstract.params)
    state = start_state(placed, abstract=abstract, optimizer=optimizer, seed=0)
    step = make_train_step(objective, optimizer=optimizer, abstract=abstract, num_sources=1, accumulation=accumulation)
    state, metrics = step(state, global_batch_array(batch, mesh=mesh, global_batch=len(batch["tokens"])))
    return float(metrics["loss"]), jax.tree.map(lambda m: np.asarray(m) / 0.1, state.optimizer.mu)


def next_token():
    return NextToken(model=CONFIG, options=ComputeOptions(), num_chunks=2)


def assert_close(actual, expected, *, rtol=1e-5):
    """Gradients, relative to the largest number of each array."""
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * max(float(np.abs(other).max()), 1e-6))
