"""Reports: the numbers and links that a reader finds in them."""

import json
import re
from pathlib import Path

import jax
import pytest

from allam_jax.errors import UserError
from allam_jax.evaluation import report


def write_metrics(workdir, rows):
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def workdir(tmp_path):
    rows = [{"step": 0, "eval/en/bits_per_byte": 4.0, "eval/ar/bits_per_byte": 5.0}]
    for step in range(1, 21):
        row = {"step": step, "loss": 8.0 / step, "grad_norm": 1.0 / step, "learning_rate": 3e-4}
        rows.append(row | {"tokens_per_second": 1.0 if step == 1 else 2000.0 + step})
    rows.append({"step": 20, "eval/en/bits_per_byte": 3.0, "eval/ar/bits_per_byte": 2.5})
    write_metrics(tmp_path, rows)
    return tmp_path


def cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def table_under(text, heading):
    lines = text.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    return [cells(line) for line in lines if line.startswith("|")]


def test_run_report_shows_the_last_values_and_the_change(workdir):
    path = report.write_run_report(workdir, command="python run.py --config c.py", seconds=185.0, parameters=3_200_000)
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
    text = report.write_run_report(workdir, command="x").read_text(encoding="utf-8")
    links = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(links) == 2
    for link in links:
        assert (workdir / link).read_bytes().startswith(b"\x89PNG")


def test_a_run_without_evaluations_has_no_such_section(workdir):
    write_metrics(workdir, [{"step": 1, "loss": 2.0, "grad_norm": 1.0, "learning_rate": 0.1}])
    text = report.write_run_report(workdir, command="x").read_text(encoding="utf-8")
    assert "Bits per byte" not in text
    assert table_under(text, "Training")[2] == ["1", "2.000", "1.000", "0.1000", "–"]


def test_the_report_comes_from_the_metrics_and_nothing_is_left_behind(workdir):
    report.write_run_report(workdir, command="x")
    report.write_run_report(workdir, command="x")
    assert sorted(str(p.relative_to(workdir)) for p in workdir.rglob("*") if p.is_file()) == [
        "figures/bits_per_byte.png",
        "figures/training.png",
        "metrics.jsonl",
        "report.md",
    ]


def test_missing_metrics_are_named(tmp_path):
    with pytest.raises(UserError, match="metrics.jsonl"):
        report.write_run_report(tmp_path, command="x")
    assert list(tmp_path.iterdir()) == []


def test_curves_collect_each_language():
    rows = [
        {"step": 1, "loss": 1},
        {"step": 2, "eval/en/bits_per_byte": 2.0},
        {"step": 4, "eval/en/bits_per_byte": 1.5},
    ]
    rows.append({"step": 4, "eval/ar/bits_per_byte": 9.0, "eval/ar/other": 1.0})
    assert report.evaluation_curves(rows) == {"en": [(2, 2.0), (4, 1.5)], "ar": [(4, 9.0)]}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (0.0, "0"),
        (7690, "7,690"),
        (1.3684999, "1.368"),
        (2.0, "2.000"),
        (999.96, "1,000"),
        (1234.6, "1,235"),
        (123_456.7, "123,457"),
        (0.02, "0.02000"),
        (3e-5, "3e-05"),
        (-0.5, "-0.5000"),
        (12_345_678.0, "12,345,678"),
        (1.5e20, "1.5e+20"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (True, "True"),
        ("as it is", "as it is"),
    ],
)
def test_numbers(value, text):
    assert report.number(value) == text


def test_table_keeps_its_shape_whatever_is_in_it():
    rows = [{"name": "a|b\nc", "value": 1.0}, {"name": "d"}]
    lines = report.table(rows, {"name": "Name", "value": "Value"}).splitlines()
    assert [cells(line) for line in lines] == [
        ["Name", "Value"],
        ["---", "---:"],  # text to the left, numbers to the right
        [r"a\|b c", "1.000"],
        ["d", "–"],
    ]


def test_columns_may_be_keys():
    assert report.table([{"b": 1, "a": 2}], ["a", "b"]).splitlines()[0] == "| a | b |"


def test_figure_links_are_relative_to_the_report():
    block = report.figure(Path("/w/stage one/figures/x.png"), caption="A [1] curve.", report=Path("/w/report.md"))
    assert block == "![A (1) curve.](stage%20one/figures/x.png)\n\n*A [1] curve.*"


def test_sections_are_apart():
    assert report.section("Title", "one\n", "two", level=3) == "### Title\n\none\n\ntwo"


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.21, "4.2 s"), (59.97, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")]
)
def test_durations(seconds, text):
    assert report.duration(seconds) == text
