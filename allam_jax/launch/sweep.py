"""The command `run.py --sweep`: expands the experiment, starts the unfinished jobs and collects the results."""

import dataclasses
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from allam_jax import files, slurm_queue
from allam_jax.ablation import results_page
from allam_jax.ablation.experiment import Experiment, load_experiment
from allam_jax.errors import UserError
from allam_jax.launch import local, slurm, status
from allam_jax.launch.collect import FOLDER, collect, read_outcomes
from allam_jax.launch.jobs import Job, plan_jobs
from allam_jax.launch.overrides import parse
from allam_jax.launch.runs import SweepRun, expand_runs
from allam_jax.launch.trackers import check_mlflow, log_to_mlflow
from allam_jax.report.markdown import duration
from allam_jax.tasks.runner import check_trackers

RECORD = "sweep.json"  # the command that last started the sweep
_COMPILED = "JAX_COMPILATION_CACHE_DIR"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """The values of the flags in `launch/flags.py`, which describes them."""

    sweep: str
    workdir: Path
    store: Path
    overrides: Sequence[str]
    launcher: str
    jobs: int | None
    gpus_per_job: int | None
    slurm: Sequence[str]
    retries: int
    dry_run: bool
    status: bool
    collect: bool
    results: str
    tracker: str
    detach: bool
    arguments: Sequence[str]  # those that say which runs there are; see `flags.prepare`


def run_sweep(base: ConfigDict, options: SweepOptions) -> dict[str, Any]:
    """Runs, shows or collects a sweep and returns the values for the last line of stdout.

    Raises:
        UserError: the experiment or the config is wrong, and nothing has started; or runs failed.
        Stopped: SIGTERM or Ctrl-C came.
    """
    experiment = load_experiment(options.sweep)
    overrides = parse(list(options.overrides))
    runs = expand_runs(experiment, base, workdir=options.workdir, store=options.store, overrides=overrides)
    folder = options.workdir / "jobs"
    jobs = plan_jobs(runs, folder=folder, environment=_environment(options))
    chosen = slurm.parse_options(options.slurm) if options.slurm else {}
    if chosen and options.launcher != "slurm" and not (options.status or options.collect):
        raise UserError(f"--slurm {options.slurm[0]}: only --launcher=slurm takes it; add that, or leave it out")
    if options.dry_run:
        from allam_jax.launch.preview import preview  # imports JAX

        print(preview(experiment, runs, jobs), file=sys.stderr, flush=True)
        return {"runs": len(runs), "jobs": len(jobs), "finished": sum(run.finished for run in runs)}
    if options.status:

        def read_states() -> list[status.RunState]:
            return status.run_states(runs, jobs, queued=_queue(folder))

        status.watch(read_states)
        return {"runs": len(runs), "finished": sum(run.finished for run in runs)}
    if not options.collect:
        if options.tracker:
            check_mlflow()
        for each in runs:
            check_trackers(each.config)
            each.save()
        record = {"experiment": options.sweep, "command": _command(), "arguments": list(options.arguments)}
        files.write_json(options.workdir / RECORD, record)
        failed = _launch(jobs, options, slurm_options=chosen)
        if failed is None:
            return {"runs": len(runs), "submitted": sum(entry.queued for entry in slurm.queue(folder).values())}
        if failed:
            first, why = next(iter(failed.items()))
            others = f"; also {', '.join(list(failed)[1:])}" if len(failed) > 1 else ""
            raise UserError(
                f"{len(failed)} of {len(jobs)} jobs did not finish: {first}: {why}{others}. Fix the cause and run the "
                "same command again; it runs only the unfinished jobs"
            )
    return _collect(experiment, runs, options)


def _queue(folder: Path) -> dict[str, slurm_queue.Entry]:
    """What Slurm says of the jobs; if it does not answer, the files are all there is to show."""
    try:
        return slurm.queue(folder)
    except UserError as error:
        logging.warning("what Slurm says is unknown: %s", error)
        return {}


def _environment(options: SweepOptions) -> dict[str, str]:
    environment = {"WANDB_RUN_GROUP": options.workdir.name}  # for Weights & Biases, if metrics.wandb_project is set
    if options.launcher == "local":
        # Many runs of a sweep compile the same programs: with a shared cache each is compiled once.
        environment[_COMPILED] = os.environ.get(_COMPILED, str(options.store / ".compiled"))
    return environment


def _launch(jobs: list[Job], options: SweepOptions, *, slurm_options: Mapping[str, Any]) -> dict[str, str] | None:
    """Starts the unfinished jobs. Returns job -> reason for the failed ones, or None if a scheduler has the jobs."""
    todo = [job for job in jobs if not job.finished]
    logging.info("%d jobs, %d to do", len(jobs), len(todo))
    if options.launcher == "slurm":
        if todo:
            slurm.submit(jobs, retries=options.retries, options=slurm_options, name=options.workdir.name)
        return None if todo else {}
    slots = local.make_slots(options.jobs, gpus_per_job=options.gpus_per_job)
    (jobs[0].folder / slurm.RECORD).unlink(missing_ok=True)  # an earlier submission says nothing about these jobs
    return local.run_jobs(jobs, slots=slots, retries=options.retries, detach=options.detach)


def _collect(experiment: Experiment, runs: list[SweepRun], options: SweepOptions) -> dict[str, Any]:
    finished = [each for each in runs if each.finished]
    if not finished:
        raise UserError(f"{options.workdir}: no run has finished; run the sweep without --collect first")
    record = options.workdir / RECORD
    command = files.read_json(record, keys={"command": str})["command"] if record.is_file() else _command()
    summary = collect(experiment, runs, workdir=options.workdir, command=command)
    if options.results:
        path, _, arg = options.sweep.partition(":")
        name = "-".join(filter(None, (Path(path).stem, arg)))
        collected = options.workdir / FOLDER
        results_page.update(Path(options.results), name=name, file=path, collected=collected, command=command)
    if options.tracker:
        outcomes = read_outcomes(experiment, finished)
        try:
            logged = log_to_mlflow(finished, outcomes, sweep=options.workdir.name)
            logging.info("MLflow: %d runs logged", logged)
        except UserError as error:
            logging.error("%s; all else is collected, and the same command with --collect logs again", error)
    report = options.workdir / FOLDER / "report.md"
    sys.stderr.write((options.workdir / FOLDER / "table.md").read_text(encoding="utf-8"))
    for verdict in summary["verdicts"]:
        sys.stderr.write(f"{verdict['line']}\n")
    logging.info("%d of %d runs; %s of computing; %s", len(finished), len(runs), duration(summary["seconds"]), report)
    return {
        "verdict": summary["verdict"],
        "finished": len(finished),
        "runs": len(runs),
        "seconds": summary["seconds"],
        "report": str(report),
    }


def _command() -> str:
    return shlex.join(["python", *sys.argv])
