"""The table of --status, from the files that runs and launchers write."""

import os
import time

import pytest

from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.measures import metric
from allam_jax.ablation.vary import param
from allam_jax.files import write_json
from allam_jax.launch import status
from allam_jax.launch.jobs import plan_jobs
from allam_jax.launch.runs import expand_runs
from allam_jax.slurm_queue import Entry
from allam_jax.training.metrics import MetricsWriter
from allam_jax.training.settings import MetricsSettings
from configs import tiny


@pytest.fixture
def sweep(tmp_path):
    """Seven runs whose shared stages have finished, and their jobs: the shared one and the last ones by number."""
    measure = metric("loss", key="loss", stage="continued", title="Loss")
    vary = param("stage.continued.train.steps", *range(200, 207))
    experiment = Experiment(title="", claim="", config="", vary=vary, measures=(measure,))
    runs = expand_runs(experiment, tiny.get_config(), workdir=tmp_path, store=tmp_path / "stages", overrides={})
    shared, *own = plan_jobs(runs, folder=tmp_path / "jobs", environment={})
    for directory in shared.directories:
        write_json(directory / "result.json", {})
    return runs, [shared, *own]


def note(job, *attempts, log="said something\n", age=0.0):
    write_json(job.folder / f"{job.name}.json", {"stages": [], "attempts": list(attempts)})
    (job.folder / f"{job.name}.log").write_text(log)
    os.utime(job.folder / f"{job.name}.log", (time.time() - age,) * 2)


def train(job, *, steps):
    with MetricsWriter(job.directories[-1], MetricsSettings(tensorboard=False)) as writer:
        for step in range(1, steps + 1):
            writer.write(step, {"loss": 7.0 - step / 100}, timing={"seconds": 0.5, "eta": 0.5 * (200 - step)})
        writer.write(steps, {"eval/held_out/ar/bits_per_byte": 2.0})


def test_every_state_is_told_apart(sweep):
    runs, jobs = sweep
    started = {"started": time.time(), "host": "node1"}
    train(jobs[1], steps=50)
    write_json(jobs[1].directories[-1] / "result.json", {})
    train(jobs[2], steps=120)
    note(jobs[2], started)
    note(jobs[3], started, age=4230)
    note(
        jobs[4],
        started | {"ended": 1.0, "status": 1, "error": "out of memory"},
        started | {"ended": 2.0, "status": 1, "error": "x"},
    )
    note(jobs[5], started | {"ended": 2.0, "status": 0, "error": "it can go on"})
    rows = status.run_states(runs, jobs, queued={jobs[6].name: Entry("9", "PENDING", "Resources")})
    states = ["finished", "running", "silent", "failed", "stopped", "queued", "waiting"]
    assert [row.state for row in rows] == states
    assert (rows[1].stages, rows[1].step, rows[1].loss, rows[1].left) == ("6/7 continued", "120/201", "5.800", "40.0 s")
    assert rows[0].loss == "6.500"
    assert rows[2].note == "nothing written for 1 h 10 min; started on node1"
    assert rows[3].note == "attempt 2 x"
    text = status.status_table(rows).splitlines()
    assert text[0] == f"7 runs: {', '.join(f'1 {state}' for state in states)}"
    assert len({line.index(state) for line, state in zip(text[2:], states, strict=True)}) == 1


def test_what_the_scheduler_says_counts_more_than_silence(sweep):
    runs, jobs = sweep
    started = {"started": time.time(), "host": "node1"}
    for job in jobs[1:3]:
        note(job, started)
    note(jobs[5], started | {"ended": 2.0, "status": 1, "error": "error: x"})
    queued = {
        jobs[1].name: Entry("1", "OUT_OF_MEMORY", "OutOfMemory"),
        jobs[2].name: Entry("2", "RUNNING", "None"),
        jobs[3].name: Entry("3", "CANCELLED", "None"),  # before its first line
        jobs[4].name: Entry("4", "PENDING", "PartitionTimeLimit"),
        jobs[5].name: Entry("5", "FAILED", "NonZeroExitCode"),
        jobs[6].name: Entry("6", "GONE"),
    }
    rows = status.run_states(runs, jobs, queued=queued)
    again = "; run the sweep again to submit it"
    assert [(row.state, row.note) for row in rows[:6]] == [
        ("failed", f"out_of_memory: OutOfMemory{again}"),
        ("running", ""),
        ("failed", f"cancelled{again}"),
        ("queued", "pending: PartitionTimeLimit"),
        ("failed", "error: x"),
        ("failed", f"Slurm does not know it any more{again}"),
    ]


def test_before_the_shared_stages_all_wait_for_their_job(sweep):
    runs, jobs = sweep
    for directory in jobs[0].directories:
        (directory / "result.json").unlink()
    note(jobs[0], {"started": time.time(), "host": "node1"})
    rows = status.run_states(runs, jobs, queued={})
    assert {(row.state, row.stages, row.note) for row in rows} == {("running", "0/7 corpus", jobs[0].name)}


def test_without_a_terminal_it_is_shown_once(sweep, capsys):
    runs, jobs = sweep
    status.watch(lambda: status.run_states(runs, jobs, queued={}))
    assert capsys.readouterr().err.startswith("7 runs: 7 waiting\n")
