"""The flags of run.py that concern sweeps. `--dry-run` and `--dry_run` are the same flag."""

from pathlib import Path
from typing import Any

from absl import flags

_SWEEP = flags.DEFINE_string("sweep", None, "Experiment file, with `:ARG` for its argument: runs all that it varies.")
_LAUNCHER = flags.DEFINE_enum("launcher", "local", ["local", "slurm"], "What starts the runs of a sweep.")
_JOBS = flags.DEFINE_integer("jobs", None, "local: jobs at a time, which share the cores and GPUs; by default 1 a GPU.")
_GPUS_PER_JOB = flags.DEFINE_integer("gpus_per_job", None, "local: GPUs of each job.")
_SLURM = flags.DEFINE_multi_string("slurm", [], "slurm: KEY=VALUE for submitit, such as nodes=2; may be repeated.")
_RETRIES = flags.DEFINE_integer("retries", 1, "Further attempts at a job that fails.", lower_bound=0)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only print the runs and jobs of a sweep.")
_STATUS = flags.DEFINE_bool("status", False, "Only show how the runs of a sweep are doing; live at a terminal.")
_COLLECT = flags.DEFINE_bool("collect", False, "Only collect what has finished: Parquet, table, figures, verdicts.")
_RESULTS = flags.DEFINE_string("results", "", "Page of results whose section is written anew when collecting.")
_TRACKER = flags.DEFINE_enum("tracker", "", ["", "mlflow"], "Also log finished runs there when collecting.")
_SET = flags.DEFINE_multi_string("set", [], "KEY=VALUE for every run, after the experiment's stages are added.")

DEFAULT_STORE = "stages"  # beside the workdirs of sweeps, so that different experiments share stages too


def prepare(argv: list[str]) -> list[str]:
    """The arguments with flags spelled as they are defined, and with the experiment's config where none is given."""
    argv = [_underscored(arg) for arg in argv]
    named = [arg for arg in argv[1:] if arg.startswith("--sweep=")]
    named += [f"--sweep={value}" for flag, value in zip(argv, argv[1:], strict=False) if flag == "--sweep"]
    if not named or any(arg == "--config" or arg.startswith("--config=") for arg in argv):
        return argv
    from allam_jax.ablation.experiment import load_experiment  # slow to import

    return [argv[0], f"--config={load_experiment(named[-1].partition('=')[2]).config}", *argv[1:]]


def is_sweep() -> bool:
    """Whether a sweep was asked for."""
    return _SWEEP.value is not None


def run(config: Any, *, workdir: str | None, store: str | None) -> dict[str, Any]:
    """Does what the flags ask for; see `sweep.run`."""
    from allam_jax.launch import sweep  # slow to import

    assert _SWEEP.value is not None
    path, _, arg = _SWEEP.value.partition(":")
    folder = Path(workdir or Path("runs") / (Path(path).stem + (f"-{arg}" if arg else ""))).absolute()
    options = sweep.Options(
        sweep=_SWEEP.value,
        workdir=folder,
        store=Path(store).absolute() if store else folder.parent / DEFAULT_STORE,
        launcher=_LAUNCHER.value,
        jobs=_JOBS.value,
        gpus_per_job=_GPUS_PER_JOB.value,
        slurm=tuple(_SLURM.value),
        retries=_RETRIES.value,
        dry_run=_DRY_RUN.value,
        status=_STATUS.value,
        collect=_COLLECT.value,
        results=_RESULTS.value,
        tracker=_TRACKER.value,
        overrides=tuple(_SET.value),
    )
    return sweep.run(config, options)


def _underscored(arg: str) -> str:
    name, separator, value = arg.partition("=")
    known = name.replace("-", "_")[2:]
    return f"--{known}{separator}{value}" if name.startswith("--") and "-" in name[2:] and known in flags.FLAGS else arg
