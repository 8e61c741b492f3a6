"""Reports: the numbers and links that a reader finds in them."""

import json
import re

import jax
import pytest

from allam_jax.errors import UserError
from allam_jax.training import run_report


def write_metrics(workdir, rows):
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def workdir(tmp_path):
    rows = [{"step": 0, "eval/held_out/en/bits_per_byte": 4.0, "eval/held_out/ar/bits_per_byte": 5.0}]
    for step in range(1, 21):
        row = {"step": step, "loss": 8.0 / step, "grad_norm": 1.0 / step, "learning_rate": 3e-4}
        rows.append(row | {"tokens_per_second": 1.0 if step == 1 else 2000.0 + step})
    rows.append({"step": 20, "eval/held_out/en/bits_per_byte": 3.0, "eval/held_out/ar/bits_per_byte": 2.5})
    write_metrics(tmp_path, rows)
    return tmp_path


def cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def table_under(text, heading):
    lines = text.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    return [cells(line) for line in lines if line.startswith("|")]


def test_run_report_shows_the_last_values_and_the_change(workdir):
    path = run_report.write_run_report(
        workdir, command="python run.py --config c.py", seconds=185.0, parameters=3_200_000
    )
    text = path.read_text(encoding="utf-8")
    assert path == workdir / "report.md"
    assert "```sh\npython run.py --config c.py\n```" in text
    assert table_under(text, "Training")[2] == ["20", "0.4000", "0.05000", "0.0003", "2,010"]
    assert table_under(text, "Bits per byte")[2:] == [
        ["English", "0", "4.000", "20", "3.000", "-25.0 %"],
        ["Arabic", "0", "5.000", "20", "2.500", "-50.0 %"],
    ]
    assert ["Parameters", "3,200,000"] in table_under(text, "Run")
    environment = dict(table_under(text, "Environment")[2:])
    assert environment["jax"] == jax.__version__
    assert environment["Wall-clock time"] == "3 min 05 s"
    assert environment["Devices"].startswith(f"{jax.device_count()} × ")


def test_every_linked_figure_exists_and_is_a_png(workdir):
    text = run_report.write_run_report(workdir, command="x", seconds=1.0, parameters=1).read_text(encoding="utf-8")
    links = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(links) == 2
    for link in links:
        assert (workdir / link).read_bytes().startswith(b"\x89PNG")


def test_a_single_evaluation_is_no_curve(workdir):
    training = {"step": 9, "loss": 2.0, "grad_norm": 1.0, "learning_rate": 0.1}
    write_metrics(workdir, [training, {"step": 9, "eval/held_out/en/bits_per_byte": 3.0}])
    text = run_report.write_run_report(workdir, command="x", seconds=1.0, parameters=1).read_text(encoding="utf-8")
    assert table_under(text, "Bits per byte") == [
        ["Language", "Step", "Bits/byte"],
        ["---", "---:", "---:"],
        ["English", "9", "3.000"],
    ]
    assert "bits_per_byte.png" not in text
    assert not (workdir / "figures" / "bits_per_byte.png").exists()


def test_a_run_without_evaluations_has_no_such_section(workdir):
    write_metrics(workdir, [{"step": 1, "loss": 2.0, "grad_norm": 1.0, "learning_rate": 0.1}])
    text = run_report.write_run_report(workdir, command="x", seconds=1.0, parameters=1).read_text(encoding="utf-8")
    assert "Bits per byte" not in text
    assert table_under(text, "Training")[2] == ["1", "2.000", "1.000", "0.1000", "–"]


def test_the_report_comes_from_the_metrics_and_nothing_is_left_behind(workdir):
    run_report.write_run_report(workdir, command="x", seconds=1.0, parameters=1)
    run_report.write_run_report(workdir, command="x", seconds=1.0, parameters=1)
    assert sorted(str(p.relative_to(workdir)) for p in workdir.rglob("*") if p.is_file()) == [
        "figures/bits_per_byte.png",
        "figures/training.png",
        "metrics.jsonl",
        "report.md",
    ]


def test_missing_metrics_are_named(tmp_path):
    with pytest.raises(UserError, match="metrics.jsonl"):
        run_report.write_run_report(tmp_path, command="x", seconds=1.0, parameters=1)
    assert list(tmp_path.iterdir()) == []


def test_curves_collect_each_language():
    rows = [
        {"step": 1, "loss": 1},
        {"step": 2, "eval/held_out/en/bits_per_byte": 2.0},
        {"step": 4, "eval/held_out/en/bits_per_byte": 1.5},
    ]
    rows.append({"step": 4, "eval/held_out/ar/bits_per_byte": 9.0, "eval/held_out/ar/other": 1.0})
    assert run_report.evaluation_curves(rows) == {"en": [(2, 2.0), (4, 1.5)], "ar": [(4, 9.0)]}
