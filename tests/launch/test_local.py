"""The local launcher with jobs of a moment: order, cores, GPUs, retries, and what happens to jobs that wait in vain."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.measures import metric
from allam_jax.ablation.vary import param
from allam_jax.errors import USER_ERROR, UserError
from allam_jax.launch.attempts import cause
from allam_jax.launch.jobs import Job, plan_jobs
from allam_jax.launch.local import Slot, make_slots, run_jobs
from allam_jax.launch.runs import expand_runs
from configs import tiny

# What a job's process does here: it notes how it was started, waits for a job that it shall meet, and finishes its
# stages unless told to fail.
PROGRAM = """
import json, os, pathlib, sys, time
directories = [pathlib.Path(path) for path in sys.argv[1].split(",")]
note = directories[-1].with_suffix(".notes")
note.parent.mkdir(parents=True, exist_ok=True)
started = time.time()
note.with_suffix(".started").touch()
while sys.argv[4] and not os.path.exists(sys.argv[4]):
    time.sleep(0.01)
time.sleep(0.3)
with open(note, "a") as file:
    facts = {"cores": sorted(os.sched_getaffinity(0)), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
             "group": os.environ.get("WANDB_RUN_GROUP"), "started": started, "ended": time.time()}
    file.write(json.dumps(facts) + chr(10))
if len(note.read_text().splitlines()) <= int(sys.argv[2]):
    print("something went wrong", flush=True)
    sys.exit(int(sys.argv[3]))
for directory in directories:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "result.json").write_text("{}")
"""


@dataclasses.dataclass(frozen=True)
class Moment(Job):
    """A job whose process fails the first `failures` times, with this exit status, and ends after `meets` has begun."""

    failures: int = 0
    status: int = 1
    meets: Job | None = None

    @property
    def command(self):
        paths = ",".join(map(str, self.directories))
        met = str(self.meets.directories[-1].with_suffix(".started")) if self.meets else ""
        return [sys.executable, "-c", PROGRAM, paths, str(self.failures), str(self.status), met]

    @property
    def notes(self):
        path = self.directories[-1].with_suffix(".notes")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def make_jobs(tmp_path, **failing):
    """The jobs of four runs on a shared base; `failing` says how often the job of an index fails, and how."""
    measure = metric("loss", key="loss", stage="continued", title="Loss")
    vary = param("stage.continued.train.steps", 1, 2, 3, 4)
    experiment = Experiment(title="", claim="", config="", vary=vary, measures=(measure,))
    runs = expand_runs(experiment, tiny.get_config(), workdir=tmp_path, store=tmp_path / "stages", overrides={})
    planned = plan_jobs(runs, folder=tmp_path / "jobs", environment={"WANDB_RUN_GROUP": "sweep"})
    jobs = []
    for number, job in enumerate(planned):
        failures, status = failing.get(f"job{number}", (0, 1))
        fields = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
        jobs.append(Moment(**fields, failures=failures, status=status))
    return jobs


def run(jobs, *, slots=None, retries=1):
    slots = slots or [Slot((core,), None) for core in sorted(os.sched_getaffinity(0))[:2]]
    return run_jobs(jobs, slots=slots, retries=retries)


def test_shared_stages_come_first_and_jobs_run_side_by_side(tmp_path):
    jobs = make_jobs(tmp_path)
    jobs[1] = dataclasses.replace(jobs[1], meets=jobs[2])
    jobs[2] = dataclasses.replace(jobs[2], meets=jobs[1])
    before = os.sched_getaffinity(0)
    assert run(jobs) == {}
    assert os.sched_getaffinity(0) == before
    notes = [job.notes[0] for job in jobs]
    assert all(len(job.notes) == 1 for job in jobs)
    assert all(note["started"] >= notes[0]["ended"] for note in notes[1:])
    assert notes[1]["started"] < notes[2]["ended"]
    assert notes[2]["started"] < notes[1]["ended"]
    assert {tuple(note["cores"]) for note in notes} == {(core,) for core in sorted(before)[:2]}
    assert {note["group"] for note in notes} == {"sweep"}
    for moment in {note["started"] for note in notes}:  # never more than two at once
        assert sum(note["started"] <= moment < note["ended"] for note in notes) <= 2


def test_every_job_has_gpus_of_its_own(tmp_path):
    cores = tuple(sorted(os.sched_getaffinity(0)))
    run(make_jobs(tmp_path), slots=[Slot(cores, ("0", "1")), Slot(cores, ("2", "3"))])
    notes = [job.notes[0] for job in make_jobs(tmp_path)]
    assert {note["gpus"] for note in notes} == {"0,1", "2,3"}
    for one in notes:
        for other in notes:
            overlap = one is not other and one["started"] < other["ended"] and other["started"] < one["ended"]
            assert not (overlap and one["gpus"] == other["gpus"])


def test_cores_and_gpus_are_shared_out(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 7})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert make_slots(None) == [Slot((0, 1, 2, 3, 4, 7), None)]
    assert make_slots(4) == [Slot((0,), None), Slot((1, 2), None), Slot((3,), None), Slot((4, 7), None)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3,GPU-5")
    assert make_slots(None) == [Slot((0, 1), ("0",)), Slot((2, 3), ("3",)), Slot((4, 7), ("GPU-5",))]
    assert make_slots(None, gpus_per_job=2) == [Slot((0, 1, 2, 3, 4, 7), ("0", "3"))]
    with pytest.raises(UserError, match="expected 1 to 6"):
        make_slots(7)
    with pytest.raises(UserError, match="jobs with 2 GPUs each need more than the 3 GPUs of this machine"):
        make_slots(2, gpus_per_job=2)


def test_a_failed_job_is_tried_again_within_bounds(tmp_path):
    jobs = make_jobs(tmp_path, job1=(1, 1), job2=(9, 1), job3=(9, USER_ERROR))
    failed = run(jobs, retries=2)
    assert [len(job.notes) for job in jobs] == [1, 2, 3, 1, 1]
    assert set(failed) == {jobs[2].name, jobs[3].name}
    log = tmp_path / "jobs" / f"{jobs[2].name}.log"
    assert failed[jobs[2].name] == f"something went wrong (log: {log})"
    assert log.read_text().count("\nsomething went wrong") == 3
    tries = jobs[1].attempts
    assert [(attempt["status"], attempt["error"]) for attempt in tries] == [(1, "something went wrong"), (0, "")]


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("error: one\nmore\nerror: two\n", "error: one"),
        ("==== old\nerror: old\n\n==== new\nwords\nerror: new", "error: new"),
        (
            'W0101 error: no\nTraceback (most recent call last):\n  File "x"\nKeyError: 1\n\nDuring handling\n'
            "Traceback (most recent call last):\nValueError: 2\n",
            "KeyError: 1",
        ),
        (
            "F0101 12:00 client.h:80] Terminating\nFatal Python error: Aborted\n\nExtension modules: numpy",
            "F0101 12:00",
        ),
        ("Fatal Python error: Segmentation fault\n\nExtension modules: numpy (total: 1)\n", "Fatal Python error: Seg"),
        ("jaxlib._jax.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory", "jaxlib._jax.XlaRuntimeError: RESOURCE"),
        ("something went wrong\nExtension modules: numpy\n", "something went wrong"),
        ("", ""),
    ],
)
def test_the_recorded_reason_is_the_first_error(log, expected):
    found = cause(f"\n==== first command\n{log}")
    assert found.startswith(expected)
    assert bool(found) == bool(expected)


@pytest.mark.parametrize(("detach", "left"), [(False, 0), (True, 1)])
def test_a_killed_launcher_takes_its_jobs_along_unless_told_otherwise(tmp_path, detach, left):
    code = (
        "import sys; from allam_jax import interrupts; interrupts.leave_at_signals(); interrupts.end_with_parent(); "
        "print('up', flush=True); import time; time.sleep(30)"
    )
    launcher = (
        "import sys, types, time; from pathlib import Path; from allam_jax.launch import attempts; "
        f"job = types.SimpleNamespace(folder=Path({str(tmp_path)!r}), log=Path({str(tmp_path / 'log')!r}), "
        f"record=Path({str(tmp_path / 'record')!r}), command=[sys.executable, '-c', {code!r}], environment={{}}, "
        f"stages=[], attempts=[]); print(attempts.start(job, detach={detach}).process.pid, flush=True); time.sleep(30)"
    )
    process = subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True)
    job = psutil.Process(int(process.stdout.readline()))
    while "\nup\n" not in (tmp_path / "log").read_text():
        time.sleep(0.01)
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs([job], timeout=1 if detach else 10)
    assert len(alive) == left
    for one in alive:
        one.kill()


def test_what_waits_for_a_failed_job_is_not_started(tmp_path):
    jobs = make_jobs(tmp_path, job0=(9, 1))
    failed = run(jobs, retries=0)
    assert set(failed) == {job.name for job in jobs}
    assert failed[jobs[4].name] == f"needs {jobs[0].name}, which failed"
    assert [len(job.notes) for job in jobs] == [1, 0, 0, 0, 0]


def test_finished_jobs_are_not_started(tmp_path):
    jobs = make_jobs(tmp_path)
    run(jobs[:2])
    time.sleep(0.1)
    assert run(jobs) == {}
    assert [len(job.notes) for job in jobs] == [1, 1, 1, 1, 1]
