"""Preference losses against their formulas, packed against alone, cached and live references, and the first step."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from llama_pair import our_logits
from packed_chats import (
    CONFIG,
    all_rows,
    assert_close,
    loss_and_gradient,
    packed,
    pair_samples,
    params,
    step_on,
    used_rows,
)
from small_chats import sentencepiece_tokenizer

from allam_jax.alignment.preference_loss import REFERENCE, Preference, Sides, pair_losses
from allam_jax.alignment.preference_scores import preference_scores, preference_watcher, tell_length_bias
from allam_jax.alignment.reference_cache import cached_reference, live_reference, reference_values
from allam_jax.alignment.settings import PREFERENCE_LOSSES, DpoSettings
from allam_jax.model.llama_config import ComputeOptions
from allam_jax.parallel.mesh import make_mesh
from allam_jax.training.objective import unchanged

SETTINGS = {
    "sigmoid": DpoSettings(beta=0.3, label_smoothing=0.1),
    "sigmoid_norm": DpoSettings(loss="sigmoid_norm", beta=5.0),
    "ipo": DpoSettings(loss="ipo", beta=0.5),
    "robust": DpoSettings(loss="robust", beta=0.3, label_smoothing=0.2),
    "simpo": DpoSettings(loss="simpo", beta=2.0, simpo_gamma=1.0, label_smoothing=0.1),
}


def one_device():
    return make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:1])


def objective(settings=None, *, most_pairs=8, options=None):
    options = options or ComputeOptions()
    return Preference(
        model=CONFIG, options=options, settings=settings or DpoSettings(), most_pairs=most_pairs, num_chunks=2
    )


def reference_params():
    return jax.tree.map(lambda p: p * 0.9, params())


def with_reference(rows, *, of=None):
    """The rows with the log-probabilities of a reference, by default `reference_params`, computed once."""
    of = reference_params() if of is None else of
    values = reference_values(of, objective=objective(), rows=rows, mesh=one_device(), batch_size=2)
    assert np.isfinite(values).all()
    ends = np.cumsum(rows.samples.lengths - 1)
    columns = {REFERENCE: lambda number: values[ends[number] - rows.samples.lengths[number] + 1 : ends[number]]}
    return dataclasses.replace(rows, columns=columns)


def by_hand(samples, settings):
    """The mean loss and metrics, pair by pair, in float64 from plain log-softmaxes of each side alone."""
    totals = {}
    for pair in range(len(samples) // 2):
        policy, reference, count = {}, {}, {}
        for name, number in (("chosen", 2 * pair), ("rejected", 2 * pair + 1)):
            sample = samples[number]
            learned = sample.turns[1:] > 0
            count[name] = learned.sum()
            for found, parameters in ((policy, params()), (reference, reference_params())):
                found[name] = plain_logp(parameters, sample.ids)[learned].sum()
        loss, chosen, rejected = formula(policy, reference, count, settings)
        values = {
            "loss": loss,
            "reward_chosen": chosen,
            "reward_rejected": rejected,
            "margin": chosen - rejected,
            "accuracy": chosen > rejected,
            "logp_chosen": policy["chosen"],
            "tokens_rejected": count["rejected"],
        }
        totals = {name: totals.get(name, 0) + float(value) for name, value in values.items()}
    return {name: value / (len(samples) // 2) for name, value in totals.items()}


def plain_logp(parameters, ids):
    padded = np.zeros((1, 200), np.int32)  # of one length, so that it compiles once
    padded[0, : len(ids)] = ids
    logits = np.asarray(our_logits(parameters, jnp.asarray(padded), config=CONFIG), np.float64)[0]
    logits = logits[: len(ids) - 1, : CONFIG.vocab_size]
    logits -= logits.max(axis=1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logp[np.arange(len(ids) - 1), ids[1:]]


def formula(policy, reference, count, settings):
    """From the papers: the loss of a pair and the rewards of its sides."""
    summed = {side: policy[side] - (0 if settings.loss == "simpo" else reference[side]) for side in policy}
    per_token = settings.loss in ("sigmoid_norm", "ipo", "simpo")
    ratio = {side: summed[side] / (count[side] if per_token else 1) for side in summed}
    h, beta, e = ratio["chosen"] - ratio["rejected"], settings.beta, settings.label_smoothing

    def minus_log_sigmoid(x):
        return math.log1p(math.exp(-x))

    if settings.loss == "ipo":
        loss = (h - 1 / (2 * beta)) ** 2
    elif settings.loss == "robust":
        loss = ((1 - e) * minus_log_sigmoid(beta * h) - e * minus_log_sigmoid(-beta * h)) / (1 - 2 * e)
    else:
        z = beta * h - (settings.simpo_gamma if settings.loss == "simpo" else 0)
        loss = (1 - e) * minus_log_sigmoid(z) + e * minus_log_sigmoid(-z)
    loss += settings.nll_weight * -policy["chosen"] / count["chosen"]
    reward = ratio if settings.loss == "simpo" else summed
    return loss, beta * reward["chosen"], beta * reward["rejected"]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("nll_weight", [0.0, 0.4])
def test_every_loss_is_its_formula(name, nll_weight):
    settings = dataclasses.replace(SETTINGS[name], nll_weight=nll_weight)
    rng = np.random.default_rng(0)
    drawn = [rng.uniform(-9, -1, (3, 2)) for _ in range(4)] + [rng.integers(1, 9, (3, 2)) for _ in range(2)]
    policy, reference, tokens = (Sides(*map(jnp.float32, drawn[place : place + 2])) for place in (0, 2, 4))
    ratios = policy if name == "simpo" else Sides(*(p - r for p, r in zip(policy, reference, strict=True)))
    losses_BP, rewards = pair_losses(policy=policy, ratios=ratios, tokens=tokens, settings=settings)
    for place in np.ndindex(3, 2):
        by_side = [
            {side: values[place] for side, values in zip(("chosen", "rejected"), drawn[first : first + 2], strict=True)}
            for first in (0, 2, 4)
        ]
        loss, chosen, rejected = formula(*by_side, settings)
        found = losses_BP[place], rewards.chosen[place], rewards.rejected[place]
        np.testing.assert_allclose(found, (loss, chosen, rejected), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sigmoid", pytest.param("ipo", marks=pytest.mark.long)])
def test_the_loss_of_packed_pairs_is_that_of_every_pair_alone(tmp_path, name):
    rows = with_reference(packed(pair_samples(tmp_path / "pairs"), together=2))
    together, alone = (all_rows(dataclasses.replace(rows, packed=packs)) for packs in (True, False))
    assert used_rows(together) < used_rows(alone) == len(rows.items)
    loss, metrics, gradient = loss_and_gradient(objective(SETTINGS[name]), together)
    for key, value in by_hand(rows.samples, SETTINGS[name]).items():
        np.testing.assert_allclose(metrics[key], value, rtol=2e-5, err_msg=key)
    expected_loss, _, expected = loss_and_gradient(objective(SETTINGS[name]), alone)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    assert_close(gradient, expected)


def test_all_losses_are_tested():
    assert set(SETTINGS) == set(PREFERENCE_LOSSES)


@pytest.mark.long
def test_uneven_numbers_of_pairs_give_the_same_step_accumulated_and_on_eight_devices(tmp_path):
    rows = with_reference(packed(pair_samples(tmp_path / "pairs", repeats=2), together=2))
    batch = all_rows(rows)  # some rows have several pairs, some one, and some none
    loss, gradient = step_on(objective(SETTINGS["sigmoid"]), batch, sizes=(1, 1, 1), accumulation=1)
    for sizes, accumulation in (((1, 1, 1), 4), ((2, 2, 2), 1)):
        other_loss, other = step_on(objective(SETTINGS["sigmoid"]), batch, sizes=sizes, accumulation=accumulation)
        np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
        assert_close(other, gradient, rtol=5e-5)


@pytest.mark.slow
def test_the_first_step_has_margin_zero_and_loss_ln_2(tmp_path):
    rows = packed(pair_samples(tmp_path / "pairs"), together=2)
    batch = {name: jnp.asarray(values) for name, values in all_rows(rows).items()}
    own = objective(DpoSettings(reference="live"))
    live = live_reference(jax.tree.map(jnp.copy, params()), objective=own, mesh=one_device())(params(), batch)
    loss, metrics, gradient = loss_and_gradient(own, live)
    assert float(metrics["margin"]) == float(metrics["kl"]) == float(metrics["change_chosen"]) == 0.0
    assert loss == np.float32(math.log(2))
    _, cached, same = loss_and_gradient(objective(), all_rows(with_reference(rows, of=params())))
    assert abs(float(cached["margin"])) < 1e-5 * abs(float(cached["logp_chosen"]))
    assert_close(gradient, same)


def test_the_reference_has_no_dropout(tmp_path):
    rows = packed(pair_samples(tmp_path / "pairs"), together=2)
    given = {"rows": rows, "mesh": one_device(), "batch_size": 2}
    plain = reference_values(params(), objective=objective(), **given)
    dropped = reference_values(
        params(), objective=objective(options=ComputeOptions(dropout_residual=0.5, dropout_attention=0.5)), **given
    )
    np.testing.assert_array_equal(plain, dropped)


def test_a_cached_reference_belongs_to_its_weights_and_samples(tmp_path):
    samples = pair_samples(tmp_path / "pairs")
    rows = packed(samples, together=2)
    calls = []

    def compute():
        calls.append(1)
        return reference_values(params(), objective=objective(), rows=rows, mesh=one_device(), batch_size=2)

    for weights, expected in (("a", 1), ("a", 1), ("b", 2), ("a", 2)):
        column = cached_reference(
            tmp_path / "reference", identity={"weights": weights}, samples=samples, compute=compute
        )
        assert len(calls) == expected
    for number in range(len(samples)):
        np.testing.assert_allclose(column(number), plain_logp(params(), samples[number].ids), rtol=1e-4, atol=1e-4)
    for file in (tmp_path / "reference").rglob("*.npy"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    cached_reference(tmp_path / "reference", identity={"weights": "a"}, samples=samples, compute=compute)
    assert len(calls) == 3


def test_scores_of_held_out_pairs_are_means_over_pairs_whatever_the_batch(tmp_path):
    rows = with_reference(packed(pair_samples(tmp_path / "pairs", repeats=2), together=2))
    expected = by_hand(rows.samples, SETTINGS["sigmoid"])
    given = {"prepare": unchanged, "mesh": one_device(), "batch_size": 2}
    scores = preference_scores(rows, objective=objective(SETTINGS["sigmoid"]), **given)(params())["held_out"]
    for key, value in expected.items():
        np.testing.assert_allclose(scores[key], value, rtol=2e-5)


def test_a_collapse_and_a_long_way_from_the_reference_are_told(caplog):
    watch = preference_watcher(DpoSettings(collapse_nats=0.5, max_kl=2.0))
    watch({"step": 1, "loss": 0.6, "change_chosen": -0.4, "kl": 0.1})
    assert not caplog.records
    for step in (2, 3):
        watch({"step": step, "loss": 0.1, "change_chosen": -0.6, "kl": 1.0})
    assert [record.message.partition(" against")[0] for record in caplog.records] == [
        "step 2: the chosen answers have lost 0.60 nats per token"
    ]
    assert watch({"step": 4, "kl": 2.5}) == "kl was 2.5 nats per token at step 4, above dpo.max_kl = 2"


def test_longer_chosen_answers_are_told(tmp_path, caplog):
    rows = packed(pair_samples(tmp_path / "pairs"), together=2)
    assert tell_length_bias(rows) < 1.25
    assert not caplog.records
    swapped = dataclasses.replace(rows, items=rows.items[2:3, ::-1])
    assert tell_length_bias(swapped) > 1.25
    assert "chosen answers are" in caplog.text


def test_a_token_in_both_branches_is_masked_in_both(tmp_path):
    samples = pair_samples(tmp_path / "pairs")
    for number in range(len(samples)):
        text = sentencepiece_tokenizer().decode(samples[number].ids[samples[number].turns > 0].tolist())
        assert text.endswith("<|im_end|>")
        assert "capital" not in text
        assert "عاصمة" not in text
