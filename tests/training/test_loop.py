"""The loop with a session put together by hand: evaluations at their own intervals, and a trace of some steps."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from allam_jax.checksums import hash_bytes
from allam_jax.data.batch import DTYPES
from allam_jax.parallel.mesh import make_mesh
from allam_jax.settings import Settings
from allam_jax.training.checkpoints import Checkpointer
from allam_jax.training.loop import Evaluation, run_loop
from allam_jax.training.metrics import TIMING_KEYS, MetricsWriter
from allam_jax.training.objective import unchanged
from allam_jax.training.progress import peak_memory
from allam_jax.training.run_report import training_result
from allam_jax.training.session import Session, TokenCounts
from allam_jax.training.settings import CheckpointSettings, GuardSettings, MetricsSettings, TrainSettings
from allam_jax.training.state import random_params, start_state
from allam_jax.training.step import lost_updates
from allam_jax.training.stored_checkpoints import list_steps, read_metadata, step_path
from tests.planning.small_runs import small_run
from tests.small_models import SMALL

STEPS = 6


class Batches:
    """Random batches of one source."""

    def __init__(self, run):
        self._run, self._rng = run, np.random.default_rng(0)

    def __next__(self):
        shape = (self._run.batch_size, self._run.seq_len)
        tokens = self._rng.integers(0, self._run.model.vocab_size, shape, dtype=np.int32)
        batch = {key: np.zeros(shape, dtype) for key, dtype in DTYPES.items()}
        ones = {"segment_ids": np.ones(shape, np.int32), "loss_weights": np.ones(shape, np.float32)}
        return batch | ones | {"tokens": tokens, "targets": tokens}

    def mixture_at(self, step):
        return {}

    def epochs(self):
        return {}

    def get_state(self):
        return {}


def train(workdir, *, evaluations=(), watchers=(), peak_flops=0.0, save=0, trace=()):
    """Six steps of a small run; gives the rows of its metrics.jsonl."""
    run = small_run(data=1, fsdp=1, tensor=1)
    mesh = make_mesh({}, devices=jax.devices()[:1])
    abstract = run.abstract_state(mesh)
    params = random_params(abstract.params, config=run.model, seed=0)
    with contextlib.ExitStack() as stack:
        session = Session(
            workdir=workdir,
            run=run,
            mesh=mesh,
            state=start_state(params, abstract=abstract, optimizer=run.optimizer, seed=0),
            loader=Batches(run),
            checkpointer=stack.enter_context(Checkpointer(workdir / "checkpoints", CheckpointSettings(keep_last=3))),
            writer=stack.enter_context(MetricsWriter(workdir, MetricsSettings(tensorboard=False))),
            metadata={"parent": None},
            tokens=TokenCounts({"en": 5}),
            prepare=unchanged,
        )
        run_loop(
            session,
            Settings(
                train=TrainSettings(steps=STEPS),
                checkpoint=CheckpointSettings(every=save),
                metrics=MetricsSettings(profile_steps=trace),
                guard=GuardSettings(max_in_a_row=0),
            ),
            train_step=run.make_step(mesh),
            evaluations=evaluations,
            watchers=watchers,
            peak_flops=peak_flops,
        )
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_timing(rows):
    return [{key: value for key, value in row.items() if key not in TIMING_KEYS} for row in rows]


def seen_in(rows, key):
    return [(row["step"], row[key]) for row in rows if key in row]


def test_each_evaluation_has_its_interval_and_its_keys(tmp_path):
    calls = []

    def scores(params):
        calls.append(float(np.sum(jax.device_get(params["embedding"]["table"]))))
        return {"ar": {"bits_per_byte": len(calls), "other": -len(calls)}, "en": {"bits_per_byte": 0.5}}

    suites = [
        Evaluation(suite="held_out", every=4, scores=scores),
        Evaluation(suite="exams", every=3, scores=lambda params: {"ar": {"bits_per_byte": 9.0}}),
        Evaluation(suite="at_the_end", every=0, scores=lambda params: {"ar": {"accuracy": 1.0}}),
    ]
    rows = train(tmp_path, evaluations=suites)
    assert seen_in(rows, "eval/held_out/ar/bits_per_byte") == [(0, 1), (4, 2), (6, 3)]
    assert seen_in(rows, "eval/held_out/ar/other") == [(0, -1), (4, -2), (6, -3)]
    assert seen_in(rows, "eval/exams/ar/bits_per_byte") == [(0, 9.0), (3, 9.0), (6, 9.0)]
    assert seen_in(rows, "eval/at_the_end/ar/accuracy") == [(6, 1.0)]
    assert len(set(calls)) == 3, "each time with the parameters of that step"
    result = training_result(tmp_path)
    assert result["bits_per_byte"] == [{"step": s, "ar": n, "en": 0.5} for n, s in enumerate((0, 4, 6), start=1)]
    assert result["evaluations"] == {
        "eval/held_out/ar/bits_per_byte": 3,
        "eval/held_out/ar/other": -3,
        "eval/held_out/en/bits_per_byte": 0.5,
        "eval/exams/ar/bits_per_byte": 9.0,
        "eval/at_the_end/ar/accuracy": 1.0,
    }


def test_a_watcher_ends_a_run_which_is_scored_and_saved(tmp_path, caplog):
    suite = Evaluation(suite="held_out", every=0, scores=lambda params: {"ar": {"bits_per_byte": 2.0}})
    rows = train(tmp_path, evaluations=[suite], watchers=[lambda row: "too far" if row["step"] >= 2 else None])
    last = 4  # the row of step 2 is seen two steps later
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, last + 1))
    assert seen_in(rows, "eval/held_out/ar/bits_per_byte") == [(last, 2.0)]
    assert list_steps(tmp_path / "checkpoints") == [last]
    assert f"the run ends at step {last} of {STEPS}, which is saved: too far" in caplog.text


def test_a_checkpoint_knows_the_tokens_of_the_steps_before_it(tmp_path):
    train(tmp_path, save=4)
    assert list_steps(tmp_path / "checkpoints") == [4, 6]
    for step in (4, 6):
        metadata = read_metadata(step_path(tmp_path / "checkpoints", step))
        history = (tmp_path / "metrics.jsonl").read_bytes()[: metadata["metrics"]["bytes"]]
        assert [json.loads(line)["step"] for line in history.splitlines()][-1] == step
        assert metadata.pop("metrics")["xxh3"] == hash_bytes(history)
        assert metadata == {"step": step, "tokens_by_source": {"en": 5 + step * 16 * 8}, "parent": None}


@pytest.fixture(scope="module")
def untraced(tmp_path_factory):
    return train(tmp_path_factory.mktemp("untraced"))


@pytest.mark.parametrize("trace", [(2, 4), (5, 99)], ids=["inside the run", "beyond its end"])
def test_a_trace_of_some_steps_changes_nothing_else(tmp_path, untraced, trace, caplog):
    caplog.set_level("INFO")
    assert without_timing(train(tmp_path, trace=trace)) == without_timing(untraced)
    (file,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert file.stat().st_size > 0
    beyond = trace[1] > STEPS + 1
    assert (f"profile_steps = {trace}: the run ends at step {STEPS} already" in caplog.text) == beyond
    assert f"profile of steps {trace[0]} to {STEPS if beyond else trace[1] - 1}: " in caplog.text


def test_no_trace_unless_asked_for(tmp_path):
    train(tmp_path)
    assert not (tmp_path / "profile").exists()


def test_the_utilisation_is_that_of_all_devices(tmp_path, untraced):
    assert not any("mfu" in row for row in untraced)
    L, D, N, K, H, F, V, T = 3, 32, 8, 4, 6, 48, SMALL.vocab_size, 8
    weights = L * (D * H * (2 * N + 2 * K) + 3 * D * F) + V * D
    for row in train(tmp_path, peak_flops=1e9):
        flops = row["tokens_per_second"] * (6 * weights + 6 * L * N * H * T)
        assert row["mfu"] == pytest.approx(flops / 1e9)


class Device:
    def __init__(self, stats):
        self.memory_stats = lambda: stats


class TwoDevices:
    local_devices = (Device({"peak_bytes_in_use": 7, "bytes_limit": 99}), Device({"peak_bytes_in_use": 12}))


class NoStatistics:
    local_devices = (Device(None), Device({}))


def test_peak_memory_is_that_of_the_fullest_device():
    assert peak_memory(TwoDevices()) == {"peak_memory_bytes": 12}
    assert peak_memory(NoStatistics()) == {}


def test_updates_that_bfloat16_cannot_hold_are_counted():
    before = {"x": jnp.ones(4, jnp.bfloat16), "y": jnp.full(4, 256.0, jnp.bfloat16)}  # steps of 2**-7 and of 2
    updates = {"x": jnp.array([1e-4, 0, 0.5, -1e-3]), "y": jnp.array([0.5, 3.0, -0.4, 0])}
    after = optax.apply_updates(before, updates)
    assert lost_updates(before, updates, after) == {"lost_updates": 4 / 8}
    wide = {key: value.astype(jnp.float32) for key, value in before.items()}
    assert lost_updates(wide, updates, optax.apply_updates(wide, updates)) == {}
