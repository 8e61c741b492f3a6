"""The Slurm launcher against schedulers that really run jobs: submitit's local executor, and fake_slurm.py."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import fake_slurm
import psutil
import pytest
from processes import ROOT, UNOPTIMISED
from sweeper import EXPERIMENT, metrics_of

from allam_jax.ablation.experiment import load_experiment
from allam_jax.errors import PEER_ENDED, UserError
from allam_jax.launch import slurm
from allam_jax.launch.jobs import plan_jobs
from allam_jax.launch.runs import expand_runs
from tests.tasks import tiny_recipe

RUNS = [f"peak_lr-{rate}--seed-0" for rate in (0.0001, 0.003)]  # those of the experiment's argument `one_seed`
LONG = "60"  # steps of a run that is interrupted


@pytest.fixture
def scheduler(tmp_path, monkeypatch):
    """The stand-in's state folder and the environment in which its commands are found."""
    environment = fake_slurm.install(tmp_path / "slurm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    yield Path(environment["FAKE_SLURM"]), environment
    for process in psutil.process_iter(["environ"]):  # whatever a failed test has left of its jobs
        ours = (process.info["environ"] or {}).get("FAKE_SLURM") == environment["FAKE_SLURM"]
        if ours and process.pid != os.getpid():
            process.kill()


def jobs_of(sweeper, workdir, arg="", **variables):
    """The jobs of the experiment, with the variables of a tiny run and these."""
    experiment = load_experiment(f"{EXPERIMENT}{arg and ':'}{arg}")
    config = tiny_recipe.get_config(str(sweeper.texts))
    runs = expand_runs(experiment, config, workdir=workdir, store=workdir.parent / "stages", overrides={})
    for run in runs:
        run.save()
    mine = sweeper.environment()
    wanted = {name: mine[name] for name in ("JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")}
    return plan_jobs(runs, folder=workdir / "jobs", environment=wanted | variables)


def wait_until(condition, *, timeout=400):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "never came to it"
        time.sleep(0.01)


def log_of(workdir, job):
    path = workdir / "jobs" / f"{job}.log"
    return path.read_text() if path.exists() else ""


def checkpoints(job):
    return [path for path in job.directories[-1].glob("checkpoints/[0-9]*") if path.name.isdigit()]


@pytest.fixture(scope="module")
def uninterrupted(sweeper, tmp_path_factory):
    """The job of a long run that nothing interrupted, and its metrics."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "sweep"
    jobs = jobs_of(sweeper, workdir, LONG)
    for job in jobs:
        subprocess.run(job.command, check=True, env=os.environ | job.environment)
    return jobs[-1], metrics_of(jobs[-1].directories[-1])


def test_options_are_checked(scheduler):
    assert slurm.parse_options(["nodes=2", "partition=gpu", "time=30", "tasks_per_node=4"]) == {
        "nodes": 2,
        "partition": "gpu",
        "time": 30,
        "tasks_per_node": 4,
    }
    with pytest.raises(UserError, match=r"--slurm partion=gpu: no option is called 'partion'; did you mean partition"):
        slurm.parse_options(["partion=gpu"])
    with pytest.raises(UserError, match="expected KEY=VALUE"):
        slurm.parse_options(["nodes"])


def test_without_slurm_it_says_so(sweeper, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    jobs = jobs_of(sweeper, tmp_path / "sweep")
    with pytest.raises(UserError, match="srun is not on the path"):
        slurm.submit(jobs, retries=0, options={}, name="x")


@pytest.mark.slow
@pytest.mark.long
def test_a_sweep_through_sbatch(sweeper, finished, scheduler, tmp_path):
    state, environment = scheduler
    workdir = tmp_path / "sweep"
    flags = ("--launcher=slurm", "--slurm=time=60", "--slurm=array_parallelism=1", "--slurm=partition=tests")
    sweep = {"arg": "one_seed", **environment}
    out, err = sweeper.run(workdir, *flags, **sweep)
    assert json.loads(out.splitlines()[-1]) == {"runs": 2, "submitted": 3}
    sweeper.run(workdir, *flags, **sweep)  # what is in the queue is not submitted again
    assert len(list(state.glob("*.json"))) == 2
    shared, array = (json.loads((state / f"{job}.json").read_text())["options"] for job in (1, 2))
    assert shared["signal"] == "USR1@120"
    assert (array["array"], array["dependency"], array["kill-on-invalid-dep"]) == ("0-1%1", "afterok:1", "yes")
    assert array["requeue"] is True
    assert (array["partition"], array["time"], array["nodes"], array["job-name"]) == ("tests", "60", "1", "sweep")
    wait_until(lambda: all(fake_slurm_state(state, f"2_{i}") == "COMPLETED" for i in range(2)))
    _, status = sweeper.run(workdir, "--status", **sweep)
    assert "2 runs: 2 finished" in status
    done, _ = sweeper.run(workdir, *flags, **sweep)  # all is there: it collects
    assert json.loads(done.splitlines()[-1])["finished"] == 2
    assert (workdir / "collected" / "report.md").is_file()
    for run in RUNS:
        assert metrics_of(workdir / "runs" / run / "train") == metrics_of(finished[0] / "runs" / run / "train")


def fake_slurm_state(state, task):
    path = state / f"{task}.state"
    return path.read_text() if path.exists() else ""


@pytest.mark.slow
@pytest.mark.long
def test_a_preempted_job_is_requeued_and_goes_on_bit_for_bit(sweeper, uninterrupted, scheduler, tmp_path):
    state, _ = scheduler
    workdir = tmp_path / "sweep"
    jobs = jobs_of(sweeper, workdir, LONG)
    ids = slurm.submit(jobs, retries=0, options=slurm.parse_options(["time=60"]), name="steps")
    (job,) = jobs  # one run: its stages are one job
    for times in (1, 2):
        wait_until(lambda: checkpoints(job))
        before = {path.name for path in checkpoints(job)}
        wait_until(lambda before=before: {path.name for path in checkpoints(job)} - before)
        fake_slurm.preempt(state, ids[job.name])
        wait_until(lambda times=times: log_of(workdir, job.name).count("run the same command again to go on") == times)
    wait_until(lambda: fake_slurm_state(state, ids[job.name]) in ("COMPLETED", "FAILED"))
    assert fake_slurm_state(state, ids[job.name]) == "COMPLETED"
    log = log_of(workdir, job.name)
    saved = [int(step) for step in re.findall(rf"SIGTERM: saved step (\d+) of {LONG}", log)]
    assert [int(step) for step in re.findall(rf"resuming at step (\d+) of {LONG}", log)] == saved
    assert len(saved) == 2
    assert 0 < saved[0] < saved[1] < int(LONG)
    attempts = json.loads((workdir / "jobs" / f"{job.name}.json").read_text())["attempts"]
    assert [attempt["status"] for attempt in attempts] == [143, 143, 0]
    assert metrics_of(job.directories[-1]) == uninterrupted[1]


@pytest.mark.slow
@pytest.mark.long
def test_two_hosts_through_srun_are_preempted_together(sweeper, scheduler, tmp_path):
    state, _ = scheduler
    workdir = tmp_path / "sweep"
    jobs = jobs_of(sweeper, workdir, LONG, XLA_FLAGS=UNOPTIMISED)
    options = slurm.parse_options(["nodes=2", "time=60"])
    ids = slurm.submit(jobs, retries=0, options=options, name="two")
    (job,) = jobs
    wait_until(lambda: checkpoints(job))
    fake_slurm.preempt(state, ids[job.name])
    wait_until(lambda: fake_slurm_state(state, ids[job.name]) in ("COMPLETED", "FAILED"))
    assert fake_slurm_state(state, ids[job.name]) == "COMPLETED"
    log = log_of(workdir, job.name)
    (saved,) = re.findall(rf"saved step (\d+) of {LONG}", log)
    assert re.findall(rf"resuming at step (\d+) of {LONG}", log) == [saved]
    rows = metrics_of(job.directories[-1])
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, int(LONG) + 1))
    metadata = json.loads((job.directories[-1] / "checkpoints" / LONG / "metadata" / "metadata").read_text())
    assert metadata["processes"] == 2


REFUSALS = {
    "partition": ("sbatch: error: invalid partition specified: gpux", "invalid partition specified: gpux"),
    "memory": ("sbatch: error: Memory specification can not be satisfied", "Memory specification can not be satisfied"),
    "no controller": ("sbatch: error: Unable to contact slurm controller", "Unable to contact slurm controller"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_sbatch_refuses_is_one_line_and_leaves_nothing(sweeper, scheduler, tmp_path, case):
    state, environment = scheduler
    said, words = REFUSALS[case]
    jobs = jobs_of(sweeper, tmp_path / "sweep", "one_seed")
    # It takes the shared job, and refuses the array that waits for it.
    sbatch = Path(environment["PATH"].partition(":")[0]) / "sbatch"
    kept = sbatch.read_text()
    sbatch.write_text(
        f'#!/bin/sh\nif grep -q array "$1"; then echo "{said}" >&2; exit 1; fi\n' + kept.partition("\n")[2]
    )
    with pytest.raises(UserError) as error:
        slurm.submit(jobs, retries=0, options={"array_parallelism": 1}, name="x")
    assert str(error.value) == f"sbatch refused the jobs: {words}; nothing was submitted"
    # It is cancelled, unless it was done before the array was refused.
    wait_until(lambda: fake_slurm_state(state, "1") in ("CANCELLED", "COMPLETED", "FAILED"))
    assert json.loads((tmp_path / "sweep" / "jobs" / slurm.RECORD).read_text()) == {}
    slurm_files = {path.name for path in (tmp_path / "sweep" / "jobs" / "slurm").iterdir() if not path.is_symlink()}
    assert {name.partition("_")[0] for name in slurm_files} <= {"1"}
    sbatch.write_text(kept)


def test_arrays_are_not_larger_than_the_cluster_allows(sweeper, scheduler, tmp_path, monkeypatch):
    state, _ = scheduler
    monkeypatch.setattr(slurm.slurm_queue, "max_array_size", lambda: 2)
    workdir = tmp_path / "with 100% and 'quotes'"
    jobs = [dataclasses.replace(job, after=()) for job in jobs_of(sweeper, workdir, "more", PYTHONHOME="/nowhere")]
    monkeypatch.setenv("ALLAM_JAX_CACHE", str(tmp_path / "cache"))
    ids = slurm.submit(jobs[:5], retries=0, options={"array_parallelism": 1}, name="x")
    assert list(ids.values()) == ["1_0", "1_1", "2_0", "2_1", "3"]
    options = [json.loads((state / f"{number}.json").read_text())["options"] for number in (1, 2, 3)]
    assert [one.get("dependency") for one in options] == [None, "afterany:1_0:1_1", "afterany:2_0:2_1"]
    assert all("100%" not in one["output"] for one in options), "Slurm takes % for a pattern"
    slurm.slurm_queue.cancel(["1", "2", "3"])


def test_an_unknown_queue_is_not_an_empty_one(sweeper, scheduler, tmp_path, monkeypatch):
    state, environment = scheduler
    jobs = jobs_of(sweeper, tmp_path / "sweep", LONG, PYTHONHOME="/nowhere")
    slurm.submit(jobs, retries=0, options={}, name="x")
    squeue = Path(environment["PATH"].partition(":")[0]) / "squeue"
    squeue.write_text('#!/bin/sh\necho "slurm_load_jobs error: Unable to contact slurm controller" >&2\nexit 1\n')
    with pytest.raises(UserError, match="squeue failed: .*Unable to contact slurm controller"):
        slurm.submit(jobs, retries=0, options={}, name="x")
    assert len(list(state.glob("*.json"))) == 1
    slurm.slurm_queue.cancel(["1"])


@pytest.mark.slow
@pytest.mark.long
def test_the_tasks_of_a_job_are_tried_again_together(sweeper, scheduler, tmp_path):
    state, _ = scheduler
    workdir = tmp_path / "sweep"
    (job,) = jobs_of(sweeper, workdir, LONG, XLA_FLAGS=UNOPTIMISED)
    ids = slurm.submit([job], retries=1, options=slurm.parse_options(["nodes=2", "time=60"]), name="two")
    wait_until(lambda: any(path.name.isdigit() for path in checkpoints(job)))  # a complete one
    ranks = json.loads((state / f"{ids[job.name]}.pids").read_text())
    (command,) = psutil.Process(ranks[1]).children()
    command.kill()
    wait_until(lambda: fake_slurm_state(state, ids[job.name]) in ("COMPLETED", "FAILED"))
    assert fake_slurm_state(state, ids[job.name]) == "COMPLETED"
    log = log_of(workdir, job.name)
    assert log.count("resuming at step") == 1
    first, second = json.loads((workdir / "jobs" / f"{job.name}.json").read_text())["attempts"]
    assert first["error"].startswith("error: process 1 of 2 has ended: without a word")
    assert first["status"] == PEER_ENDED
    assert second["status"] == 0


@pytest.mark.slow
@pytest.mark.long
def test_submitits_local_executor_requeues_at_the_signal(sweeper, uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", slurm.SIGNAL)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    import submitit

    workdir = tmp_path / "sweep"
    (job,) = jobs_of(sweeper, workdir, LONG)
    executor = submitit.LocalExecutor(folder=tmp_path / "submitit")
    executor.update_parameters(timeout_min=30)
    handle = executor.submit(slurm.SlurmTask(job, 0))
    wait_until(lambda: checkpoints(job))
    (task,) = psutil.Process(int(handle.job_id)).children()
    task.send_signal(signal.SIGUSR1)
    handle.result()
    log = log_of(workdir, job.name)
    assert re.findall(rf"resuming at step (\d+) of {LONG}", log) == re.findall(rf"saved step (\d+) of {LONG}", log)
    assert log.count("resuming at step") == 1
    assert metrics_of(job.directories[-1]) == uninterrupted[1]


@pytest.mark.slow
def test_a_job_that_fails_is_tried_again_and_then_named(sweeper, scheduler, tmp_path):
    state, _ = scheduler
    workdir = tmp_path / "sweep"
    jobs = jobs_of(sweeper, workdir, PYTHONHOME="/nowhere")[:2]
    ids = slurm.submit(jobs, retries=1, options={}, name="bad")
    wait_until(lambda: fake_slurm_state(state, ids[jobs[1].name]) == "CANCELLED")
    assert fake_slurm_state(state, ids[jobs[0].name]) == "FAILED"
    attempts = json.loads((workdir / "jobs" / f"{jobs[0].name}.json").read_text())["attempts"]
    assert len(attempts) == 2
    assert all(attempt["status"] not in (0, 2) for attempt in attempts)
    assert not (workdir / "jobs" / f"{jobs[1].name}.json").exists()
    said = next((workdir / "jobs" / "slurm").glob("*_log.err")).read_text()
    assert f"JobFailed: {jobs[0].name}: " in said
