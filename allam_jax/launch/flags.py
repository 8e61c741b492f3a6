"""The flags of run.py for sweeps. `--dry-run` and `--dry_run` are the same flag."""

import sys
from pathlib import Path
from typing import Any

from absl import flags

from allam_jax.files import read_json

_SWEEP = flags.DEFINE_string("sweep", None, "Experiment file, with `:ARG` for its argument: runs all that it varies.")
_SET = flags.DEFINE_multi_string("set", [], "KEY=VALUE for every run, after the experiment's stages are added.")
# `sweep.SweepOptions` has a field for each of these.
_OPTIONS = (
    flags.DEFINE_enum("launcher", "local", ["local", "slurm"], "What starts the runs of a sweep."),
    flags.DEFINE_integer("jobs", None, "local: jobs at a time, which share cores and GPUs; by default one per GPU."),
    flags.DEFINE_integer("gpus_per_job", None, "local: GPUs of each job."),
    flags.DEFINE_multi_string("slurm", [], "slurm: KEY=VALUE for submitit, such as nodes=2; may be repeated."),
    flags.DEFINE_bool("detach", False, "local: jobs go on if the launcher is killed; otherwise they save and end."),
    flags.DEFINE_integer("retries", 1, "Further attempts at a job that fails.", lower_bound=0),
    flags.DEFINE_bool("dry_run", False, "Only print the runs and jobs of a sweep."),
    flags.DEFINE_bool("status", False, "Only show the state of the runs of a sweep; live at a terminal."),
    flags.DEFINE_bool("collect", False, "Only collect the finished runs: Parquet, table, figures, verdicts."),
    flags.DEFINE_string("results", "", "Page of results whose section is rewritten when collecting."),
    flags.DEFINE_enum("tracker", "", ["", "mlflow"], "Tracker that also gets the finished runs when collecting."),
)

ALL = (_SWEEP, _SET, *_OPTIONS)  # for --help

_STORE = "stages"  # beside the workdirs of sweeps, so that experiments share stages


def prepare(argv: list[str]) -> list[str]:
    """The arguments with underscores in the names of flags, and with what a sweep does not state.

    `--status` and `--collect` take the kinds of arguments that are not given (the config, the overrides, the settings
    of all runs, the store) from the sweep's record. Otherwise the config is that of the experiment.
    """
    argv = [_underscored(arg) for arg in argv]
    sweep = _value_of(argv, "sweep")
    if sweep is None:
        return argv
    if {"--status", "--collect"} & set(argv):
        from allam_jax.launch.sweep import RECORD  # slow to import

        record = _workdir(sweep, _value_of(argv, "workdir")) / RECORD
        if record.is_file():
            given = set(map(_kind, _arguments(argv)))
            argv += [arg for arg in read_json(record).get("arguments", []) if _kind(arg) not in given]
    if _value_of(argv, "config") is not None:
        return argv
    from allam_jax.ablation.experiment import load_experiment  # slow to import

    return [argv[0], f"--config={load_experiment(sweep).config}", *argv[1:]]


def _value_of(argv: list[str], name: str) -> str | None:
    """The last value of a flag, as `--name=value` or `--name value`."""
    values = [arg.partition("=")[2] for arg in argv if arg.startswith((f"--{name}=", f"-{name}="))]
    values += [value for flag, value in zip(argv, argv[1:], strict=False) if flag in (f"--{name}", f"-{name}")]
    return values[-1] if values else None


def _arguments(argv: list[str]) -> list[str]:
    """The arguments that decide which runs a sweep has: config, overrides and store, as `--name=value`."""
    found = []
    for index, arg in enumerate(argv[1:], start=1):
        name, separator, _ = arg.partition("=")
        if name in ("--config", "--set", "--store") or name.startswith("--config."):
            following = argv[index + 1 : index + 2]
            found.append(arg if separator or not following else f"{arg}={following[0]}")
    return found


def _kind(argument: str) -> str:
    name = argument.partition("=")[0]
    return "--config." if name.startswith("--config.") else name


def _workdir(sweep: str, given: str | None) -> Path:
    path, _, arg = sweep.partition(":")
    return Path(given or Path("runs") / (Path(path).stem + (f"-{arg}" if arg else ""))).absolute()


def is_sweep() -> bool:
    """Whether the command line asks for a sweep."""
    return _SWEEP.value is not None


def run(config: Any, *, workdir: str | None, store: str | None) -> dict[str, Any]:
    """Does what the flags ask for and returns the last line of stdout; see `sweep.run_sweep`."""
    from allam_jax.launch import sweep  # slow to import

    assert _SWEEP.value is not None
    folder = _workdir(_SWEEP.value, workdir)
    options = sweep.SweepOptions(
        sweep=_SWEEP.value,
        workdir=folder,
        store=Path(store).absolute() if store else folder.parent / _STORE,
        overrides=_SET.value,
        arguments=_arguments([_underscored(arg) for arg in sys.argv]),
        **{flag.name: flag.value for flag in _OPTIONS},  # type: ignore[arg-type]
    )
    return sweep.run_sweep(config, options)


def _underscored(arg: str) -> str:
    name, separator, value = arg.partition("=")
    known = name.replace("-", "_")[2:]
    return f"--{known}{separator}{value}" if name.startswith("--") and "-" in name[2:] and known in flags.FLAGS else arg
