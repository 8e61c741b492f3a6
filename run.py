"""Runs a config: `python run.py --config configs/quickstart.py [--workdir DIR] [--config.a.b=c] [--stage NAME]`."""

import json
import logging as stdlib_logging
import os
import re
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from allam_jax.errors import Stopped, UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with `:ARG` for its argument.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run writes; by default runs/<name of the config>.")
STAGE = flags.DEFINE_string("stage", None, "Run only this stage of a recipe.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, where no scheduler tells.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes, where no scheduler tells.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, where no scheduler tells.")


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags and the config; anything wrong with them is a UserError."""
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise UserError(f"unexpected argument {rest[1]!r}: flags start with --")
        if not CONFIG.present:
            raise UserError("no config: pass --config FILE, for example --config configs/quickstart.py")
        path = config_file()
        if not path.is_file():
            raise UserError(f"--config {path}: no such file; the configs that come with allam_jax are in configs/")
        _ = CONFIG.value.task
    except UserError:
        raise
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError, SyntaxError, OSError) as error:
        raise UserError(explain(error, argv=argv)) from error
    return rest


def config_file() -> Path:
    """The file named by --config, without its argument."""
    return Path(flags.FLAGS["config"].config_filename.partition(":")[0])


def explain(error: Exception, *, argv: list[str]) -> str:
    """One line for an error of the flag parser or of the locked config, naming the flag."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    unknown = re.match(r"\W*(\w+)", text)
    if isinstance(error, KeyError | AttributeError) and unknown:
        key = unknown[1]
        flag = next((arg.split("=")[0] for arg in argv if f".{key}" in arg.split("=")[0]), f"config key {key!r}")
        hint = re.search(r'Did you mean "(\w+)"', text)
        return f"{flag}: the config has no key {key!r}" + (f"; did you mean {hint[1]!r}?" if hint else "")
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def main(_) -> None:
    """Starts the processes, runs the task and prints its result as one line of JSON."""
    from allam_jax.parallel import distributed
    from allam_jax.tasks import runner

    distributed.initialize(
        coordinator=COORDINATOR.value, num_processes=NUM_PROCESSES.value, process_id=PROCESS_ID.value
    )
    workdir = Path(WORKDIR.value or Path("runs") / config_file().stem)
    result = runner.run(CONFIG.value, workdir=workdir.absolute(), only_stage=STAGE.value)
    if distributed.is_main_process():
        print(json.dumps(result, ensure_ascii=False), flush=True)


def fail(message: str) -> None:
    """Prints one line to stderr and exits with status 2, without waiting for other threads."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    logging.flush()
    sys.stdout.flush()
    os._exit(2)


def is_ours(record) -> bool:
    """Whether a log record should be shown: ours all, those of libraries from warnings on."""
    return record.levelno >= stdlib_logging.WARNING or Path(record.pathname).is_relative_to(Path(__file__).parent)


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    logging.set_stderrthreshold("info")
    logging.get_absl_logger().addFilter(is_ours)
    try:
        app.run(main, flags_parser=parse_flags)
    except UserError as error:
        fail(str(error))
    except Stopped as stop:
        print(stop, file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        fail("interrupted; run the same command again to continue")
