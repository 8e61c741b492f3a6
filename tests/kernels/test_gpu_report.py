"""The report for a GPU, with tiny shapes on a CPU: every part, its own truth, and what ends a part early."""

import json
import time

import jax.numpy as jnp
import numpy as np
import pytest

from kernels.workshop import gpu_report, truth
from kernels.workshop.cases import Case
from kernels.workshop.measure import PartOptions
from tests.kernels.attention_truth import cotangents, in_float64


@pytest.mark.slow
@pytest.mark.long
def test_every_part_of_the_report_runs_on_a_cpu(tmp_path):
    assert gpu_report.main(["--out", str(tmp_path), "--minutes", "9", "--tiny"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    parts = {part["part"]: part for part in report["parts"]}
    assert list(parts) == list(gpu_report.PARTS)
    assert "tiny shapes" in report["shapes"]
    for name, part in parts.items():
        no_torch = name == "torch" and "No module named" in part["status"]  # optional: said, not fatal
        if name in ("triton", "mosaic"):  # nothing here can run them, and each piece says so
            assert part["status"] == "nothing ran: every piece was refused"
            assert all("not cpu" in record["refused"] for record in part["records"])
            continue
        assert part["status"] == "done" or no_torch, part
    assert parts["machine"]["records"][0]["platform"] == "cpu"
    others = parts["others"]["records"]
    assert [r["right"] for r in others if r["backend"] in ("xla", "xla_chunked")] == [True] * 8
    assert all("refused" in r for r in (*others, *parts["triton"]["records"]) if r["backend"] in ("triton", "cudnn"))
    timed = [r for r in parts["times"]["records"] if r["subject"] == "xla_chunked"]
    assert {r["passes"] for r in timed} == {"forward", "forward and backward"}
    assert all(r["milliseconds"] > 0 for r in timed)
    step, memory, profile = parts["step"]["records"]
    assert abs(step["first loss"] - np.log(4096)) < 0.5  # of random weights over a vocabulary of 4,096
    assert step["last loss"] < step["first loss"]
    assert step["tokens/s"] == pytest.approx(2 * 32 / step["median s"])
    assert 0.5 < memory["planner's estimate"] / memory["compiler's count"] < 2
    assert list((tmp_path / "profile").rglob("*.xplane.pb")), profile
    page = (tmp_path / "report.md").read_text()
    assert all(part.title in page for part in gpu_report.PARTS.values())


@pytest.mark.parametrize(
    "case",
    [
        Case("grouped, dropping", 2, 40, 4, 2, 8, documents=(20, 15), dropout_rate=0.3),
        Case("padded in front", 1, 37, 2, 2, 8, documents=(30,), padded_in_front=True),
    ],
    ids=lambda case: case.name,
)
def test_the_report_measures_errors_from_the_truth(case):
    for actual, expected in zip(
        truth.in_float64(case, *case.arrays(), *cotangents(case)), in_float64(case), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)


def test_an_error_is_relative_to_the_largest_true_value():
    true = truth.Results(*(np.array([2.0, -4.0]) for _ in range(5)))
    wrong = true._replace(dk=np.array([2.0, -3.0]), dv=np.array([np.nan, -4.0]))
    errors = dict(truth.relative_errors(wrong, true))
    assert (errors["out"], errors["dk"]) == (0.0, 0.25)
    assert not errors["dv"] <= 1.0  # NaN is never right


def test_a_part_that_raises_keeps_what_it_had(tmp_path):
    def run(options):
        yield {"seen": 1}
        raise ValueError("broken kernel")

    part = gpu_report.ReportPart("broken", "", 1.0, run)
    options = PartOptions(small=True, folder=tmp_path, deadline=time.monotonic() + 60)
    assert gpu_report.run_part(part, options) == 1
    assert (tmp_path / "broken.jsonl").read_text() == '{"seen": 1}\n'


def test_a_part_is_cut_when_its_time_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_report, "SHORTEST", 0.0)
    started = time.monotonic()
    (tmp_path / "step.jsonl").write_text('{"from": "an earlier report"}\n')
    result = gpu_report._in_process(gpu_report.PARTS["step"], tmp_path, 0.5, small=True)  # importing takes longer
    assert result["status"].startswith("cut")
    assert result["records"] == []
    assert time.monotonic() - started < 10
    monkeypatch.undo()
    assert "no time" in gpu_report._in_process(gpu_report.PARTS["step"], tmp_path, 0.5, small=True)["status"]


def test_records_of_another_kind_start_another_table(tmp_path):
    records = [{"a": 1.23456}, {"a": None}, {"b": "x|y"}]
    results = [{"part": "p", "title": "Title", "status": "done", "seconds": 1.0, "records": records}]
    gpu_report._write(tmp_path, results, small=False, minutes=8)
    page = (tmp_path / "report.md").read_text()
    assert "| a |\n| ---: |\n| 1.235 |\n| – |\n\n| b |\n| --- |\n| x\\|y |\n" in page
    assert jnp.allclose(json.loads((tmp_path / "report.json").read_text())["parts"][0]["records"][0]["a"], 1.23456)
