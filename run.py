"""Runs a config: `python run.py --config configs/quickstart.py [--workdir DIR] [--config.a.b=c] [--stage NAME]`.

With `--sweep experiments/NAME.py` it runs all that the experiment varies (docs/sweeps.md).
"""

from allam_jax import interrupts

if __name__ == "__main__":
    interrupts.leave_at_signals()
    interrupts.end_with_parent()

import json
import logging as stdlib_logging
import os
import re
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from allam_jax import recipe_inputs, streams
from allam_jax.errors import USER_ERROR, Stopped, UserError, nearest
from allam_jax.files import json_text
from allam_jax.launch import flags as sweep_flags
from allam_jax.parallel import lifeline
from allam_jax.tasks import config_help, registry

_ROOT = Path(__file__).resolve().parent
_OVERRIDE = re.compile(r"--?config\.[^\W\d]\w*(\.[^\W\d]\w*|\[\d+\])*")  # a key, or an element of its value
_OURS = [_ROOT / name for name in ("allam_jax", "configs", "experiments", "kernels")]

# What Python says of a text that is no number, and what was expected.
_NUMBERS = (
    (r"invalid literal for int\(\) with base 10: '.*'", "expected a whole number"),
    (r"could not convert string to float: '.*'", "expected a number"),
)

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with `:ARG` for its argument.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run writes; by default runs/<name of the config>.")
STAGE = flags.DEFINE_list("stage", [], "Run only this stage of a recipe, or these, with commas between.")
STORE = flags.DEFINE_string("store", None, "Where stages lie that recipes share; by default each workdir has its own.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, if no scheduler gives it.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes, if no scheduler gives it.")
HELP_CONFIG = flags.DEFINE_string(
    "help_config", None, "Print all keys of a task (or of `all`), or what configs/NAME.py takes, and exit."
)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, if no scheduler gives it.")


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags and the config; anything wrong with them is a UserError."""
    try:
        if {"--help", "-help", "-h"} & set(argv[1:]):
            print_help()
            raise SystemExit(0)
        check_overrides(argv)
        check_config_file(argv)
        argv = recipe_inputs.move(with_installed_files(sweep_flags.prepare(with_installed_files(argv))))
        sys.argv = argv  # config_flags looks there for the keys that are set
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise UserError(f"unexpected argument {rest[1]!r}: flags start with --")
        if HELP_CONFIG.value is not None:
            return rest
        if not CONFIG.present:
            raise UserError("no config: pass --config FILE, for example --config configs/quickstart.py")
        path = config_file()
        if not path.is_file():
            raise UserError(f"--config {path}: no such file; the configs that come with allam_jax are in configs/")
        check_config(CONFIG.value, path=path)
    except UserError:
        raise
    except SystemExit as stop:  # of --help and its kind, or of the config's code
        message = explain_config(stop, argv=argv)
        if message is None:
            raise SystemExit(0) from None
        raise UserError(message) from None
    except Exception as error:  # the config is code: anything can come out of it
        message = explain_config(error, argv=argv) or explain_flag(error, argv=argv)
        if message is None:
            raise
        raise UserError(message) from error
    return rest


def check_overrides(argv: list[str]) -> None:
    """UserError for a name that no key can have, which ml_collections would parse as an expression."""
    for name in (arg.partition("=")[0] for arg in argv):
        if name.startswith(("--config.", "-config.")) and not _OVERRIDE.fullmatch(name):
            raise UserError(f"{name}: this cannot be the name of a key; expected --config.SECTION.KEY=VALUE")


def print_help() -> None:
    """Prints every flag. absl's own help shows those of one module, and none for the installed command."""
    print(__doc__)
    ours = (CONFIG, WORKDIR, STAGE, STORE, HELP_CONFIG, COORDINATOR, NUM_PROCESSES, PROCESS_ID)
    for holder in (*ours, *sweep_flags.ALL):
        print(f"  --{holder.name}: {flags.FLAGS[holder.name].help}")


def check_config(config: object, *, path: Path) -> None:
    """UserError for what is no config of a task."""
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config {path}: get_config() returned {config!r:.100}; expected what base.get_config gives")
    if not isinstance(config.get("task"), str):
        raise UserError(f"--config {path}: the config names no task; make it with base.get_config(TASK)")


def check_config_file(argv: list[str]) -> None:
    """UserError for a config that is not there: before its keys, which the parser could then not know."""
    for index, argument in enumerate(argv):
        flag, separator, value = argument.partition("=")
        if flag not in ("--config", "-config") or not (value or argv[index + 1 : index + 2]):
            continue
        path = Path((value if separator else argv[index + 1]).partition(":")[0])
        if not path.is_file() and not (_ROOT / path).is_file():
            folder = path.parent if path.parent.is_dir() else _ROOT / "configs"
            known = nearest(path.name, [file.name for file in folder.glob("*.py") if not file.name.startswith("_")])
            raise UserError(f"--config {path}: no such file in {folder}; {known}")


def with_installed_files(argv: list[str]) -> list[str]:
    """The arguments, with a config or experiment that is not in this directory taken from beside this file."""
    found = list(argv)
    for index, argument in enumerate(argv):
        flag, separator, value = argument.partition("=")
        if flag not in ("--config", "-config", "--sweep", "-sweep"):
            continue
        place = index if separator else index + 1
        path = value if separator else "".join(argv[place : place + 1])
        file = path.partition(":")[0]
        if file and not Path(file).exists() and (_ROOT / file).is_file():
            found[place] = f"{flag}={_ROOT / path}" if separator else str(_ROOT / path)
    return found


def config_file() -> Path:
    """The file named by --config, without its argument."""
    return Path(flags.FLAGS["config"].config_filename.partition(":")[0])


def explain_config(error: Exception, *, argv: list[str]) -> str | None:
    """One line for an error inside the config file, naming the line; None if it was not there."""
    named = [value for flag, value in zip(argv, argv[1:], strict=False) if flag in ("--config", "-config")]
    named += [arg.partition("=")[2] for arg in argv if re.match("--?config=", arg)]
    path = named[-1].partition(":")[0] if named else ""
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}{f', line {error.lineno}' if error.lineno else ''}: {error.msg}"
    text = str(error)
    if isinstance(error, AttributeError) and "attribute 'get_config'" in text:
        return f"{path}: defines no function get_config()"
    # absl keeps only the text of a TypeError or ValueError; ml_collections puts the traceback into it.
    inside_text = "Error whilst parsing config file" in text
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if inside_text:
        frames = re.findall(r'File "(.+?)", line (\d+)', text)
        last = text.strip().splitlines()[-1]
    else:
        last = reason(error) if isinstance(error, KeyError | AttributeError) else f"{type(error).__name__}: {text}"
    if isinstance(error, SystemExit):
        last = f"the config ends the program (exit {error.code!r:.50}); it must return a config"
    lines = [line for filename, line in frames if Path(filename).absolute() == Path(path).absolute()]
    if path and lines:
        return f"{path}, line {lines[-1]}: {last}"
    if inside_text and "get_config()" in last:
        return f"--config {path}: get_config takes another number of arguments than given (FILE:ARG gives one): {last}"
    return f"--config {path}: {last}" if inside_text else None


def explain_flag(error: Exception, *, argv: list[str]) -> str | None:
    """One line for an error of the flag parser or of the locked config, naming the flag; None for any other error."""
    if not isinstance(error, flags.Error | LookupError | AttributeError | TypeError | ValueError | OSError):
        return None
    text = reason(error)
    unknown = re.match(r"the config has no key '(\w+)'", text)
    if unknown:
        flag = next((arg.split("=")[0] for arg in argv if f".{unknown[1]}" in arg.split("=")[0]), "config")
        return f"{flag}: {text}"
    for python, words in _NUMBERS:
        text = re.sub(python, words, text)
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def reason(error: Exception) -> str:
    """What the locked config says of a key that it does not have, in our words; the text of other errors."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    unknown = re.match(r"\W*(?:Key\W+|Attribute <class '\w+'>\.)?(\w+)", text)
    if not isinstance(error, KeyError | AttributeError) or not unknown:
        return text
    hint = re.search(r'Did you mean "(\w+)"', text)
    owners = registry.owners_of(unknown[1])
    if owners:
        return (
            f"the config has no key {unknown[1]!r}, which belongs to task {' and '.join(owners)}: leave it out, or set "
            f"it in a config of that task (in a recipe: --config.stage.NAME.{unknown[1]}...)"
        )
    advice = f"did you mean {hint[1]!r}?" if hint else "--help_config TASK prints those that there are"
    return f"the config has no key {unknown[1]!r}; {advice}"


def main(_) -> None:
    """Starts the processes, runs the task and prints its result as one line of JSON."""
    if HELP_CONFIG.value is not None:
        print(config_help.explain(HELP_CONFIG.value))
        return
    interrupts.install()
    if sweep_flags.is_sweep():
        print_result(sweep_flags.run(CONFIG.value, workdir=WORKDIR.value, store=STORE.value))
        return
    from allam_jax.parallel import distributed
    from allam_jax.tasks import runner

    if CONFIG.value.task == "plan":
        import jax

        # The planner compiles for GPUs that are only described. It must not wait for real GPUs, or fail without one.
        jax.config.update("jax_platforms", "cpu")
    distributed.initialize(
        coordinator=COORDINATOR.value,
        num_processes=NUM_PROCESSES.value,
        process_id=PROCESS_ID.value,
        facts=lambda: facts_of_run(CONFIG.value),
    )
    store = Path(STORE.value).absolute() if STORE.value else None
    result = runner.run(CONFIG.value, workdir=workdir().absolute(), only=STAGE.value, store=store)
    if distributed.is_main_process():
        print_result(result)
    end_together()


def workdir() -> Path:
    """Where the task writes."""
    return Path(WORKDIR.value or Path("runs") / config_file().stem)


def print_result(result: dict) -> None:
    """The result as one line of JSON, with escapes where standard output takes no UTF-8."""
    text = json_text(result)
    if sys.stdout.encoding.lower() not in ("utf-8", "utf8"):
        text = json.dumps(json.loads(text))
    try:
        print(text, flush=True)
    except OSError as error:
        raise UserError(
            f"standard output: {(error.strerror or str(error)).lower()}; the work is done, and the same command prints "
            "its result again"
        ) from None


def facts_of_run(config: ConfigDict) -> dict:
    """What must be the same in all processes of a job."""
    from allam_jax.config import flatten
    from allam_jax.settings import as_dict
    from allam_jax.training.run_metadata import code_revision

    values = {f"config.{key}": value for key, value in flatten(as_dict(config)).items()}
    paths = {"--workdir": str(workdir().absolute()), "--store": STORE.value}
    return values | {"the revision of the code": code_revision(), "--stage": STAGE.value} | paths


def leave(message: str, *, status: int) -> NoReturn:
    """Prints one line to stderr and exits, without waiting for other threads; tells the other processes of the job."""
    message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
    if line := lifeline.current():
        line.end(message, status)
    print(message, file=sys.stderr, flush=True)
    logging.flush()
    os._exit(status)


def is_ours(record) -> bool:
    """Whether a log record should be shown: ours all, those of libraries from warnings on."""
    path = Path(record.pathname)
    return record.levelno >= stdlib_logging.WARNING or path == Path(__file__) or any(map(path.is_relative_to, _OURS))


def command_line() -> None:
    """Runs `main` with the process's arguments; what the user can fix ends as one line on stderr, with status 2."""
    interrupts.leave_at_signals()
    streams.protect()
    logging.set_verbosity(logging.INFO)
    logging.set_stderrthreshold("info")
    logging.get_absl_handler().addFilter(is_ours)  # of the handler: libraries have loggers of their own
    try:
        app.run(main, flags_parser=parse_flags)
    except UserError as error:
        leave(f"error: {error}", status=USER_ERROR)
    except Stopped as stop:
        print(stop, file=sys.stderr, flush=True)
        end_together(status=stop.status)
        raise SystemExit(stop.status) from None
    except KeyboardInterrupt:
        leave_after_signal()
    except Exception as error:
        if interrupts.pending():  # a library has made another exception of the one that the signal raised
            leave_after_signal()
        if lifeline.current() is None:
            raise
        crash(error)


def end_together(*, status: int = 0) -> None:
    """All processes of the job end with this status, and signals change nothing any more."""
    interrupts.ignore()
    if line := lifeline.current():
        line.finish()
        logging.flush()
        os._exit(status)


def leave_after_signal() -> NoReturn:
    """Ends the process as the last signal asks for."""
    line, status = interrupts.last_words(interrupts.last_signal())
    leave(line, status=status)


def crash(error: Exception) -> NoReturn:
    """Shows the error of one of several processes and leaves at once: at its own exit JAX would wait for the others."""
    line = lifeline.current()
    assert line is not None
    line.end(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", 1)
    traceback.print_exception(error)
    logging.flush()
    os._exit(1)


if __name__ == "__main__":
    command_line()
