"""The loader as a whole: what it yields, that it can be resumed anywhere, and that the number of hosts is invisible."""

import collections
import json
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from small_corpus import BOS, EOS, TEXTS, ByteTokenizer, assert_same, load, take

from allam_jax.data.batch import DTYPES
from allam_jax.errors import UserError

SEQ_LEN = 64


@pytest.fixture
def make(datasets, tokenizer):
    """A loader on the three datasets, with defaults; every loader is closed at the end."""
    loaders = []

    def make_one(**options):
        sources = {
            "en": {"path": datasets / "en", "weight": 0.5},
            "ar": {"path": datasets / "ar", "weight": 0.3},
            "code": {"path": datasets / "code", "weight": 0.2},
        }
        defaults = {"sources": sources, "tokenizer": tokenizer, "seq_len": SEQ_LEN, "batch_size": 8, "seed": 0}
        loader = load(**{**defaults, **options})
        loaders.append(loader)
        return loader

    yield make_one
    for loader in loaders:
        loader.close()


def texts_of_lane(batches, rows, source_id):
    """The documents of a source whose last pair is in these rows, put together again from pairs."""
    tokens, targets = [], []
    for batch in batches:
        for row in rows:
            if batch["source_ids"][row, 0] == source_id:
                tokens += batch["tokens"][row].tolist()
                targets += batch["targets"][row].tolist()
    texts, current = [], []
    for token, target in zip(tokens, targets, strict=True):
        assert (token == BOS) == (not current)
        current.append(target)
        if target == EOS:
            texts.append(bytes(current[:-1]).decode())
            current = []
        else:
            assert token != EOS
    return texts


def test_the_batch_contract(make):
    loader = make()
    assert loader.source_names == ["en", "ar", "code"]
    for batch in take(loader, 20):
        assert {key: array.dtype for key, array in batch.items()} == DTYPES
        assert {array.shape for array in batch.values()} == {(8, SEQ_LEN)}
        assert (batch["source_ids"] == batch["source_ids"][:, :1]).all()
        assert (batch["loss_weights"] == 1).all()
        segments = batch["segment_ids"]
        assert (segments[:, 0] == 1).all()
        steps = np.diff(segments)
        assert set(np.unique(steps)) <= {0, 1}
        expected = np.where(steps == 0, batch["positions"][:, :-1] + 1, 0)
        np.testing.assert_array_equal(batch["positions"][:, 1:], expected)
        # Within a segment the target is the next input.
        same = steps == 0
        np.testing.assert_array_equal(batch["targets"][:, :-1][same], batch["tokens"][:, 1:][same])


@pytest.mark.parametrize("lanes", [1, 2, 8])
def test_no_document_is_lost_or_repeated_within_an_epoch(make, lanes):
    batches = take(make(lanes=lanes), 300)
    lane_rows = 8 // lanes
    for source_id, name in enumerate(("en", "ar", "code")):
        streams = [
            texts_of_lane(batches, range(lane * lane_rows, (lane + 1) * lane_rows), source_id) for lane in range(lanes)
        ]
        # Document k of lane l is number l + k * lanes of the source's order.
        count = len(TEXTS[name])
        reached = min(len(stream) * lanes for stream in streams)
        epochs = reached // count
        assert epochs >= 2
        order = [streams[number % lanes][number // lanes] for number in range(epochs * count)]
        for epoch in range(epochs):
            assert sorted(order[epoch * count : (epoch + 1) * count]) == sorted(TEXTS[name])
        assert order[:count] != TEXTS[name]
        if count > 10:
            assert order[:count] != order[count : 2 * count]


def test_tokens_have_the_shares_of_the_weights(make):
    batches = take(make(), 250)
    tokens = collections.Counter(np.concatenate([batch["source_ids"].ravel() for batch in batches]).tolist())
    total = 250 * 8 * SEQ_LEN
    for source_id, share in enumerate((0.5, 0.3, 0.2)):
        assert abs(tokens[source_id] / total - share) < 0.005


def test_the_order_is_a_function_of_the_seed(make):
    assert_same(take(make(seed=7), 20), take(make(seed=7), 20))
    assert any(
        (a["tokens"] != b["tokens"]).any() for a, b in zip(take(make(seed=7), 3), take(make(seed=8), 3), strict=True)
    )


def test_other_weights_or_sources_leave_a_sources_order_alone(make, datasets):
    alone = make(sources={"ar": {"path": datasets / "ar"}}, lanes=1)
    mixed = make(lanes=1)
    first = texts_of_lane(take(alone, 30), range(8), 0)
    second = texts_of_lane(take(mixed, 60), range(8), 1)
    shorter = min(len(first), len(second))
    assert shorter > 40
    assert first[:shorter] == second[:shorter]


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_resume_at_every_step(make, prefetch):
    loader = make(prefetch=prefetch)
    states, batches = [], []
    for _ in range(15):
        states.append(json.dumps(loader.get_state()))
        batches.append(next(loader))
    fresh = make(prefetch=prefetch)
    for index, state in reversed(list(enumerate(states))):  # also: back in time, in a loader that was already used
        fresh.set_state(json.loads(state))
        assert json.dumps(fresh.get_state()) == state
        assert_same(take(fresh, 15 - index), batches[index:])
    assert len(states[-1]) < 4000


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
def test_any_number_of_processes_builds_the_same_batches(make, lanes):
    whole = take(make(lanes=lanes), 12)
    for processes in (2, 4, 8):
        loaders = [make(lanes=lanes, process_index=p, process_count=processes, prefetch=0) for p in range(processes)]
        joined = [
            {key: np.concatenate([part[key] for part in parts]) for key in DTYPES}
            for parts in zip(*(take(loader, 12) for loader in loaders), strict=True)
        ]
        assert_same(joined, whole)


def test_resume_on_another_number_of_processes(make):
    whole = take(make(), 20)
    four = [make(process_index=p, process_count=4) for p in range(4)]
    for loader in four:
        take(loader, 10)
    states = [json.loads(json.dumps(loader.get_state())) for loader in four]
    assert [list(state["lanes"]) for state in states] == [["0", "1"], ["2", "3"], ["4", "5"], ["6", "7"]]
    lanes = {lane: position for part in reversed(states) for lane, position in part["lanes"].items()}
    assert all({**part, "lanes": None} == {**states[0], "lanes": None} for part in states)
    state = {**states[0], "lanes": lanes}
    for processes in (1, 2, 8):
        parts = []
        for p in range(processes):
            loader = make(process_index=p, process_count=processes)
            loader.set_state(state)
            parts.append(take(loader, 10))
        joined = [{k: np.concatenate([part[k] for part in step]) for k in DTYPES} for step in zip(*parts, strict=True)]
        assert_same(joined, whole[10:])
    with pytest.raises(UserError, match="no lane 2, only 0, 1"):
        make().set_state(states[0])


def test_the_mixture_may_change_at_a_saved_state(make, datasets):
    loader = make(lanes=1)
    before = take(loader, 20)
    changed = make(
        sources={"ar": {"path": datasets / "ar", "weight": 3}, "new": {"path": datasets / "split", "weight": 1}},
        lanes=1,
    )
    changed.set_state(loader.get_state())
    after = take(changed, 40)
    shares = np.concatenate([batch["source_ids"][:, 0] for batch in after])
    assert abs((shares == 0).mean() - 0.75) < 0.02
    # The Arabic goes on where it was, across the change.
    for batch in before:
        batch["source_ids"][:] = np.where(batch["source_ids"] == 1, 0, 9)
    texts = texts_of_lane(before + after, range(8), 0)
    count = len(TEXTS["ar"])
    assert len(texts) > count
    assert sorted(texts[:count]) == sorted(TEXTS["ar"])


def test_a_state_of_something_else_is_refused(make, datasets, tmp_path):
    state = make().get_state()

    class OtherTokenizer(ByteTokenizer):
        fingerprint = "other"

    for options, message in (
        ({"tokenizer": OtherTokenizer()}, "its tokenizer is 'bytes', but this run's is 'other'"),
        ({"seed": 1}, "its seed is 0, but this run's is 1"),
        ({"lanes": 4}, "its number_of_lanes is 8, but this run's is 4"),
    ):
        with pytest.raises(UserError, match=message):
            make(**options).set_state(state)
    other = {"en": {"path": datasets / "split"}}
    with pytest.raises(UserError, match="the content of source en has changed"):
        make(sources=other).set_state(state)


def test_epochs_count_finished_documents(make):
    loader = make(lanes=1)
    assert loader.epochs() == {"en": 0.0, "ar": 0.0, "code": 0.0}
    batches = take(loader, 100)
    for source_id, (name, epochs) in enumerate(loader.epochs().items()):
        assert epochs == len(texts_of_lane(batches, range(8), source_id)) / len(TEXTS[name]) > 1


def test_bad_arguments(make, datasets):
    en = datasets / "en"
    for options, message in (
        ({"lanes": 3}, "batch_size 8 cannot be divided by lanes 3"),
        ({"process_count": 5}, "batch_size 8 cannot be divided by process_count 5"),
        ({"sources": {}}, "no sources"),
        ({"sources": {"a": {"path": en, "weight": 0}}}, "are 0"),
        ({"sources": {"a": {"path": ""}}}, "source a has no path"),
        ({"sources": {"a": {"path": en / "nothing"}}}, "no dataset here"),
        ({"sources": {"a": {"path": en, "split": "trian"}}}, "no split 'trian'; did you mean train"),
    ):
        with pytest.raises(UserError, match=message) as error:
            make(**options)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_damaged_record_reaches_the_caller_as_a_user_error(make, datasets, tmp_path, prefetch):
    directory = shutil.copytree(datasets / "en", tmp_path / "en")
    shard = sorted(directory.glob("*.array_record*"))[0]
    content = bytearray(shard.read_bytes())
    content[300] ^= 0xFF
    shard.write_bytes(content)
    loader = make(sources={"en": {"path": directory}}, prefetch=prefetch)
    with pytest.raises(UserError, match=f"{shard.name}: damaged record"):
        take(loader, 100)


def test_close_stops_the_thread(make):
    before = threading.active_count()
    loader = make(prefetch=2)
    next(loader)
    assert threading.active_count() == before + 1
    loader.close()
    loader.close()
    assert threading.active_count() == before
    with pytest.raises(ValueError, match="the loader is closed"):
        next(loader)


def test_a_program_that_forgets_to_close_ends_quietly(datasets):
    program = (
        "import sys\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from small_corpus import ByteTokenizer, load\n"
        "sources = {'en': {'path': sys.argv[1]}}\n"
        "loader = load(sources=sources, tokenizer=ByteTokenizer(), seq_len=8, batch_size=2, seed=0)\n"
        "next(loader)\n"
    )
    here, root = sys.modules[__name__].__file__.rsplit("/", 1)[0], __file__.rsplit("/tests/", 1)[0]
    start = time.monotonic()
    command = [sys.executable, "-c", program, str(datasets / "en"), here]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=root)
    assert (result.returncode, result.stderr) == (0, "")
    assert time.monotonic() - start < 60
