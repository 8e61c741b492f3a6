"""Slurm with a stand-in that really runs the batch scripts, and Ray for real."""

import importlib.util
import json
import signal
import sys
from pathlib import Path

import fake_slurm
import pytest
from pipeline_corpus import config, files_of, plan_of, run, write_crawl
from processes import child_environment, start, wait, wait_until

from allam_jax.corpus import executors
from allam_jax.errors import UserError

pytestmark = pytest.mark.slow


def small(folder):
    """Few tasks: each is a process."""
    return config(folder, bands=2, rows=9)


@pytest.fixture
def crawl(tmp_path):
    write_crawl(tmp_path / "files", files=3, documents=20)
    return tmp_path / "files"


@pytest.fixture
def reference(crawl, tmp_path):
    run(small(crawl), tmp_path / "reference")
    return files_of(tmp_path / "reference" / "crawl")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Puts Slurm's commands on the path; returns the folder of what they know of each other."""
    for name, value in fake_slurm.install(tmp_path / "bin").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(executors, "_POLL_SECONDS", 0.1)
    return tmp_path / "bin" / "state"


def state_of(slurm, job):
    return (slurm / f"{job}.state").read_text()


_TWO_WORKERS = """
import os, pathlib, sys, time
from datatrove.pipeline.base import PipelineStep
from allam_jax import interrupts
from allam_jax.corpus.executors import _Local

class Waits(PipelineStep):
    def run(self, data, rank=0, world_size=1):
        pathlib.Path(sys.argv[1], str(rank)).touch()
        time.sleep(60)

if __name__ == "__main__":
    interrupts.install()
    try:
        _Local([Waits()], tasks=2, workers=2, logging_dir=sys.argv[1] + "/logs").run()
    except interrupts.Terminated:
        os._exit(interrupts.last_words(interrupts.last_signal())[1])  # as run.py ends
"""


def test_workers_that_a_signal_ends_leave_nothing_behind(tmp_path):
    """Python's tracker of semaphores, a process of its own, would tell of those that were left."""
    (tmp_path / "two_workers.py").write_text(_TWO_WORKERS)
    process = start([sys.executable, tmp_path / "two_workers.py", tmp_path], environment=child_environment())
    wait_until(lambda: all((tmp_path / rank).exists() for rank in "01"), process=process)
    process.send_signal(signal.SIGTERM)
    ended = wait(process)
    assert ended.status == 128 + signal.SIGTERM, ended.err
    assert "leaked" not in ended.err


def test_slurm_scripts_run_in_any_path_and_write_the_same_bytes(crawl, reference, tmp_path, slurm):
    workdir = tmp_path / "a space" / "100%j" / 'it\'s "quoted"'
    record = plan_of(small(crawl), workdir=workdir).work / "logs" / executors._SLURM_RECORD
    record.parent.mkdir(parents=True)
    record.write_text('["111", "112"]')  # what an earlier start has left in the queue
    options = {"kind": "slurm", "partition": "cpu", "workers": 2, "memory_gb": 3, "options": ["account=me"]}
    run(small(crawl), workdir, **options)
    assert files_of(workdir / "crawl") == reference
    assert [state_of(slurm, job) for job in (111, 112)] == ["CANCELLED"] * 2
    jobs = [json.loads((slurm / f"{job}.json").read_text())["options"] for job in range(1, 6)]
    assert not (slurm / "6.json").exists()  # clean, exact, bands, clusters, write
    for number, job in enumerate(jobs):
        assert (job["partition"], job["account"], job["mem-per-cpu"]) == ("cpu", "me", "3G")
        assert "a space/100%%j/it" in job["output"]
        assert job.get("dependency") == (f"afterok:{number}" if number else None)
    assert [jobs[0]["array"], jobs[2]["array"]] == ["0-2%2", "0-1%2"]


@pytest.mark.usefixtures("slurm")
def test_a_task_that_fails_is_named_with_its_log(crawl, tmp_path):
    (crawl / "1.jsonl").write_bytes(b"\xff\n" * 5)
    with pytest.raises(
        UserError, match="1 of 3 tasks of stage 'clean' did not end .the first is task 1.; see their logs in"
    ):
        run(small(crawl), tmp_path / "out", kind="slurm", partition="cpu")
    plan = plan_of(small(crawl), workdir=tmp_path / "out")
    logs = "".join(path.read_text() for path in (plan.work / "logs" / "clean" / "slurm_logs").iterdir())
    assert "too many bad records (0 good, 5 with invalid UTF-8" in logs


def test_a_refusal_is_one_line_and_what_was_submitted_is_cancelled(crawl, tmp_path, slurm):
    sbatch = tmp_path / "bin" / "sbatch"
    said = "sbatch: error: Batch job submission failed: Invalid qos specification"
    sbatch.write_text(
        f"#!/bin/sh\nif [ -e {tmp_path}/one ]; then echo '{said}' >&2; exit 1; fi\n"
        f"touch {tmp_path}/one; echo Submitted batch job 41\n"
    )
    with pytest.raises(
        UserError, match="^sbatch refused the jobs: Batch job submission failed: Invalid qos specification$"
    ):
        run(small(crawl), tmp_path / "out", kind="slurm", partition="cpu")
    assert state_of(slurm, 41) == "CANCELLED"


def test_jobs_that_wait_are_explained_and_do_not_stay_queued(crawl, tmp_path, slurm, caplog):
    for name, script in (
        ("sbatch", "echo Submitted batch job 7"),
        # No answer at first, then a job that waits, and at last one that can never start.
        (
            "squeue",
            f"n=$(wc -l < {tmp_path}/asked); echo x >> {tmp_path}/asked\ncase $n in 0) echo 'slurm_load_jobs error: "
            "Unable to contact' >&2; exit 1;; 1) echo '7_0|PENDING|Resources';; "
            "*) echo '7_0|PENDING|PartitionTimeLimit';; esac",
        ),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "asked").touch()
    with (
        caplog.at_level("INFO"),
        pytest.raises(
            UserError,
            match="stage 'clean' can never start here .pending: PartitionTimeLimit.; change config.corpus.executor",
        ),
    ):
        run(small(crawl), tmp_path / "out", kind="slurm", partition="cpu")
    assert "clean: waiting; squeue failed: slurm_load_jobs error: Unable to contact" in caplog.text
    assert "clean: pending: Resources" in caplog.text
    assert state_of(slurm, 7) == "CANCELLED"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("auto", "Ray at 'auto' cannot be joined (ConnectionError: Could not find any running Ray instance"),
        ("10.255.255.1:6379", "Ray at '10.255.255.1:6379' has not answered within 3 s"),
    ],
)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is optional")
def test_a_cluster_that_is_not_there_is_one_line(monkeypatch, address, words):
    monkeypatch.setattr(executors, "_RAY_SECONDS", 25 if address == "auto" else 3)
    with pytest.raises(UserError) as error:
        executors._check_ray(address, path="")
    assert words in str(error.value)


def test_no_slurm_here(crawl, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UserError, match="sbatch is not on the path|sbatch failed .*run this on a machine that can submit Slurm jobs"
    ):
        run(small(crawl), tmp_path / "out", kind="slurm", partition="cpu")


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is optional")
@pytest.mark.long
def test_ray_writes_the_same_bytes(crawl, reference, tmp_path):
    import ray

    try:
        run(small(crawl), tmp_path / "ray", kind="ray", workers=2, memory_gb=1)
    finally:
        ray.shutdown()
    assert files_of(tmp_path / "ray" / "crawl") == reference
    assert Path(tmp_path / "ray" / "crawl" / "manifest.json").exists()
