"""A run that changes its mixture half way, from tokens and from text, killed before, at and after the change."""

import shutil

import pytest
from launcher import read_rows
from processes import wait, wait_until

from allam_jax.data.token_writer import write_tokens
from allam_jax.tokenizer.tokenizer import Tokenizer
from allam_jax.training.stored_checkpoints import list_steps, read_metadata, step_path

pytestmark = pytest.mark.slow

SWITCH, STEPS = 6, 12
MID = "from configs import base\nfrom tests.tasks import tiny\n\n\n" + (
    "def get_config(root):\n"
    "    config = tiny.get_config(root)\n"
    f"    config.data.phases.mid = base.phase(from_step={SWITCH}, ar=0.75, en=0.25)\n"
    f"    config.train.steps = {STEPS}\n"
    "    config.eval.every = 0\n"
    "    config.schedule.decay_steps = 4\n"
    f"    config.schedule.decay_start = {STEPS - 4}\n"
    "    config.checkpoint.update(every=1, keep_last=20, keep_every=0)\n"
    "    return config\n"
)


@pytest.mark.long
def test_killed_before_at_and_after_the_change(launcher, tmp_path):
    (tmp_path / "mid.py").write_text(MID)
    text = f"{tmp_path / 'mid.py'}:{launcher.root}"
    launcher.train(tmp_path / "whole", config=text)
    expected = read_rows(tmp_path / "whole")
    training = [row for row in expected if "loss" in row]
    assert [(row["phase"], row["mixture/ar"]) for row in training] == [(0, 1 / 3)] * SWITCH + [(1, 0.75)] * SWITCH

    cached = {}
    for name in ("en", "ar"):
        tokens = {"split": "train", "tokenizer": Tokenizer.load(launcher.root / "tokenizer")}
        write_tokens(launcher.root / "corpus" / name, directory=tmp_path / name, **tokens)
        cached[f"data.sources.{name}.path"] = tmp_path / name
    run = tmp_path / "killed"
    for number, step in enumerate((SWITCH - 2, SWITCH, SWITCH + 2)):
        # By turns from text and from tokens: a run may change over.
        process = launcher.start(run, config=text, **(cached if number % 2 else {}))
        wait_until(lambda step=step: max(list_steps(run / "checkpoints"), default=-1) >= step, process=process)
        process.kill()
        wait(process)
        for later in list_steps(run / "checkpoints"):
            if later > step:  # as if it had been killed right then
                shutil.rmtree(step_path(run / "checkpoints", later))
        assert list_steps(run / "checkpoints")[-1] == step
    launcher.train(run, config=text, **cached)
    assert read_rows(run) == expected
    whole, killed = (read_metadata(step_path(path / "checkpoints", STEPS)) for path in (tmp_path / "whole", run))
    assert killed["tokens_by_source"] == whole["tokens_by_source"]
    # Rows of 32 tokens, 8 a step: 48 at one third of Arabic, 48 at three quarters, within a few rows a lane.
    assert abs(whole["tokens_by_source"]["ar"] / 32 - (48 / 3 + 48 * 3 / 4)) < 16
