"""Log-likelihoods of continuations against a plain forward pass of transformers, one pair at a time."""

import itertools

import jax
import numpy as np
import pytest
from llama_pair import make_pair

from allam_jax.errors import UserError
from allam_jax.evaluation.likelihood import Likelihood, Pair
from allam_jax.evaluation.score_log import ScoreLog
from allam_jax.evaluation.settings import LikelihoodSettings
from allam_jax.evaluation.shared_prefixes import Score, groups_of, items_of, rows_of
from allam_jax.model.llama import param_axes
from allam_jax.model.llama_config import ComputeOptions
from allam_jax.parallel.mesh import make_mesh
from allam_jax.parallel.sharding import parameter_shardings

pytestmark = pytest.mark.parity
CHANCE = np.random.default_rng(0)


def ids(count):
    return tuple(CHANCE.integers(3, 250, count).tolist())


def some_pairs():
    """Few-shot prompts of two suites, a context of its own, the same context twice, long texts without context."""
    examples, other = ids(90), ids(40)
    pairs = []
    for start, questions in ((examples, 5), (other, 3), ((), 3)):
        for number in range(questions):
            context = start + ids(4 + 3 * number)
            pairs += [Pair(context, ids(length)) for length in (1, 3, 1, 6)[: 2 + number % 3]]
    pairs += [Pair(examples, ids(2)), Pair(examples[:50], ids(1)), Pair((1,), ids(140)), pairs[3]]
    return [pairs[number] for number in CHANCE.permutation(len(pairs))]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("model"), num_key_value_heads=2, max_position_embeddings=160)


def likelihood(pair, sizes=None, log=None, **settings):
    mesh = make_mesh(sizes or {}, devices=None if sizes else jax.devices()[:1])
    params = pair.params
    if sizes:
        params = jax.device_put(params, parameter_shardings(param_axes(pair.config), abstract_params=params, mesh=mesh))
    options = {"config": pair.config, "options": ComputeOptions(), "mesh": mesh, "log": log}
    return Likelihood(params, settings=LikelihoodSettings(**settings), **options)


def truth(pair, context, continuation):
    tokens_T = np.array([*context, *continuation[:-1]])[-160:]
    logits_TV = pair.torch_logits(tokens_T[None])[0].astype(np.float64)[-len(continuation) :]
    logprobs_TV = logits_TV - np.log(np.sum(np.exp(logits_TV), axis=-1, keepdims=True))
    logprob = logprobs_TV[np.arange(len(continuation)), list(continuation)].sum()
    return logprob, bool(np.all(logits_TV.argmax(axis=-1) == continuation))


@pytest.mark.parametrize(
    "sizes", [pytest.param(None, marks=pytest.mark.long), {"data": 2, "fsdp": 2, "tensor": 2}], ids=["one", "eight"]
)
def test_scores_are_those_of_a_plain_forward_pass(pair, sizes):
    pairs = some_pairs()
    for number in (0, 5):  # with the likeliest continuations too
        logits_V = pair.torch_logits(np.array([pairs[number].context]))[0, -1]
        pairs.append(Pair(pairs[number].context, (int(logits_V.argmax()),)))
    score = likelihood(pair, sizes, rows=1 if sizes else 4, row_tokens=64)
    found = score(pairs)
    expected = [truth(pair, *one) for one in pairs]
    np.testing.assert_allclose([one.logprob for one in found], [one for one, _ in expected], rtol=2e-5, atol=2e-5)
    assert [one.greedy for one in found] == [greedy for _, greedy in expected]
    assert found[-1].greedy
    assert score.work.computed < 0.45 * score.work.tokens  # examples and contexts were shared


def test_too_long_pairs_lose_the_beginning_of_their_context(pair):
    score = likelihood(pair, rows=2)
    long = Pair(ids(200), ids(5))
    (found,) = score([long])
    assert found.logprob == pytest.approx(truth(pair, *long)[0], rel=1e-5)
    assert score.work.truncated == 1
    for wrong, message in (
        (Pair((1,), ids(161)), "a continuation of 161 tokens"),
        (Pair((1,), ()), "without tokens"),
        (Pair((1,), (256,)), "an id outside"),
    ):
        with pytest.raises(UserError, match=message):
            score([wrong])


def test_a_run_goes_on_with_the_scores_that_are_written(pair, tmp_path):
    """Killed while it wrote a line; scores of other weights in the same file are not taken."""
    path, pairs = tmp_path / "scores.jsonl", list(dict.fromkeys(some_pairs()))
    whole = likelihood(pair, log=ScoreLog(path, identity={"weights": 1}))(pairs)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == len(pairs)
    path.write_bytes(b"".join(lines[:9]) + lines[9][:20])
    for weights, known in ((1, 9), (2, 0), (1, len(pairs))):
        score = likelihood(pair, log=ScoreLog(path, identity={"weights": weights}))
        np.testing.assert_allclose(score(pairs), whole, atol=1e-5)
        assert score.work.known == known
    assert score.work.computed == 0


def saved(groups):
    return sum(group.trunk * (len(group.items) - 1) for group in groups)


@pytest.mark.parametrize("seed", range(12))
def test_the_trunks_save_most_tokens(seed):
    """Against all ways to cut the sorted contexts into runs, each with the beginning that its members share."""
    chance, cost = np.random.default_rng(seed), 3
    contexts = {tuple(chance.integers(0, 2, chance.integers(2, 9)).tolist()) for _ in range(7)}
    items = items_of([Pair(context, (9,)) for context in contexts])
    groups = groups_of(items, cost=cost)
    best = 0
    for cuts in itertools.product((False, True), repeat=len(items) - 1):
        borders = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(items)]
        value = 0
        for first, last in itertools.pairwise(borders):
            run = [tuple(item.context) for item in items[first:last]]
            shared = len(list(itertools.takewhile(lambda c: len(set(c)) == 1, zip(*run, strict=False))))
            value += max(0, min(shared, *(len(c) - 1 for c in run), 99) * (len(run) - 1) - cost)
        best = max(best, value)
    assert saved(groups) - cost * sum(group.trunk > 0 for group in groups) == best
    assert sorted(tuple(item.context) for group in groups for item in group.items) == sorted(contexts)
    for group in groups:
        rows = rows_of(group, capacity=12)
        assert sum(len(row.items) for row in rows) == len(group.items)
        assert all(row.length == sum(item.length(group.trunk) for item in row.items) <= 12 for row in rows)


def test_a_damaged_line_of_scores_is_computed_again(tmp_path):
    path, pairs = tmp_path / "scores.jsonl", [Pair((1,), (2,)), Pair((1,), (3,))]
    ScoreLog(path, identity={}).add(pairs, [Score(-1.0, True), Score(-2.0, False)])
    first, second = path.read_bytes().splitlines()
    path.write_bytes(first[:20] + b"\xff\n" + second + b"\n[1]\n5\n")
    log = ScoreLog(path, identity={})
    assert [log.known(pair) for pair in pairs] == [None, Score(-2.0, False)]
