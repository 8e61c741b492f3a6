"""Runs that are killed, stopped, moved to another mesh, cut off from their disk, or branched, and go on."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from launcher import TINY, error_of, read_rows, run_command
from processes import child_environment, start, wait, wait_until

from allam_jax.files import sha256_of_file
from allam_jax.training.load import load_model
from allam_jax.training.stored_checkpoints import list_steps, read_metadata, step_path

pytestmark = pytest.mark.slow


def steps_in(workdir):
    return list_steps(workdir / "checkpoints")


def is_saving(workdir):
    return any("checkpoint-tmp" in path.name for path in (workdir / "checkpoints").iterdir())


def start_and_wait_for_a_checkpoint(launcher, workdir, **overrides):
    before = max(steps_in(workdir), default=-1)
    process = launcher.start(workdir, **{"checkpoint.every": 2} | overrides)
    wait_until(lambda: max(steps_in(workdir), default=-1) > before, process=process)
    return process


def test_the_reference_exercises_what_it_should(reference):
    rows = read_rows(reference)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 41))
    assert [row["step"] for row in rows if "loss" not in row] == list(range(0, 41, 5))
    assert losses[-1] < 0.8 * losses[0]
    assert steps_in(reference) == [8, 16, 24, 32, 36, 40]
    assert all(np.isfinite(value) for row in rows for value in np.hstack(list(row.values())))


def test_the_same_config_and_seed_give_the_same_bits(launcher, reference, tmp_path):
    # A process with another seed of Python's hashes, and without the compilation cache: it compiles for itself.
    command = run_command(tmp_path / "again", config=f"{TINY}:{launcher.root}")
    assert wait(start([sys.executable, *command], environment=child_environment(PYTHONHASHSEED="1"))).status == 0
    assert read_rows(tmp_path / "again") == read_rows(reference)
    one, other = (load_model(workdir).params for workdir in (reference, tmp_path / "again"))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


# -- interruptions: each starts the run in `workdir` and ends it in a way of its own --------------------------------


def killed_while_it_compiles(launcher, workdir):
    process = launcher.start(workdir)
    wait_until((workdir / "metrics.jsonl").exists, process=process)
    kill(process)


def killed_while_it_saves(launcher, workdir):
    process = start_and_wait_for_a_checkpoint(launcher, workdir)
    wait_until(lambda: is_saving(workdir), process=process)
    kill(process)
    assert is_saving(workdir), "the kill did not tear a save: the test has shown nothing"


def killed_at_any_moment(launcher, workdir):
    process = start_and_wait_for_a_checkpoint(launcher, workdir)
    time.sleep(random.uniform(0, 0.1))
    kill(process)


def kill(process):
    assert process.poll() is None
    process.kill()
    assert wait(process).status == -signal.SIGKILL


def stopped_by_sigterm(launcher, workdir):
    stop_by(signal.SIGTERM, launcher, workdir)


def stopped_by_ctrl_c(launcher, workdir):
    stop_by(signal.SIGINT, launcher, workdir)


def stop_by(number, launcher, workdir):
    process = start_and_wait_for_a_checkpoint(launcher, workdir)
    process.send_signal(number)
    finished = wait(process)
    assert (finished.status, finished.out) == (128 + number, ""), finished.err
    last_line = finished.err.splitlines()[-1]
    assert last_line == (
        f"{number.name}: saved step {steps_in(workdir)[-1]} of 40; run the same command again to go on"
    )


def the_checkpoint_folder_disappears(launcher, workdir):
    process = start_and_wait_for_a_checkpoint(launcher, workdir)
    elsewhere = workdir.with_name("elsewhere")
    (workdir / "checkpoints").rename(elsewhere)
    assert "checkpoint folder has been removed" in error_of(wait(process))
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
    elsewhere.rename(workdir / "checkpoints")


def the_disk_refuses_to_write(launcher, workdir):
    process = start_and_wait_for_a_checkpoint(launcher, workdir)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))
    assert "file too large" in error_of(wait(process))
    assert steps_in(workdir)


INTERRUPTIONS = (
    killed_while_it_compiles,
    stopped_by_sigterm,
    killed_while_it_saves,
    the_checkpoint_folder_disappears,
    stopped_by_ctrl_c,
    the_disk_refuses_to_write,
    killed_at_any_moment,
)


def test_whatever_interrupts_it_the_curve_is_that_of_the_uninterrupted_run(launcher, reference, tmp_path):
    workdir = tmp_path / "run"
    for interrupt in INTERRUPTIONS:
        before = steps_in(workdir)[-1:]
        interrupt(launcher, workdir)
        assert steps_in(workdir)[-1:] >= before, interrupt
    newest = steps_in(workdir)[-1]
    last = launcher.run(workdir)
    assert last.status == 0, last.err
    assert f"resuming at step {newest} of 40" in last.err
    assert read_rows(workdir) == read_rows(reference)


def test_stopped_while_there_is_nothing_to_save(launcher, tmp_path):
    for number, last_line in (
        (signal.SIGTERM, "SIGTERM: nothing to save; run the same command again to go on"),
        (signal.SIGINT, "interrupted; run the same command again to go on"),
    ):
        workdir = tmp_path / f"run{number}"
        process = launcher.start(workdir)
        wait_until((workdir / "config.json").exists, process=process)
        process.send_signal(number)
        finished = wait(process)
        assert (finished.status, finished.err.splitlines()[-1]) == (128 + number, last_line)
        assert "Traceback" not in finished.err


@pytest.mark.long
def test_it_goes_on_on_another_mesh(launcher, reference, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(reference, workdir)
    for step in steps_in(workdir)[2:]:
        shutil.rmtree(step_path(workdir / "checkpoints", step))

    def newest_mesh():
        return list(read_metadata(step_path(workdir / "checkpoints", steps_in(workdir)[-1]))["mesh"].values())

    assert (steps_in(workdir), newest_mesh()) == ([8, 16], [1, 1, 1])
    process = start_and_wait_for_a_checkpoint(launcher, workdir, devices=4, **{"mesh.data": 1, "mesh.fsdp": 4})
    process.send_signal(signal.SIGTERM)
    assert wait(process).status == 128 + signal.SIGTERM
    assert newest_mesh() == [1, 4, 1]
    launcher.train(workdir, devices=4, **{"mesh.data": 2, "mesh.tensor": 2})
    assert newest_mesh() == [2, 1, 2]
    rows, expected = read_rows(workdir), read_rows(reference)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for actual_row, expected_row in zip(rows, expected, strict=True):
        assert actual_row.keys() == expected_row.keys()
        for key in ("loss", "learning_rate", "tokens", "eval/held_out/en/bits_per_byte"):
            if key in expected_row:
                np.testing.assert_allclose(
                    actual_row[key], expected_row[key], rtol=1e-5, err_msg=f"{key}, step {expected_row['step']}"
                )


def test_a_full_disk_keeps_a_checkpoint_to_go_on_from(launcher, reference, tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        workdir = tmp_path / "run"
        process = start_and_wait_for_a_checkpoint(launcher, workdir, **{"metrics.tensorboard": True})
        fill = subprocess.run(["dd", "if=/dev/zero", f"of={tmp_path}/filler", "bs=4k"], capture_output=True)
        assert b"No space left on device" in fill.stderr
        assert "no space left on device" in error_of(wait(process))
        assert steps_in(workdir)
        (tmp_path / "filler").unlink()
        launcher.train(workdir)
        assert read_rows(workdir) == read_rows(reference)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_wsd_branch_leaves_the_trunk_alone(launcher, reference, tmp_path):
    trunk, branch = reference, tmp_path / "branch"
    checkpoint = trunk / "checkpoints" / "16"
    before = {path: sha256_of_file(path) for path in sorted(trunk.rglob("*")) if path.is_file()}

    launcher.train(
        branch,
        **{
            "init.weights": checkpoint,
            "init.optimizer": True,
            "init.step": True,
            "init.data": True,
            "schedule.decay_start": 16,
            "schedule.decay_steps": 8,
            "train.steps": 24,
        },
    )
    assert {path: sha256_of_file(path) for path in sorted(trunk.rglob("*")) if path.is_file()} == before
    for step in steps_in(branch):
        metadata = read_metadata(step_path(branch / "checkpoints", step))
        assert metadata["parent"] == {"path": str(checkpoint), "step": 16}
    main = {row["step"]: row for row in read_rows(reference) if "loss" in row}
    rows = {row["step"]: row for row in read_rows(branch) if "loss" in row}
    assert list(rows) == list(range(17, 25))
    # The decay's first factor is 1: the losses of two steps are the trunk's, bit for bit. Then it goes its own way.
    assert [rows[step]["loss"] for step in (17, 18)] == [main[step]["loss"] for step in (17, 18)]
    assert rows[19]["loss"] != main[19]["loss"]
    rates = [rows[step]["learning_rate"] for step in rows]
    np.testing.assert_allclose(rates, 3e-3 * (1 - np.sqrt(np.arange(8) / 8)), rtol=1e-6)
    # Up to the branch the schedule was the trunk's: a warm-up of 3 steps that begins above 0, then constant.
    trunk_rates = [main[step]["learning_rate"] for step in range(1, 17)]
    np.testing.assert_allclose(trunk_rates, [3e-3 * min(1, (n + 1) / 4) for n in range(16)], rtol=1e-6)


def test_a_branch_may_leave_out_a_source_of_its_parent(launcher, reference, tmp_path):
    config = tmp_path / "english.py"
    config.write_text(
        "from tests.tasks import tiny\n\ndef get_config(root):\n"
        "    config = tiny.get_config(root)\n    del config.data.sources['ar']\n    return config\n"
    )
    checkpoint = reference / "checkpoints" / "24"
    branch = tmp_path / "branch"
    kept = {"init.optimizer": True, "init.step": True, "init.data": True, "train.steps": 28}
    launcher.train(
        branch, config=f"{config}:{launcher.root}", **{"init.weights": checkpoint, "schedule.name": "constant"} | kept
    )
    before, after = (read_metadata(path)["tokens_by_source"] for path in (checkpoint, branch / "checkpoints" / "28"))
    # Four steps of 8 rows of 32 positions, all English; what was read of Arabic before stays in the count.
    trained = [row["tokens"] for row in read_rows(branch) if "loss" in row]
    assert len(trained) == 4
    assert after == {"en": before["en"] + sum(trained), "ar": before["ar"]}
    assert before["ar"] > 0


@pytest.mark.long
def test_an_average_of_the_weights_goes_on_with_the_run(launcher, tmp_path):
    kept = {"optimizer.average_decay": 0.9, "schedule.name": "constant", "eval.every": 4, "checkpoint.every": 0}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    launcher.train(whole, **kept | {"train.steps": 8})
    for steps in (4, 8):
        launcher.train(parts, **kept | {"train.steps": steps})
    rows = read_rows(whole)
    assert rows == read_rows(parts)
    scores = {row["step"]: row for row in rows if "loss" not in row}
    live, average = (
        [scores[step][f"eval/{suite}/en/bits_per_byte"] for step in (0, 4, 8)]
        for suite in ("held_out", "held_out_average")
    )
    assert live[0] == average[0]
    assert live[1:] != average[1:]
    one, other = (load_model(workdir / "average").params for workdir in (whole, parts))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()

    # A branch that trains other parameters has other moments; it takes the step and the data, not these.
    branch = tmp_path / "branch"
    taken = {"init.weights": whole, "init.step": True, "init.data": True, "trainable.parameters": '("embedding",)'}
    launcher.train(branch, **taken | {"train.steps": 10, "schedule.name": "constant"})
    assert [row["step"] for row in read_rows(branch) if "loss" in row] == [9, 10]
    before, after = (load_model(workdir).params for workdir in (whole, branch))
    same = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), before, after)
    assert not same["embedding"].pop("table")
    assert all(jax.tree.leaves(same))
    before, after = (read_metadata(step_path(run / "checkpoints", step)) for run, step in ((whole, 8), (branch, 10)))
    assert all(after["tokens_by_source"][name] > count > 0 for name, count in before["tokens_by_source"].items())
