"""What the task train says of a run."""

import json
import statistics

import pytest
from launcher import read_rows

pytestmark = pytest.mark.slow


def test_speed_does_not_depend_on_how_often_it_is_logged(launcher, tmp_path):
    short = {"train.steps": 12, "schedule.name": "constant", "eval.every": 0}
    result = launcher.train(tmp_path / "run", **{"train.log_every": 4} | short)
    assert [row["step"] for row in read_rows(tmp_path / "run") if "loss" in row] == [4, 8, 12]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rates = [row["tokens_per_second"] for row in map(json.loads, lines) if "loss" in row]
    assert result["tokens_per_second"] == statistics.median(rates)
