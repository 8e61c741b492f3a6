"""Mixtures that change at a step: where the change falls, and that nothing else can move it."""

import hashlib
import json
from fractions import Fraction

import numpy as np
import pytest
from small_corpus import assert_same, load, take

from allam_jax.data.batch import DTYPES
from allam_jax.data.phases import make_phases, phase_at
from allam_jax.data.settings import PhaseSettings
from allam_jax.errors import UserError

SWITCH, LATER = 7, 19
PHASES = {
    "last": {"from_step": LATER, "weights": {"code": 1.0}},
    "middle": {"from_step": SWITCH, "weights": {"ar": 3.0, "en": 1.0}},
}


@pytest.fixture
def make(datasets, tokenizer):
    loaders = []

    def make_one(*, weights=None, **options):
        weights = weights or {"en": 0.5, "ar": 0.5, "code": 0}
        sources = {name: {"path": datasets / name, "weight": weight} for name, weight in weights.items()}
        defaults = {"tokenizer": tokenizer, "seq_len": 32, "batch_size": 8, "seed": 5, "phases": PHASES}
        loader = load(sources=sources, **{**defaults, **options})
        loaders.append(loader)
        return loader

    yield make_one
    for loader in loaders:
        loader.close()


def shares(batches):
    sources = np.concatenate([batch["source_ids"][:, 0] for batch in batches])
    return np.bincount(sources, minlength=3) / len(sources)


@pytest.mark.parametrize("lanes", [1, 2, 8])
def test_the_mixture_changes_with_the_first_batch_after_the_step(make, lanes):
    batches = take(make(lanes=lanes), 30)
    plain = take(make(lanes=lanes, phases=None), 30)
    assert_same(batches[:SWITCH], plain[:SWITCH])
    before, middle, last = batches[:SWITCH], batches[SWITCH:LATER], batches[LATER:]
    assert np.abs(shares(before) - [0.5, 0.5, 0]).max() < 4 * lanes / (8 * len(before))
    assert np.abs(shares(middle) - [0.25, 0.75, 0]).max() < 4 * lanes / (8 * len(middle))
    assert shares(last).tolist() == [0, 0, 1]
    # Row by row, by the rule written out: the n-th row of a lane takes the mixture of its batch, and n goes on.
    for step, batch in enumerate(batches):
        weights = [0.5, 0.5, 0] if step < SWITCH else [0.25, 0.75, 0] if step < LATER else [0, 0, 1]
        for row in range(8):
            lane, within = divmod(row, 8 // lanes)
            assert batch["source_ids"][row, 0] == expected_source(step * (8 // lanes) + within, lane, weights)


def expected_source(n, lane, weights):
    """The Kronecker sequence of mixture.py's heading, in exact arithmetic."""
    offset = int.from_bytes(hashlib.blake2b(b"5:mixture", digest_size=8).digest())
    golden, sqrt2 = 11400714819323198485, 7640891576956012809  # 2^64 / golden ratio; 2^64 * (sqrt(2) - 1)
    point = Fraction((n * golden + lane * sqrt2 + offset) % 2**64, 2**64)
    total = Fraction(0)
    for source, weight in enumerate(weights):
        total += Fraction(weight)
        if point < total:
            return source
    raise AssertionError(n)


@pytest.mark.parametrize("prefetch", [0, 3])
def test_a_resumed_loader_switches_at_the_same_step(make, prefetch):
    loader = make(prefetch=prefetch)
    states, batches = [], []
    for _ in range(25):
        states.append(json.dumps(loader.get_state()))
        batches.append(next(loader))
    for step in (0, SWITCH - 1, SWITCH, SWITCH + 1, LATER - 1, LATER, LATER + 1):
        fresh = make(prefetch=prefetch)
        fresh.set_state(json.loads(states[step]))
        assert json.dumps(fresh.get_state()) == states[step]
        assert_same(take(fresh, 25 - step), batches[step:])


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_any_number_of_processes_switches_together(make, processes):
    whole = take(make(), 25)
    parts = [take(make(process_index=p, process_count=processes, prefetch=0), 25) for p in range(processes)]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in DTYPES} for step in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


def test_phases_go_by_the_step_that_is_set_and_not_by_the_rows_drawn(make):
    """A branch may take the data's position and count its own steps, or the other way round."""
    loader = make(lanes=1)
    take(loader, 3)
    state = loader.get_state()
    assert state["step"] == 3
    loader.set_step(LATER)
    assert loader.get_state() == {**state, "step": LATER}
    assert shares(take(loader, 2)).tolist() == [0, 0, 1]
    # A state from before there were phases begins with the first one.
    old = {key: value for key, value in state.items() if key != "step"}
    resumed, reference = make(lanes=1), make(lanes=1)
    resumed.set_state(old)
    reference.set_state(state)
    reference.set_step(0)
    assert_same(take(resumed, 12), take(reference, 12))


def test_without_phases_the_stream_and_what_is_logged_are_those_of_one_mixture(make):
    assert make(phases={}).mixture_at(0) == make(phases=None).mixture_at(10**9) == {}
    weights = {"en": 0.25, "ar": 0.75, "code": 0}
    only = {"only": {"from_step": 1, "weights": weights}}
    assert_same(take(make(weights=weights, phases=only), 9), take(make(weights=weights, phases=None), 9))


def test_what_is_logged_is_the_mixture_of_the_step(make):
    loader = make()
    start = {"phase": 0, "mixture/en": 0.5, "mixture/ar": 0.5, "mixture/code": 0.0}
    middle = {"phase": 1, "mixture/en": 0.25, "mixture/ar": 0.75, "mixture/code": 0.0}
    last = {"phase": 2, "mixture/en": 0.0, "mixture/ar": 0.0, "mixture/code": 1.0}
    assert [loader.mixture_at(step) for step in (0, SWITCH - 1)] == [start] * 2
    assert [loader.mixture_at(step) for step in (SWITCH, LATER - 1)] == [middle] * 2
    assert loader.mixture_at(LATER) == loader.mixture_at(10**6) == last


def test_every_step_has_the_phase_that_began_last():
    phases = make_phases(
        {"en": 1, "ar": 1, "code": 1}, {name: PhaseSettings(**phase) for name, phase in PHASES.items()}
    )
    assert [phase.name for phase in phases] == ["start", "middle", "last"]
    by_hand = [max(i for i, phase in enumerate(phases) if phase.from_step <= step) for step in range(40)]
    assert [phase_at(phases, step) for step in range(40)] == by_hand


@pytest.mark.parametrize(
    ("later", "message"),
    [
        (
            {"mid": {"from_step": 5, "weights": {"englsh": 1}}},
            "data.phases.mid: unknown source 'englsh'; did you mean en",
        ),
        ({"mid": {"from_step": 5, "weights": {}}}, "data.phases.mid: the weights of all sources"),
        ({"mid": {"from_step": 5, "weights": {"english": -1}}}, "data.phases.mid: the weight of source english is -1"),
        (
            {"a": {"from_step": 5, "weights": {"english": 1}}, "b": {"from_step": 5, "weights": {"english": 1}}},
            "a and b both begin at step 5",
        ),
    ],
)
def test_bad_phases(later, message):
    with pytest.raises(UserError, match=message) as error:
        make_phases({"english": 1.0, "arabic": 1.0}, {name: PhaseSettings(**phase) for name, phase in later.items()})
    assert "\n" not in str(error.value)
