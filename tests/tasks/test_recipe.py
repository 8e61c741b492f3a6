"""Recipes: stages in order, finished ones skipped, unfinished ones gone on with."""

import signal

import pytest
from launcher import error_of, read_rows
from processes import ROOT, wait, wait_until

from allam_jax.training.stored_checkpoints import list_steps

pytestmark = pytest.mark.slow

STAGES = ["corpus", "tokenizer", "train", "export"]


@pytest.fixture(scope="module")
def recipe(launcher):
    return f"{ROOT}/tests/tasks/tiny_recipe.py:{launcher.root}"


def results(workdir):
    return {stage: (workdir / stage / "result.json").read_bytes() for stage in STAGES}


def test_killed_half_way_it_goes_on_and_finished_stages_are_skipped(launcher, recipe, tmp_path):
    workdir = tmp_path / "run"
    process = launcher.start(workdir, config=recipe)
    wait_until(lambda: list_steps(workdir / "train" / "checkpoints"), process=process)
    process.kill()
    assert wait(process).status == -signal.SIGKILL
    assert not (workdir / "train" / "result.json").exists()

    second = launcher.run(workdir, config=recipe)
    assert second.status == 0, second.err
    for number, stage in enumerate(STAGES[:2], start=1):
        assert f"stage {number}/4 {stage}: already finished, skipped" in second.err
    assert "resuming at step" in second.err
    assert [row["step"] for row in read_rows(workdir / "train") if "loss" in row] == list(range(1, 41))
    assert (workdir / "export" / "huggingface" / "config.json").is_file()

    finished = results(workdir)
    third = launcher.run(workdir, config=recipe)
    assert third.status == 0, third.err
    assert third.err.count("already finished, skipped") == 4
    assert third.result == second.result
    assert results(workdir) == finished

    changed = launcher.run(workdir, config=recipe, **{"stage.train.train.steps": 41})
    assert error_of(changed).startswith(f"{workdir}/train was finished with another config (train.steps: 40 -> 41)")
    assert results(workdir) == finished


def test_one_stage_alone(launcher, recipe, tmp_path):
    workdir = tmp_path / "run"
    error = error_of(launcher.run(workdir, config=recipe, flag_stage="tokenizer"))
    assert error == f"--stage tokenizer needs stage 'corpus', which has not finished in {workdir}"
    assert not workdir.exists()
    assert launcher.train(workdir, config=recipe, flag_stage="corpus")["en"]["train"]["documents"] > 250
    assert launcher.train(workdir, config=recipe, flag_stage="tokenizer")["vocab_size"] == 384
    assert not (workdir / "train").exists()
