"""Packed conversations: the loss is that of each alone, and what augmentation and averages mean for the gradient."""

import json

import jax
import numpy as np
import pytest
from packed_chats import (
    CONFIG,
    all_rows,
    assert_close,
    chats,
    loss_and_gradient,
    next_token,
    packed,
    params,
    samples_of,
    step_on,
    used_rows,
    written,
)
from small_chats import masker, messages

from allam_jax.alignment.packed_samples import PackedSamples
from allam_jax.alignment.reply_losses import reply_losses
from allam_jax.alignment.sample_cache import conversations, open_samples
from allam_jax.checksums import write_listed
from allam_jax.errors import UserError
from allam_jax.evaluation.bits_per_byte import nll_function
from allam_jax.model.llama_config import ComputeOptions
from allam_jax.parallel.mesh import make_mesh


@pytest.mark.slow
@pytest.mark.parametrize("by_sample", [False, True])
def test_the_packed_loss_and_gradient_are_those_of_each_conversation_alone(tmp_path, by_sample):
    samples = samples_of(tmp_path / "all")
    together, alone = (all_rows(packed(samples, packed=packs, by_sample=by_sample)) for packs in (True, False))
    assert together["segment_ids"].max() > 2
    assert used_rows(together) < used_rows(alone) == len(samples)
    loss, _, gradient = loss_and_gradient(next_token(), together)
    expected_loss, _, expected_gradient = loss_and_gradient(next_token(), alone)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    assert_close(gradient, expected_gradient)


@pytest.mark.slow
def test_augmented_samples_together_have_the_gradient_of_one_pass_only_where_tokens_are_averaged(tmp_path):
    def gradient(learned, *, by_sample):
        batch = all_rows(packed(samples_of(tmp_path / learned, learned=learned), by_sample=by_sample))
        assert (batch["segment_ids"] == 0).any()
        return batch, loss_and_gradient(next_token(), batch)[2]

    augmented, one_pass = (gradient(learned, by_sample=False) for learned in ("augmented", "all"))
    assert augmented[0]["loss_weights"].sum() == one_pass[0]["loss_weights"].sum()
    assert_close(augmented[1], one_pass[1])
    augmented, one_pass = (gradient(learned, by_sample=True)[1] for learned in ("augmented", "all"))
    with pytest.raises(AssertionError):  # a conversation of three turns now counts three times
        assert_close(augmented, one_pass, rtol=1e-2)


def test_the_average_over_samples_weighs_every_sample_alike(tmp_path):
    batch = all_rows(packed(samples_of(tmp_path / "all"), by_sample=True))
    for weights_T, segments_T in zip(batch["loss_weights"], batch["segment_ids"], strict=True):
        for segment in range(1, segments_T.max() + 1):
            np.testing.assert_allclose(weights_T[segments_T == segment].sum(), 1, rtol=1e-6)


@pytest.mark.long
def test_uneven_weights_give_the_same_step_accumulated_and_on_eight_devices(tmp_path):
    rows = packed(samples_of(tmp_path / "last", learned="last", count=16), packed=False)
    batch = all_rows(rows)
    learned = np.sum(batch["loss_weights"], axis=1)
    assert learned.max() > 3 * learned.min()
    loss, gradient = step_on(next_token(), batch, sizes=(1, 1, 1), accumulation=1)
    for sizes, accumulation in (((1, 1, 1), 4), ((2, 2, 2), 1)):
        other_loss, other = step_on(next_token(), batch, sizes=sizes, accumulation=accumulation)
        np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
        assert_close(other, gradient, rtol=2e-5)


def loader(samples, *, local_rows=range(4), seed=0):
    return PackedSamples(packed(samples), batch_size=4, seed=seed, local_rows=local_rows)


def test_batches_resume_anywhere_and_do_not_depend_on_the_number_of_processes(tmp_path):
    samples = samples_of(tmp_path / "all", count=40)
    whole = loader(samples)
    assert whole.steps_of(3) >= 6
    batches, states = [], []
    for _ in range(whole.steps_of(3)):
        states.append(json.loads(json.dumps(whole.get_state())))
        batches.append(next(whole))
    for step in (0, 3, len(states) - 1):
        resumed = loader(samples)
        resumed.set_state(states[step])
        for name, values in next(resumed).items():
            assert values.tobytes() == batches[step][name].tobytes()
    halves = [loader(samples, local_rows=rows) for rows in (range(2), range(2, 4))]
    for batch in batches[:4]:
        joined = [next(half) for half in halves]
        np.testing.assert_array_equal(np.concatenate([half["tokens"] for half in joined]), batch["tokens"])
    with pytest.raises(UserError, match="of another seed"):
        loader(samples, seed=1).set_state(states[0])


def test_every_epoch_shows_every_sample_once_and_whole(tmp_path):
    samples = samples_of(tmp_path / "all", count=20)
    rows = packed(samples)
    wanted = sorted(samples[number].ids.tobytes() for number in range(len(samples)))
    batches = PackedSamples(rows, batch_size=1, seed=3, local_rows=range(1))
    for _ in range(2):
        found = []
        for _ in range(batches.rows_of_an_epoch):
            row = {name: values[0] for name, values in next(batches).items()}
            for segment in range(1, row["segment_ids"].max() + 1):
                place = row["segment_ids"] == segment
                found.append(np.append(row["tokens"][place], row["targets"][place][-1]).astype(np.int32).tobytes())
                assert row["positions"][place].tolist() == list(range(place.sum()))
        assert sorted(found) == wanted


def test_bad_rows_are_counted_and_too_many_end_the_run(tmp_path):
    records = [{"messages": list(messages(turns))} for turns in chats(30)]
    records[3]["messages"][-1]["content"] = " "
    records[7] = {"messages": records[7]["messages"][:1]}
    make = conversations(masker(seq_len=100), learned="all")
    samples = written(tmp_path / "some", records, make=make, max_bad_share=0.1)
    report = samples.report["chats"]
    assert (report["rows"], report["bad_rows"]) == (30, {"empty content": 1, "no reply": 1})
    assert report["samples"] + sum(report["left_out"].values()) == 28
    assert set(report["left_out"]) <= {"longer than a row"}
    with pytest.raises(UserError, match="2 of 30 rows cannot be used .*empty content.*; mend them"):
        written(tmp_path / "none", records, make=make, max_bad_share=0.05)
    assert not (tmp_path / "none").exists()


def test_samples_are_written_once_and_again_if_they_are_damaged(tmp_path):
    samples_of(tmp_path / "all")
    before = (tmp_path / "all" / "samples.json").stat().st_mtime_ns
    samples_of(tmp_path / "all")
    assert (tmp_path / "all" / "samples.json").stat().st_mtime_ns == before
    tokens = tmp_path / "all" / "tokens.bin"
    content = bytearray(tokens.read_bytes())
    content[11] ^= 1
    tokens.write_bytes(content)
    assert samples_of(tmp_path / "all")[0].ids.tolist() == samples_of(tmp_path / "new")[0].ids.tolist()
    write_listed(tmp_path / "new", {"index.npy": b"\x93NUMPY"})  # as an older version, or another, may have done
    with pytest.raises(UserError, match="index.npy: not readable .*; remove the directory"):
        open_samples(tmp_path / "new")
    (tmp_path / "all" / "turns.bin").unlink()
    with pytest.raises(UserError, match=r"turns.bin: is missing; remove the directory"):
        open_samples(tmp_path / "all")


def test_a_conversation_is_held_out_with_all_its_samples(tmp_path):
    samples = samples_of(tmp_path / "all", learned="augmented", held_out_share=0.5, count=40)
    again = samples_of(tmp_path / "again", learned="augmented", held_out_share=0.5, count=40)
    assert samples.held_out.tolist() == again.held_out.tolist()
    sides = {}
    for number in range(len(samples)):
        sides.setdefault(bytes(samples[number].ids[:12]), set()).add(bool(samples.held_out[number]))
    assert 0.2 < np.mean(samples.held_out) < 0.8


def test_held_out_losses_by_turn_are_means_over_the_tokens_of_a_turn(tmp_path):
    samples = samples_of(tmp_path / "all")
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:1])
    given = {"config": CONFIG, "options": ComputeOptions(), "mesh": mesh, "batch_size": 2}
    scores = reply_losses(packed(samples), languages=["ar"], **given)(params())
    alone = packed(samples, packed=False)
    order = alone.fitted().rows(np.random.default_rng(0)).items
    (nll_BT,) = jax.jit(nll_function(config=CONFIG, options=ComputeOptions()))(params(), all_rows(alone))
    nats, tokens = {}, {}
    for number, nll_T in zip(order, np.asarray(nll_BT, np.float64), strict=False):
        for turn, nll in zip(samples[int(number)].turns[1:], nll_T, strict=False):
            if turn:
                nats[turn], tokens[turn] = nats.get(turn, 0) + nll, tokens.get(turn, 0) + 1
    assert set(tokens) == {1, 2, 3}
    for turn, count in tokens.items():
        np.testing.assert_allclose(scores[f"ar_turn{turn}"]["loss"], nats[turn] / count, rtol=1e-5)
    np.testing.assert_allclose(scores["ar"]["loss"], sum(nats.values()) / sum(tokens.values()), rtol=1e-5)
