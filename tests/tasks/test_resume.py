"""Runs that are killed, stopped, moved to another mesh, cut off from their disk, or branched, and go on."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from launcher import error_of, read_rows, wait, wait_until

from allam_jax.files import sha256_of_file
from allam_jax.training.checkpoints import list_steps, read_metadata, step_path
from allam_jax.training.load import load_model

pytestmark = pytest.mark.slow


def steps_in(workdir):
    return list_steps(workdir / "checkpoints")


def is_saving(workdir):
    return any("checkpoint-tmp" in path.name for path in (workdir / "checkpoints").iterdir())


def start_and_wait_for_a_checkpoint(launcher, workdir, **overrides):
    before = max(steps_in(workdir), default=-1)
    process = launcher.start(workdir, **overrides)
    wait_until(lambda: max(steps_in(workdir), default=-1) > before, process=process)
    return process


def test_the_reference_exercises_what_it_should(reference):
    rows = read_rows(reference)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 41))
    assert [row["step"] for row in rows if "loss" not in row] == list(range(0, 41, 5))
    assert losses[-1] < 0.8 * losses[0]
    assert steps_in(reference) == [8, 16, 24, 32, 38, 40]
    assert all(np.isfinite(value) for row in rows for value in np.hstack(list(row.values())))


def test_the_same_config_and_seed_give_the_same_bits(launcher, reference, tmp_path):
    # Without the compilation cache: this run compiles for itself.
    launcher.train(tmp_path / "again", environment={"JAX_ENABLE_COMPILATION_CACHE": "false"})
    assert read_rows(tmp_path / "again") == read_rows(reference)
    one, other = (load_model(workdir).params for workdir in (reference, tmp_path / "again"))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_killed_five_times_the_curve_is_that_of_the_uninterrupted_run(launcher, reference, tmp_path):
    workdir = tmp_path / "run"
    torn_saves = 0
    for moment in ("compiling", "saving", "any", "saving", "any"):
        if moment == "compiling":
            process = launcher.start(workdir)
            wait_until((workdir / "metrics.jsonl").exists, process=process)
        else:
            process = start_and_wait_for_a_checkpoint(launcher, workdir)
        if moment == "saving":
            wait_until(lambda: is_saving(workdir), process=process)
        else:
            time.sleep(random.uniform(0, 0.2))
        assert process.poll() is None
        process.kill()
        assert wait(process).status == -signal.SIGKILL
        torn_saves += is_saving(workdir)
    assert torn_saves
    launcher.train(workdir)
    assert read_rows(workdir) == read_rows(reference)


def test_stopped_by_signals_it_saves_and_goes_on(launcher, reference, tmp_path):
    workdir = tmp_path / "run"
    process = launcher.start(workdir)
    wait_until(lambda: read_rows(workdir), process=process)
    process.send_signal(signal.SIGTERM)
    first = wait(process)
    process = start_and_wait_for_a_checkpoint(launcher, workdir)
    process.send_signal(signal.SIGINT)
    second = wait(process)
    for finished, name in ((first, "SIGTERM"), (second, "SIGINT")):
        assert finished.status == 0, finished.err
        assert finished.out == ""
        last_line = finished.err.splitlines()[-1]
        assert re.fullmatch(rf"{name}: saved step \d+ of 40; run the same command again to go on", last_line)
    assert f"resuming at step {re.search(r'saved step ([0-9]+)', first.err)[1]} of 40" in second.err
    launcher.train(workdir)
    assert read_rows(workdir) == read_rows(reference)


def test_stopped_while_there_is_nothing_to_save(launcher, tmp_path):
    for number, status, last_line in (
        (signal.SIGTERM, 0, "SIGTERM: nothing to save; run the same command again to go on"),
        (signal.SIGINT, 2, "error: interrupted; run the same command again to go on"),
    ):
        workdir = tmp_path / f"run{number}"
        process = launcher.start(workdir)
        wait_until((workdir / "config.json").exists, process=process)
        process.send_signal(number)
        finished = wait(process)
        assert (finished.status, finished.err.splitlines()[-1]) == (status, last_line)
        assert "Traceback" not in finished.err


def stop(process):
    process.send_signal(signal.SIGTERM)
    finished = wait(process)
    assert finished.status == 0, finished.err


def test_it_goes_on_on_another_mesh(launcher, reference, tmp_path):
    workdir = tmp_path / "run"

    def newest_mesh():
        return list(read_metadata(step_path(workdir / "checkpoints", steps_in(workdir)[-1]))["mesh"].values())

    stop(start_and_wait_for_a_checkpoint(launcher, workdir))
    assert newest_mesh() == [1, 1, 1]
    stop(start_and_wait_for_a_checkpoint(launcher, workdir, devices=4, **{"mesh.data": 1, "mesh.fsdp": 4}))
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


def test_what_the_disk_refuses_is_one_line_and_can_be_mended(launcher, reference, tmp_path):
    workdir = tmp_path / "run"
    process = start_and_wait_for_a_checkpoint(launcher, workdir)
    (workdir / "checkpoints").rename(tmp_path / "elsewhere")
    assert "checkpoint folder has been removed" in error_of(wait(process))
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
    (tmp_path / "elsewhere").rename(workdir / "checkpoints")

    process = start_and_wait_for_a_checkpoint(launcher, workdir)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))
    assert "file too large" in error_of(wait(process))
    assert steps_in(workdir)

    launcher.train(workdir)
    assert read_rows(workdir) == read_rows(reference)


def test_a_full_disk_keeps_a_checkpoint_to_go_on_from(launcher, reference, tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        workdir = tmp_path / "run"
        process = start_and_wait_for_a_checkpoint(launcher, workdir)
        fill = subprocess.run(["dd", "if=/dev/zero", f"of={tmp_path}/filler", "bs=4k"], capture_output=True)
        assert b"No space left on device" in fill.stderr
        assert "no space left on device" in error_of(wait(process))
        assert steps_in(workdir)
        (tmp_path / "filler").unlink()
        launcher.train(workdir)
        assert read_rows(workdir) == read_rows(reference)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_wsd_branch_and_the_return_to_the_trunk(launcher, reference, tmp_path):
    trunk, branch = tmp_path / "trunk", tmp_path / "branch"
    process = launcher.start(trunk)
    wait_until(lambda: max(steps_in(trunk), default=0) >= 18, process=process)
    stop(process)
    checkpoint = trunk / "checkpoints" / "00000016"
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

    launcher.train(trunk)
    assert read_rows(trunk) == read_rows(reference)


def test_a_branch_may_leave_out_a_source_of_its_parent(launcher, reference, tmp_path):
    config = tmp_path / "english.py"
    config.write_text(
        "from tests.tasks import tiny\n\ndef get_config(root):\n"
        "    config = tiny.get_config(root)\n    del config.data.sources['ar']\n    return config\n"
    )
    checkpoint = reference / "checkpoints" / "00000024"
    branch = tmp_path / "branch"
    kept = {"init.optimizer": True, "init.step": True, "init.data": True, "train.steps": 28}
    launcher.train(
        branch, config=f"{config}:{launcher.root}", **{"init.weights": checkpoint, "schedule.name": "constant"} | kept
    )
    before, after = (
        read_metadata(path)["tokens_by_source"] for path in (checkpoint, branch / "checkpoints" / "00000028")
    )
    # Four steps of 8 rows of 32 positions, all English; what was read of Arabic before stays in the count.
    trained = [row["tokens"] for row in read_rows(branch) if "loss" in row]
    assert len(trained) == 4
    assert after == {"en": before["en"] + sum(trained), "ar": before["ar"]}
    assert before["ar"] > 0
