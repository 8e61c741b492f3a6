"""What is made of the answers of Slurm's commands, played by small scripts."""

import pytest

from allam_jax import slurm_queue
from allam_jax.errors import UserError
from allam_jax.slurm_queue import Entry, cancel, max_array_size, refusal, states


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Puts a shell script on the path."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def put(name, script):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)

    return put


def test_states_have_reasons_and_a_job_that_is_not_listed_is_gone(command, tmp_path):
    command("squeue", f"echo \"$@\" > {tmp_path}/asked; printf '7_0|PENDING|Resources\\n7_1|TIMEOUT|TimeLimit\\n'")
    found = states(["7_0", "7_1", "9"])
    assert found == {
        "7_0": Entry("7_0", "PENDING", "Resources"),
        "7_1": Entry("7_1", "TIMEOUT", "TimeLimit"),
        "9": Entry("9", "GONE"),
    }
    assert [found[one].queued for one in ("7_0", "7_1", "9")] == [True, False, False]
    assert found["7_0"].describe() == "pending: Resources"
    assert "--jobs=7,9" in (tmp_path / "asked").read_text()
    assert states([]) == {}


def test_one_job_that_slurm_has_forgotten_is_gone(command):
    command("squeue", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    assert states(["7"]) == {"7": Entry("7", "GONE")}


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1',
            "squeue failed: slurm_load_jobs error: Unable to contact slurm controller",
        ),
        ("exit 3", "squeue failed: status 3"),
        ("sleep 20", "squeue has not answered within 1 s"),
    ],
)
def test_no_answer_is_not_an_empty_queue(command, monkeypatch, script, words):
    monkeypatch.setattr(slurm_queue, "_SECONDS", 1)
    command("squeue", script)
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        states(["7"])


def test_without_slurm_it_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="squeue is not on the path"):
        states(["7"])
    assert max_array_size() == 1


def test_the_limit_of_arrays_is_that_of_the_cluster(command):
    command("scontrol", "printf 'MaxArraySize            = 6\\nMaxDBDMsgs = 20\\n'")
    assert max_array_size() == 6


def test_a_refusal_is_one_line_in_slurms_own_words():
    said = (
        "Could not run command\nsbatch: error: invalid partition specified: gpux\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
    )
    assert refusal(said) == (
        "invalid partition specified: gpux; Batch job submission failed: Invalid partition name specified"
    )


def test_jobs_that_have_ended_can_be_cancelled_again(command):
    command("scancel", 'echo "scancel: error: Kill job error on job id 7: Invalid job id specified" >&2; exit 1')
    cancel(["7"])
    cancel([])
