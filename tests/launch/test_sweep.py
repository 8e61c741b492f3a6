"""Sweeps from the command line, with real runs: killed, stopped, broken, extended, collected."""

import json
import re
import signal
import statistics

import pytest
from processes import ROOT, wait, wait_until
from pyarrow import parquet
from sweeper import kill_tree, metrics_of

pytestmark = pytest.mark.slow

RUNS = [f"peak_lr-{rate}--seed-{seed}" for rate in (0.0001, 0.003) for seed in (0, 1)]
BITS = "eval/held_out/en/bits_per_byte"


def results(workdir):
    """result.json of every stage of the store, with the time of its writing."""
    return {path.parent.name: path.stat().st_mtime_ns for path in workdir.parent.glob("stages/*/result.json")}


def trained(workdir):
    return {run: metrics_of(workdir / "runs" / run / "train") for run in RUNS}


def attempts(workdir):
    return {path.stem: json.loads(path.read_text())["attempts"] for path in (workdir / "jobs").glob("*.json")}


def training(workdir):
    """Names of the runs that have a checkpoint and have not finished."""
    complete = [p for p in workdir.parent.glob("stages/train-*/checkpoints/*") if p.name.isdigit()]
    stages = [path.parents[1] for path in complete]
    return {stage for stage in stages if not (stage / "result.json").exists()}


def test_a_sweep_ends_with_its_results(finished):
    workdir, out, err = finished
    last = json.loads(out.splitlines()[-1])
    assert (last["runs"], last["finished"]) == (4, 4)
    report = (workdir / "collected" / "report.md").read_text()
    assert f"**Verdict: {last['verdict']}**" in report
    for name in ("curves", "dots"):
        assert f"(figures/{name}.png)" in report
        assert (workdir / "collected" / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert re.findall("start ([^ ]+)", err)[0].startswith("shared-corpus-to-tokenizer-")
    # Shared stages are there once; every run has links to all of its own.
    assert sorted(name.rpartition("-")[0] for name in results(workdir)) == ["corpus", "tokenizer"] + ["train"] * 4
    for run in RUNS:
        assert (workdir / "runs" / run / "train" / "report.md").is_file()
        assert (workdir / "runs" / run / "corpus").resolve().parent == workdir.parent / "stages"
    assert len({(workdir / "runs" / run / "tokenizer").resolve() for run in RUNS}) == 1


def test_table_and_parquet_are_what_the_runs_wrote(finished):
    workdir, _, _ = finished
    rows = {run: metrics_of(workdir / "runs" / run / "train") for run in RUNS}
    bits = {run: [row[BITS] for row in rows[run] if BITS in row] for run in RUNS}
    losses = {run: [row["loss"] for row in rows[run] if "loss" in row] for run in RUNS}
    summary = json.loads((workdir / "collected" / "summary.json").read_text())
    table = (workdir / "collected" / "table.md").read_text().splitlines()
    for number, rate in enumerate((0.0001, 0.003)):
        runs = [f"peak_lr-{rate}--seed-{seed}" for seed in (0, 1)]
        row = summary["table"][number]
        assert (row["peak_lr"], row["runs"]) == (rate, 2)
        for name, series in (("bits", bits), ("loss", losses)):
            values = [series[run][-1] for run in runs]
            assert row[name]["mean"] == pytest.approx(statistics.mean(values), rel=1e-12)
            assert row[name]["std"] == pytest.approx(statistics.stdev(values), rel=1e-9)
        mean, std = (f([bits[run][-1] for run in runs]) for f in (statistics.mean, statistics.stdev))
        assert f"{mean:#.4g} ± {std:.2g}" in table[2 + number]
    difference = [bits[RUNS[2 + seed]][-1] - bits[RUNS[seed]][-1] for seed in (0, 1)]
    (verdict,) = summary["verdicts"]
    assert verdict["effect"] == pytest.approx(statistics.mean(difference), rel=1e-9)
    assert verdict["spread"] == pytest.approx(statistics.stdev(difference), rel=1e-9)

    metrics = parquet.read_table(workdir / "collected" / "metrics.parquet").to_pylist()
    stored = {
        (row["run"], row["step"]): row["value"]
        for row in metrics
        if row["metric"] == "loss" and row["stage"] == "train"
    }
    assert stored == {(run, row["step"]): row["loss"] for run in RUNS for row in rows[run] if "loss" in row}
    assert {(row["run"], row["peak_lr"], row["seed"]) for row in metrics} == {
        (run, float(run.split("-")[1]), int(run[-1])) for run in RUNS
    }
    for row in parquet.read_table(workdir / "collected" / "runs.parquet").to_pylist():
        assert row["bits"] == bits[row["run"]][-1]
        assert row["seconds"] > 0


@pytest.mark.long
def test_stopped_and_then_killed_only_what_is_left_is_done(sweeper, finished, tmp_path):
    workdir = tmp_path / "sweep"
    process = sweeper.start(workdir, "--jobs=2")
    wait_until(lambda: training(workdir), process=process)
    process.send_signal(signal.SIGINT)
    stopped = wait(process)
    assert (stopped.status, stopped.out) == (128 + signal.SIGINT, ""), stopped.err
    assert re.fullmatch(
        r"Ctrl-C: [12] jobs stopped; run the same command again to continue", stopped.err.splitlines()[-1]
    )
    last = [tries[-1] for tries in attempts(workdir).values() if tries[-1]["error"]]
    assert {(one["status"], one["error"]) for one in last} == {
        (128 + signal.SIGTERM, "stopped before its end; run the same command again to continue")
    }
    logs = "".join(path.read_text() for path in (workdir / "jobs").glob("*.log"))
    saved = len(re.findall(r"SIGTERM: saved step \d+ of 40", logs))
    assert saved

    process = sweeper.start(workdir, "--jobs=2")
    wait_until(lambda: len(results(workdir)) >= 4 and training(workdir), process=process)
    kill_tree(process)
    before = results(workdir)
    half = training(workdir)
    assert half
    assert 4 <= len(before) < 6
    out, err = sweeper.run(workdir, "--jobs=2")
    assert json.loads(out.splitlines()[-1])["finished"] == 4
    assert {name: results(workdir)[name] for name in before} == before
    assert f"{6 - len(before)} to do" in err
    counts = {job: len(tries) for job, tries in attempts(workdir).items()}
    assert counts[next(job for job in counts if job.startswith("shared"))] == 1
    resumed = [path.read_text().count("resuming at step") for path in (workdir / "jobs").glob("*.log")]
    assert sum(resumed) == saved + len(half)
    assert trained(workdir) == trained(finished[0])


def test_a_typo_fails_before_anything_is_started(sweeper, tmp_path):
    for flags in ((), ("--dry-run",)):
        out, err = sweeper.run(tmp_path / "sweep", *flags, arg="typo", status=2)
        assert err.splitlines()[-1] == (
            "error: run peak_lr-0.0001--seed-0: the config has no key 'stage.train.schedule.peek_lr'; "
            "did you mean 'stage.train.schedule.peak_lr'?"
        )
        assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_broken_run_is_named_and_does_not_stop_the_others(sweeper, finished, tmp_path):
    workdir = tmp_path / "sweep"
    stages = finished[0].parent / "stages"  # the good runs are there already
    out, err = sweeper.run(workdir, f"--store={stages}", arg="broken", status=2)
    error = err.splitlines()[-1]
    assert error.startswith("error: 1 of 6 jobs did not finish: -nowhere: error: stage train: config.init.weights")
    assert f"(log: {workdir}/jobs/-nowhere.log)" in error
    assert {job: len(tries) for job, tries in attempts(workdir).items()} == {"-nowhere": 1}
    _, status = sweeper.run(workdir, f"--store={stages}", "--status", arg="broken")
    assert "5 runs: 4 finished, 1 failed" in status
    assert re.search(r"-nowhere +failed +2/3 train .*no such directory", status)
    collected, _ = sweeper.run(workdir, f"--store={stages}", "--collect", arg="broken")
    assert json.loads(collected.splitlines()[-1])["finished"] == 4
    assert "Unfinished runs, which are left out (1): -nowhere." in (workdir / "collected" / "report.md").read_text()


@pytest.mark.long
def test_another_seed_reuses_what_is_there(sweeper, finished, tmp_path):
    workdir, stages = tmp_path / "sweep", finished[0].parent / "stages"
    _, plan = sweeper.run(workdir, f"--store={stages}", "--dry_run", arg="more")
    assert not workdir.exists()
    assert len([line for line in plan.splitlines() if "| finished |" in line]) == 4 + 5  # runs, jobs
    before = results(finished[0])
    sweeper.run(workdir, f"--store={stages}", "--jobs=2", arg="more")
    after = results(finished[0])
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 2
    summary = json.loads((workdir / "collected" / "summary.json").read_text())
    assert [row["runs"] for row in summary["table"]] == [3, 3]
    assert metrics_of(workdir / "runs" / RUNS[0] / "train") == trained(finished[0])[RUNS[0]]


def test_dry_run_shows_runs_and_jobs(sweeper, tmp_path):
    out, plan = sweeper.run(tmp_path / "sweep", "--dry-run")
    assert list(tmp_path.iterdir()) == []
    assert "| peak_lr-0.003--seed-0 |  | 10,240 | train.schedule.peak_lr: 0.0001 -> 0.003 |" in plan
    assert re.search(r"\| shared-corpus-to-tokenizer-\w{6} \| 4 runs \|  \| corpus, tokenizer \| – \|", plan)
    assert json.loads(out) == {"runs": 4, "jobs": 5, "finished": 0}


def test_a_sweep_writes_its_section_of_the_page_of_results(sweeper, finished, tmp_path):
    workdir, _, _ = finished
    page = tmp_path / "results.md"
    sweeper.run(workdir, "--collect", f"--results={page}")
    text = page.read_text()
    bits = [
        [row[BITS] for row in metrics_of(workdir / "runs" / f"peak_lr-0.003--seed-{seed}" / "train")
         if BITS in row][-1]
        for seed in (0, 1)
    ]  # fmt: skip
    assert f"{sum(bits) / 2:#.4g} ± " in text
    assert f"python {ROOT}/run.py" in text
    assert "--workdir" not in text
    for name in ("curves", "dots"):
        copied = tmp_path / "images" / "results" / f"small_experiment-{name}.png"
        assert copied.read_bytes() == (workdir / "collected" / "figures" / f"{name}.png").read_bytes()
