"""Sweeps, steps of two tasks and corpus jobs on a real Slurm; skipped where Debian's slurm-wlm is not installed."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import real_slurm
from processes import ROOT, UNOPTIMISED, child_environment, free_port, start, wait
from sweeper import metrics_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(bool(real_slurm.missing()), reason=real_slurm.missing()),
]

LONG = "400"  # steps of a run that is interrupted


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    found = real_slurm.Cluster(tmp_path_factory.mktemp("cluster"))
    yield found
    found.stop()


@pytest.fixture(autouse=True)
def _empty_queue(cluster):
    """What a failed test leaves in the queue would fail the next one."""
    yield
    cluster.clear()


@pytest.fixture
def sweep(sweeper, cluster, tmp_path):
    """Runs --sweep there; (what --status shows, the workdir, run)."""
    workdir = tmp_path / "it's 100%j of them" / "sweep"

    def run(*flags, arg=LONG, status=0):
        variables = {**cluster.environment, "XLA_FLAGS": UNOPTIMISED}
        return sweeper.run(workdir, *flags, arg=arg, status=status, **variables)

    return workdir, run


def until(condition, *, timeout=300):
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end, "never came to it"
        time.sleep(0.2)
    return found


def log_of(workdir):
    return "".join(path.read_text() for path in (workdir / "jobs").glob("*.log"))


def slurm_ids(workdir):
    return list(json.loads((workdir / "jobs" / "slurm.json").read_text()).values())


def test_requeued_cancelled_and_submitted_again_it_comes_to_the_same_curve(cluster, sweep, sweeper, tmp_path):
    workdir, run = sweep
    run("--launcher=slurm", "--slurm=time=30", "--slurm=signal_delay_s=20")
    (job,) = slurm_ids(workdir)
    until(lambda: list(workdir.glob("runs/*/train/checkpoints/[0-9]*")))
    cluster.run("scancel", "--signal=USR1", job)  # as at preemption
    until(lambda: "resuming at step" in log_of(workdir))
    cluster.run("scancel", job)  # somebody takes it away
    until(lambda: "|CANCELLED|" in cluster.run("squeue", "-h", "--states=all", "--format=%i|%T|", f"--jobs={job}"))
    _, status = run("--status")
    assert re.search(r"steps-400 +(failed|stopped) ", status), status
    run("--launcher=slurm", "--slurm=time=30")
    (again,) = slurm_ids(workdir)
    assert again != job
    until(lambda: list(workdir.glob("runs/*/train/result.json")))
    (train,) = workdir.glob("runs/*/train")
    reference = tmp_path / "reference"
    sweeper.run(reference, arg=LONG, XLA_FLAGS=UNOPTIMISED)
    assert metrics_of(train) == metrics_of(next(reference.glob("runs/*/train")))


def test_a_job_of_two_tasks_is_stopped_by_its_time_limit_and_goes_on(cluster, sweep):
    workdir, run = sweep
    # Slurm's signal comes up to a minute early; a requeued job then waits two minutes.
    run("--launcher=slurm", "--slurm=nodes=2", "--slurm=time=3", "--slurm=signal_delay_s=40", arg="100000")
    until(lambda: "SIGTERM: saved step" in log_of(workdir))
    until(lambda: "resuming at step" in log_of(workdir))
    log = log_of(workdir)
    assert re.findall(r"resuming at step (\d+)", log)[0] == re.findall(r"saved step (\d+)", log)[0]
    assert "Traceback" not in log


def test_what_is_refused_is_one_line_and_what_cannot_start_has_a_reason(cluster, sweep):
    workdir, run = sweep
    for option, words in (
        ("partition=gpux", "invalid partition specified: gpux"),
        ("mem=99GB", "Memory specification can not be satisfied"),
        ("gres=gpu:8", "Invalid generic resource (gres) specification"),
    ):
        # A job that asks for too much time as well is not refused, but waits.
        _, err = run("--launcher=slurm", "--slurm=time=30", f"--slurm={option}", status=2)
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert line.startswith("error: sbatch refused the jobs: "), line
        assert words in line
    assert cluster.run("squeue", "--noheader") == ""
    run("--launcher=slurm", "--slurm=partition=short", "--slurm=time=30")
    until(lambda: "PartitionTimeLimit" in run("--status")[1], timeout=30)


def test_arrays_are_cut_to_what_the_cluster_takes(cluster, sweep):
    workdir, run = sweep
    out, _ = run("--launcher=slurm", arg="more")
    assert json.loads(out.splitlines()[-1]) == {"runs": 6, "submitted": 7}
    assert len({one.partition("_")[0] for one in slurm_ids(workdir)}) == 3  # shared, and 4 + 2


CORPUS = """
from configs import base
def get_config(path):
    config = base.get_config("corpus")
    config.corpus.sources.en = base.documents(path=path, language="en")
    config.corpus.dedup.update(text=True, minhash=True, bands=5)  # more than an array may have
    config.corpus.executor.update(kind="slurm", partition="main", workers=2, memory_gb=1, time="10:00")
    return config
"""


def test_the_corpus_is_made_there_and_its_jobs_end_with_it(cluster, sweeper, tmp_path):
    config, texts = tmp_path / "corpus.py", tmp_path / "texts"
    config.write_text(CORPUS)
    texts.mkdir()
    lines = (sweeper.texts / "text" / "en.txt").read_text().splitlines()
    for part in range(3):
        (texts / f"{part}.txt").write_text("\n".join(lines[part::3]) + "\n")

    def command(workdir, **keys):
        made = [sys.executable, ROOT / "run.py", f"--config={config}:{texts}/*.txt", f"--workdir={workdir}"]
        return [*made, *(f"--config.corpus.{key}={value}" for key, value in keys.items())]

    environment = child_environment(**cluster.environment)
    process = start(command(tmp_path / "100% there", parts=3), environment=environment)
    until(lambda: cluster.run("squeue", "--noheader", "--name=corpus-clean"))
    process.terminate()
    assert wait(process).status == 128 + signal.SIGTERM
    until(lambda: not cluster.run("squeue", "--noheader"), timeout=30)
    there = wait(start(command(tmp_path / "100% there", parts=3), environment=environment))
    assert there.status == 0, there.err[-3000:]
    here = command(tmp_path / "here", parts=3, **{"executor.kind": "local"})
    subprocess.run(list(map(str, here)), cwd=ROOT, env=environment, check=True, capture_output=True)
    found = [
        {path.name: path.read_bytes() for path in (folder / "en").rglob("*array_record*")}
        for folder in (tmp_path / "100% there", tmp_path / "here")
    ]
    assert found[0]
    assert found[0] == found[1]
    waits = start(command(tmp_path / "never", **{"executor.partition": "short"}), environment=environment)
    done = wait(waits, timeout=120)
    assert done.status == 2
    assert "can never start here (pending: PartitionTimeLimit)" in done.err.splitlines()[-1]
    assert not cluster.run("squeue", "--noheader")


def test_the_job_script_of_the_docs_saves_before_its_limit_and_goes_on(cluster, sweeper, tmp_path):
    run = tmp_path / "run"
    size = ("--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1", "--mem=500", "--time=3", "--signal=B:USR1@40")
    script = [f"--chdir={ROOT}", f"--output={tmp_path}/log", ROOT / "docs" / "jobs" / "train.sbatch"]
    config = f"--config={ROOT}/tests/tasks/tiny_recipe.py:{sweeper.texts}"
    variables = {
        **cluster.environment,
        "PATH": f"{Path(sys.executable).parent}:{cluster.environment['PATH']}",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",  # no name server knows node2
    }
    submitted = subprocess.run(
        ["sbatch", "--parsable", *size, *script, config, f"--workdir={run}", "--config.stage.train.train.steps=40000"],
        env=sweeper.environment(**variables),
        check=True,
        capture_output=True,
        text=True,
    )
    log = until(lambda: (tmp_path / "log").is_file() and tmp_path / "log")
    until(lambda: "SIGTERM: saved step" in log.read_text())
    until(lambda: "resuming at step" in log.read_text())
    cluster.run("scancel", submitted.stdout.strip())
    text = log.read_text()
    assert re.findall(r"resuming at step (\d+)", text)[0] == re.findall(r"saved step (\d+)", text)[0]
    assert "Traceback" not in text
