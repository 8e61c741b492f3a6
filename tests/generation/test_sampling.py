"""Choosing tokens, against filters written with sorted lists, transformers' processors, and chi-square."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allam_jax.generation.programs import Texts
from allam_jax.generation.requests import Request, Sampling
from allam_jax.generation.sampling import choose, filtered, token_logprobs
from allam_jax.generation.slots import Slots

V = 300
choose_jit = jax.jit(choose)
filtered_jit = jax.jit(filtered)


def slots_of(*requests: Request, capacity: int = 64) -> Texts:
    slots = Slots(len(requests), capacity)
    for slot, request in enumerate(requests):
        slots.start(slot, request, 0, stop_ids=request.sampling.stop_ids)
    return slots.texts


def asked(**sampling) -> Sampling:
    return Sampling(**({"max_new_tokens": 20} | sampling))


def filtered_by_hand(logits, *, temperature, top_k, top_p, min_p):
    """Probabilities after top-k, top-p and min-p."""
    logits = np.asarray(logits, np.float64) / temperature
    ranked = sorted(range(len(logits)), key=lambda i: -logits[i])
    ranked = [i for i in ranked if logits[i] > -np.inf]
    if top_k and top_k < len(ranked):
        ranked = [i for i in ranked if logits[i] >= logits[ranked[top_k - 1]]]
    weights = [math.exp(logits[i] - logits[ranked[0]]) for i in ranked]
    total, mass, kept = sum(weights), 0.0, []
    for index, weight in zip(ranked, weights, strict=True):
        tied = kept and logits[index] == logits[kept[-1]]
        if kept and mass / total >= top_p - 1e-12 and not tied:
            break
        kept.append(index)
        mass += weight
    kept = [i for i in kept if math.exp(logits[i] - logits[ranked[0]]) >= min_p]
    result = np.zeros(len(logits))
    result[kept] = [math.exp(logits[i] - logits[ranked[0]]) for i in kept]
    return result / result.sum()


FILTERS = [
    {"temperature": t, "top_k": k, "top_p": p, "min_p": m}
    for t, k, p, m in [
        *[(1.0, k, p, 0.0) for k in (0, 1, 5, 40, 1000) for p in (1e-9, 0.3, 0.9, 1.0)],
        (0.5, 0, 0.95, 0.0),
        (2.0, 50, 1.0, 0.02),
        (1.3, 0, 1.0, 0.1),
        (0.7, 20, 0.8, 0.05),
    ]
]


def test_filters_equal_brute_force():
    rng = np.random.default_rng(7)
    rows = [
        *(rng.normal(size=(4, V)) * 3),
        np.zeros(V),
        rng.integers(0, 3, size=V),
        np.where(rng.random(V) < 0.5, -np.inf, rng.normal(size=V)),
    ]
    pairs = [(np.float32(row), one) for row in rows for one in FILTERS]
    texts = slots_of(*(Request(str(n), (1,), asked(**one)) for n, (_, one) in enumerate(pairs)))
    ours = filtered_jit(jnp.stack([row for row, _ in pairs]), texts.sampling)
    actual = np.asarray(jax.nn.softmax(ours, axis=-1))
    for row, (logits, one) in enumerate(pairs):
        expected = filtered_by_hand(logits, **one)
        np.testing.assert_array_equal(actual[row] > 0, expected > 0, err_msg=str(one))
        np.testing.assert_allclose(actual[row], expected, atol=1e-6)


@pytest.mark.parity
def test_penalties_and_filters_are_those_of_transformers():
    import torch
    from transformers.generation import logits_process as theirs

    rng = np.random.default_rng(3)
    logits = np.float32(rng.normal(size=V) * 3)
    history, prompt = rng.integers(0, V, 12), 7
    sampling = asked(repetition_penalty=1.7, temperature=0.8, top_k=60, top_p=0.9, min_p=0.01, banned_ids=(5, 9))
    scores, ids = torch.tensor(logits[None]), torch.tensor(history[None])
    for process in (
        theirs.RepetitionPenaltyLogitsProcessor(1.7),
        theirs.SuppressTokensLogitsProcessor([5, 9]),
        theirs.TemperatureLogitsWarper(0.8),
        theirs.TopKLogitsWarper(60),
        theirs.TopPLogitsWarper(0.9),
        theirs.MinPLogitsWarper(0.01),
    ):
        scores = process(ids, scores)
    expected = torch.softmax(scores, -1)[0].numpy()
    counts = draws(logits, history, prompt, sampling, 20_000)
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(expected))
    assert_follows(counts, expected)


def draws(logits, history, prompt, sampling, number) -> np.ndarray:
    """How often each token is drawn by so many samples of a request, whose answer is what follows the prompt."""
    texts = slots_of(*[Request("x", tuple(map(int, history[:prompt])), sampling)] * 500)
    texts.tokens_BC[:, : len(history)] = history
    texts.lengths_B[:] = len(history)
    counts = np.zeros(V, int)
    for first in range(0, number, 500):
        texts.sampling.sample_B[:] = np.arange(first, first + 500)
        chosen = choose_jit(
            jnp.broadcast_to(logits, (500, V)), texts.sampling, tokens_BC=texts.tokens_BC, lengths_B=texts.lengths_B
        )
        counts += np.bincount(chosen.ids_B, minlength=V)
    return counts


def assert_follows(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Chi-square, with rare tokens pooled; 4 sigma (Wilson and Hilferty) is one failure in 30,000 seeds."""
    expected = counts.sum() * np.asarray(probabilities, np.float64)
    assert np.all(counts[expected == 0] == 0)
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    observed, wanted = observed[wanted > 1e-9], wanted[wanted > 1e-9]
    freedom = len(wanted) - 1
    assert freedom >= 2
    statistic = np.sum((observed - wanted) ** 2 / wanted)
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert z < 4


@pytest.mark.parametrize(
    "one",
    [
        {"temperature": 1.0},
        {"temperature": 1.5, "top_p": 0.7},
        {"temperature": 2.0, "top_k": 9, "top_p": 0.8},
    ],
    ids=str,
)
def test_samples_follow_the_filtered_softmax(one):
    logits = np.float32(np.random.default_rng(5).normal(size=V) * 2)
    counts = draws(logits, np.array([1, 2]), 2, asked(**one, seed=9), 6000)
    assert_follows(counts, filtered_by_hand(logits, **({"top_k": 0, "top_p": 1.0, "min_p": 0.0} | one)))


def test_presence_and_frequency_count_the_answer_only():
    logits = np.zeros(V, np.float32)
    history = np.array([3, 3, 4, 5, 5, 6])  # the prompt is 3, 3
    counts = draws(logits, history, 2, asked(presence_penalty=0.5, frequency_penalty=0.25), 30_000)
    expected = np.zeros(V)
    expected[[4, 5, 6]] = -0.75, -1.0, -0.75
    assert_follows(counts, np.exp(expected) / np.exp(expected).sum())


def test_stop_ids_wait_for_the_minimum():
    logits = np.float32(np.arange(V))
    request = Request("x", (1, 2), asked(temperature=0.0, min_new_tokens=2, stop_ids=(V - 1,), banned_ids=(V - 2,)))
    texts = slots_of(request, request)
    texts.lengths_B[1] = 4  # two tokens of the answer are there
    chosen = choose_jit(jnp.stack([logits] * 2), texts.sampling, tokens_BC=texts.tokens_BC, lengths_B=texts.lengths_B)
    assert chosen.ids_B.tolist() == [V - 3, V - 1]


def test_greedy_takes_the_first_of_equal_ones_and_a_draw_never_what_has_no_weight():
    logits = np.full((2, V), -np.inf, np.float32)
    logits[:, [7, 150]] = 1.0
    requests = [Request("a", (1,), asked(temperature=0.0)), Request("b", (1,), asked())]
    texts = slots_of(*requests)
    seen = set()
    for sample in range(40):
        texts.sampling.sample_B[:] = sample
        ids = choose_jit(
            jnp.asarray(logits), texts.sampling, tokens_BC=texts.tokens_BC, lengths_B=texts.lengths_B
        ).ids_B.tolist()
        assert ids[0] == 7
        seen.add(ids[1])
    assert seen == {7, 150}


def test_log_probabilities():
    logits = np.float32(np.random.default_rng(1).normal(size=(3, V)))
    logprobs, top_ids, top = token_logprobs(jnp.asarray(logits), jnp.asarray([4, 5, 6]))
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    np.testing.assert_allclose(logprobs, expected[[0, 1, 2], [4, 5, 6]], atol=1e-5)
    np.testing.assert_array_equal(top_ids, np.argsort(-expected, axis=-1)[:, :20])
    np.testing.assert_allclose(top, -np.sort(-expected, axis=-1)[:, :20], atol=1e-5)


@pytest.mark.parametrize("tiny", [1e-30, 1e-38, 1e-45, 5e-324])
def test_what_float32_cannot_hold_leaves_the_likeliest_token(tiny):
    logits = np.random.default_rng(0).normal(size=(3, V)).astype(np.float32)
    requests = [
        Request("p", (1,), asked(top_p=tiny)),
        Request("t", (1,), asked(temperature=tiny)),
        Request("r", (1,), asked(repetition_penalty=tiny, temperature=0.0)),
    ]
    logits[2, 1] = 0.01  # of the prompt: so small a penalty makes it the likeliest
    texts = slots_of(*requests)
    found = choose_jit(jnp.asarray(logits), texts.sampling, tokens_BC=texts.tokens_BC, lengths_B=texts.lengths_B)
    assert found.ids_B.tolist() == [int(logits[0].argmax()), int(logits[1].argmax()), 1]
