"""The flags of sweeps, before absl parses them."""

import pytest

from allam_jax.files import write_json
from allam_jax.launch.flags import prepare
from allam_jax.launch.sweep import RECORD

STARTED_WITH = ["--config=c.py", "--set=a.b=1", "--set=c=2", "--config.train.steps=3", "--store=/s"]


@pytest.mark.parametrize("flag", ["--status", "--collect"])
@pytest.mark.parametrize(
    ("given", "added"),
    [
        ([], STARTED_WITH),
        (["--config=c.py"], STARTED_WITH[1:]),
        (["--set", "a.b=7"], [arg for arg in STARTED_WITH if not arg.startswith("--set")]),
        (["--config=d.py", "--config.train.steps=5", "--store=/t"], ["--set=a.b=1", "--set=c=2"]),
    ],
)
def test_what_a_sweep_was_started_with_need_not_be_said_again(tmp_path, flag, given, added):
    write_json(tmp_path / RECORD, {"arguments": STARTED_WITH})
    argv = ["run.py", "--sweep=experiments/x.py", f"--workdir={tmp_path}", flag, *given]
    assert prepare(argv) == argv + added


def test_another_start_states_all_itself(tmp_path):
    write_json(tmp_path / RECORD, {"arguments": STARTED_WITH})
    argv = ["run.py", "--sweep=experiments/x.py", f"--workdir={tmp_path}", "--dry-run", "--config=c.py"]
    assert prepare(argv) == [*argv[:3], "--dry_run", "--config=c.py"]
