"""Slurm with a stand-in that really runs the batch scripts, and Ray for real."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from pipeline_corpus import config, files_of, plan_of, run, write_crawl

from allam_jax.corpus import executors
from allam_jax.errors import UserError

pytestmark = pytest.mark.slow

SBATCH = """#!{python}
# Runs the tasks of an array at once and in order, unless the job that it waits for has failed.
import os, re, shlex, subprocess, sys
state, script = {state!r}, sys.argv[-1]
text = open(script).read()
first, last = map(int, re.search(r"^#SBATCH --array=(\\d+)-(\\d+)", text, re.M).groups())
(log,) = shlex.split(re.search(r"^#SBATCH --output=(.*)$", text, re.M).group(1))
number = len(os.listdir(state)) + 1
exports = next(argument for argument in sys.argv if argument.startswith("--export="))
exported = dict(item.split("=", 1) for item in exports.split(",")[1:])
needed = [argument.split(":")[1] for argument in sys.argv if argument.startswith("--dependency=afterok:")]
codes = [1 for need in needed if "#FAILED" in open(os.path.join(state, need)).read()]
for index in range(first, last + 1) if not codes else ():
    environment = os.environ | exported | {{"SLURM_ARRAY_TASK_ID": str(index), "SLURM_ARRAY_JOB_ID": str(number)}}
    words = {{"A": str(number), "a": str(index), "%": "%"}}
    out = open(re.sub("%(.)", lambda found: words[found.group(1)], log), "wb")
    codes.append(subprocess.run(["bash", script], env=environment, stdout=out, stderr=out).returncode)
said = [text, "#ARGS " + " ".join(sys.argv[1:-1]), "#FAILED" if any(codes) else ""]
open(os.path.join(state, str(number)), "w").write("\\n".join(said))
print("Submitted batch job", number)
"""


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
    """Puts sbatch and squeue on the path; returns the folder of the scripts that were submitted."""
    folder, state = tmp_path / "bin", tmp_path / "jobs"
    folder.mkdir()
    state.mkdir()
    for name, content in (
        ("sbatch", SBATCH.format(python=sys.executable, state=str(state))),
        ("squeue", "#!/bin/sh\nexit 0\n"),
        ("scancel", f'#!/bin/sh\necho "$@" >> {tmp_path}/cancelled\n'),
        ("scontrol", "#!/bin/sh\necho 'MaxArraySize = 1001'\n"),
    ):
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return state


def test_slurm_scripts_run_and_write_the_same_bytes(crawl, reference, tmp_path, slurm):
    workdir = tmp_path / "slurm"
    options = {"kind": "slurm", "partition": "cpu", "workers": 2, "memory_gb": 3, "options": ["account=me"]}
    run(small(crawl), workdir, **options)
    assert files_of(workdir / "crawl") == reference
    scripts = [path.read_text() for path in sorted(slurm.iterdir(), key=lambda path: int(path.name))]
    assert len(scripts) == 5  # clean, exact, bands, clusters, write
    assert all("#SBATCH --partition=cpu" in script and "#SBATCH --account=me" in script for script in scripts)
    assert all("#SBATCH --mem-per-cpu=3G" in script for script in scripts)
    assert "#SBATCH --array=0-2%2" in scripts[0]
    assert "#SBATCH --array=0-1%2" in scripts[2]
    assert all(f"--dependency=afterok:{number}" in script for number, script in enumerate(scripts[1:], 1))


def test_a_task_that_fails_is_named_with_its_log(crawl, tmp_path, slurm, monkeypatch):
    monkeypatch.setattr(executors, "_POLL_SECONDS", 0.1)
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
    assert (tmp_path / "cancelled").read_text() == "41\n"


def test_jobs_that_wait_are_explained_and_do_not_stay_queued(crawl, tmp_path, slurm, monkeypatch, caplog):
    monkeypatch.setattr(executors, "_POLL_SECONDS", 0.05)
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
    assert (tmp_path / "cancelled").read_text().split() == ["7"] * 5


def test_a_second_start_cancels_what_the_first_has_left(crawl, tmp_path, slurm):
    workdir = tmp_path / "out"
    record = plan_of(small(crawl), workdir=workdir).work / "logs" / executors._SLURM_RECORD
    record.parent.mkdir(parents=True)
    record.write_text('["11", "12"]')
    run(small(crawl), workdir, kind="slurm", partition="cpu")
    assert (tmp_path / "cancelled").read_text() == "11 12\n"


def test_any_path_reaches_the_nodes(crawl, reference, tmp_path, slurm):
    workdir = tmp_path / "a space" / "100%j" / 'it\'s "quoted"'
    run(small(crawl), workdir, kind="slurm", partition="cpu", workers=2)
    assert files_of(workdir / "crawl") == reference
    script = next(slurm.iterdir()).read_text()
    assert "a space/100%%j/it" in script


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
