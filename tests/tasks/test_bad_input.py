"""Bad input, given as a user would: one line that names the thing and the remedy, status 2, nothing half-written."""

import re
import shutil
import signal
from pathlib import Path

import pytest
import sentencepiece
from launcher import error_of
from processes import wait, wait_until

from allam_jax.corpus.catalog import SOURCES
from allam_jax.tokenizer.sentencepiece_training import train_sentencepiece
from allam_jax.training.load import load_model
from allam_jax.weights.huggingface import export_huggingface

pytestmark = pytest.mark.slow

CONFIGS = {
    "broken.py": "import nonsense\n",
    "syntax.py": "def get_config(:\n",
    "raises.py": "def get_config():\n    return 1 / 0\n",
    "empty.py": "",
    "three.py": "def get_config():\n    return 3\n",
    "taskless.py": "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'a': 1})\n",
    "exits.py": "import sys\ndef get_config():\n    sys.exit(0)\n",
    "exits_early.py": "raise SystemExit('enough')\n",
    "interrupts.py": "def get_config():\n    raise KeyboardInterrupt\n",
    "constant.py": "get_config = 3\n",
    "chatty.py": """
import logging
logging.getLogger("jax._src.distributed").info("says a library")
logging.getLogger("of.another").warning("warns a library")
get_config = None
""",
    "recursive.py": "def get_config():\n    return get_config()\n",
    "notes.txt": "a shopping list\n",
    "misspelt.py": """
from configs import base
def get_config():
    config = base.get_config("train")
    config.train.stepz = 3
    return config
""",
    "mistyped.py": """
from configs import base
def get_config():
    config = base.get_config("train")
    config.train.steps = "many"
    return config
""",
    "preset.py": """
from configs import base
from allam_jax.model.llama_config import preset
def get_config(name):
    config = base.get_config("train")
    config.model = base.model(preset(name))
    return config
""",
    "corpus.py": """
from configs import base
def get_config(key_and_value):
    key, _, value = key_and_value.partition("=")
    config = base.get_config("corpus")
    config.corpus.sources.mine = base.documents(language="en", **{key: value})
    return config
""",
}
QUICKSTART = "configs/quickstart.py"

# name -> (what to start, what the line must say). {bad} is the folder of `bad`.
CASES = {
    "no config": ({"config": "{bad}/nope.py"}, "--config {bad}/nope.py: no such file"),
    "import error in config": (
        {"config": "{bad}/broken.py"},
        "{bad}/broken.py, line 1: ModuleNotFoundError: No module",
    ),
    "syntax error in config": ({"config": "{bad}/syntax.py"}, "{bad}/syntax.py, line 1: invalid syntax"),
    "exception in config": ({"config": "{bad}/raises.py"}, "{bad}/raises.py, line 2: ZeroDivisionError"),
    "no get_config": ({"config": "{bad}/empty.py"}, "{bad}/empty.py: defines no function get_config()"),
    "config without its argument": ({"config": "{bad}/corpus.py"}, "--config {bad}/corpus.py: get_config takes"),
    "config that is no config": (
        {"config": "{bad}/three.py"},
        "{bad}/three.py: get_config() returned 3; expected what",
    ),
    "config without a task": ({"config": "{bad}/taskless.py"}, "{bad}/taskless.py: the config names no task"),
    "config that exits": ({"config": "{bad}/exits.py"}, "{bad}/exits.py, line 3: the config ends the program (exit 0)"),
    "file that exits": (
        {"config": "{bad}/exits_early.py"},
        "{bad}/exits_early.py, line 1: the config ends the program",
    ),
    "get_config is no function": ({"config": "{bad}/constant.py"}, "{bad}/constant.py: TypeError"),
    "config that logs": ({"config": "{bad}/chatty.py"}, "{bad}/chatty.py: TypeError"),
    "config without end": ({"config": "{bad}/recursive.py"}, "{bad}/recursive.py, line 2: RecursionError"),
    "config of zeros": ({"config": "{bad}/binary.py"}, "{bad}/binary.py: source code"),
    "config of noise": ({"config": "{bad}/noise.py"}, "{bad}/noise.py"),
    "config is a directory": ({"config": "{bad}"}, "--config {bad}: no such file"),
    "config is no Python": ({"config": "{bad}/notes.txt"}, "{bad}/notes.txt"),
    "config without a name": ({"config": ""}, "--config "),
    "unknown flag": ({"flag_workdri": "x"}, "Unknown command line flag 'workdri'. Did you mean: workdir"),
    "number of processes": ({"flag_num_processes": "x"}, "--num_processes=x"),
    "section as a value": ({"train": 3}, "--config.train"),
    "unknown argument": ({"config": f"{QUICKSTART}:smok"}, f"{QUICKSTART}:smok: expected full or smoke"),
    "unknown key in config": (
        {"config": "{bad}/misspelt.py"},
        "{bad}/misspelt.py, line 5: the config has no key 'stepz'; did you mean 'steps'?",
    ),
    "wrong type in config": (
        {"config": "{bad}/mistyped.py"},
        "{bad}/mistyped.py, line 5: TypeError: Could not override",
    ),
    "unknown key": ({"train.stepz": 3}, "--config.train.stepz: the config has no key 'stepz'; did you mean 'steps'?"),
    "no name of a key": ({"": 3}, "--config.: this cannot be the name of a key; expected --config.SECTION.KEY=VALUE"),
    "empty names of a key": ({"..": 3}, "--config...: this cannot be the name of a key"),
    "empty name in a key": ({"train..steps": 3}, "--config.train..steps: this cannot be the name of a key"),
    "element of a number": ({"train.steps[0]": 3}, "<class 'int'> does not support integer indexing"),
    "key like a method": ({"items.x": 3}, "--config.items.x: the config has no key 'x'"),
    "wrong type": ({"train.steps": "many"}, "--config.train.steps=many: expected a whole number"),
    "no number": ({"schedule.peak_lr": "fast"}, "--config.schedule.peak_lr=fast: expected a number"),
    "key like no other": ({"qqq": 1}, "the config has no key 'qqq'; --help_config TASK prints those that there are"),
    "no recipe": ({"task": "recipe"}, "config.task = 'recipe': this config is of one task and has no stages"),
    "key of another task": (
        {"corpus.tags": "()"},
        "no key 'corpus', which belongs to task corpus: leave it out, or set it in a config of that task",
    ),
    "number too small": ({"train.log_every": 0}, "config.train.log_every = 0: expected a whole number, at least 1"),
    "unknown name": ({"param_dtype": "float99"}, "config.param_dtype = 'float99': expected one of 'float32'"),
    "unknown preset": ({"config": "{bad}/preset.py:7B"}, "model preset '7B' is unknown; choose from tiny"),
    "unknown attention": ({"compute.attention": "fast"}, "compute.attention = 'fast': expected one of 'auto'"),
    "unknown task": ({"task": "trian"}, "no task is called 'trian'; did you mean train or translate?"),
    "unknown stage": ({"config": QUICKSTART, "flag_stage": "bse"}, "--stage bse: the recipe's stages are corpus"),
    "stage of no recipe": ({"flag_stage": "base"}, "--stage base: task 'train' has no stages"),
    "workdir is a file": ({"workdir": "{bad}/file"}, "--workdir {bad}/file: is a file, not a directory"),
    "workdir of others": (
        {"workdir": "{bad}/huggingface"},
        "--workdir {bad}/huggingface: holds files that no task wrote (config.json, ",
    ),
    "workdir of others, recipe": (
        {"workdir": "{bad}/huggingface", "config": f"{QUICKSTART}:smoke"},
        "--workdir {bad}/huggingface: holds files that no task wrote (config.json, ",
    ),
    "pattern in the workdir": ({"workdir": "{bad}/run[1]"}, "run[1]': contains '[' ']', which libraries"),
    "line break in the workdir": ({"workdir": "{bad}/a\nb"}, "a\\nb': contains '\\n', which libraries"),
    "longer than max_position": ({"data.seq_len": 64}, "config.data.seq_len = 64: the model's max_position is 32"),
    "workdir of a recipe not writable": (
        {"workdir": "/proc/nope", "config": f"{QUICKSTART}:smoke"},
        "no such file or directory; check --workdir /proc/nope",
    ),
    "workdir not writable": ({"workdir": "/proc/nowhere/run"}, "--workdir /proc/nowhere/run: cannot write there"),
    "no tokenizer": ({"tokenizer": "{bad}/nope"}, "{bad}/nope: no such file; expected a tokenizer.model"),
    "unigram": (
        {"tokenizer": "{bad}/unigram"},
        "{bad}/unigram/tokenizer.model: a SentencePiece UNIGRAM model; expected BPE",
    ),
    "no weights": ({"init.weights": "{bad}/nope"}, "{bad}/nope: no such directory; expected a weights directory"),
    "truncated safetensors": ({"init.weights": "{bad}/huggingface"}, "{bad}/huggingface/model.safetensors: "),
    "other vocabulary": (
        {"init.weights": "{reference}", "tokenizer": "{bad}/larger"},
        "{reference} has 384 tokens but {bad}/larger has 430: ",
    ),
    "other vocabulary than the config's": ({"model.vocab_size": 100}, "config.model"),
    "optimizer of bare weights": (
        {"init.weights": "{bad}/huggingface", "init.optimizer": True},
        "config.init.weights = {bad}/huggingface: only checkpoints hold an optimizer",
    ),
    "no dataset": ({"data.sources.en.path": "{bad}/nope"}, "{bad}/nope: no dataset here"),
    "no held-out dataset": ({"eval.sources.en.path": "{bad}/nope"}, "{bad}/nope: no dataset here"),
    "no such split": ({"data.sources.en.split": "trian"}, "no split 'trian'; did you mean train?"),
    "truncated shard": (
        {"data.sources.en.path": "{bad}/truncated"},
        "en-train.array_record-00000-of-00001: is 65,536 bytes long instead of",
    ),
    "batch and mesh": (
        {"devices": 8, "data.batch_size": 12, "train.accumulation": 1},
        "config.data.batch_size = 12 is not a multiple of 8 = 1 microbatch(es) x 8 batch shard(s) (mesh data 8",
    ),
    "mesh and devices": (
        {"devices": 8, "mesh.data": 3},
        "mesh.data=3, mesh.fsdp=1, mesh.tensor=1: the sizes multiply to 3",
    ),
    "empty corpus": ({"config": "{bad}/corpus.py:path={bad}/empty.txt"}, "mine: no documents in {bad}/empty.txt"),
    "invalid UTF-8": (
        {"config": "{bad}/corpus.py:path={bad}/latin1.txt"},
        "{bad}/latin1.txt: too many bad records (5 good, 3 with invalid UTF-8; accepted share 0.01); repair the file",
    ),
    "no corpus": ({"config": "{bad}/corpus.py:path={bad}/nope.txt"}, "{bad}/nope.txt: no such file or directory"),
    "not in the catalog": (
        {"config": "{bad}/corpus.py:catalog=sahih_muslim"},
        "unknown source 'sahih_muslim'; did you mean sahih_muslim_en",
    ),
    "no network": (
        {
            "config": "{bad}/corpus.py:catalog=sahih_muslim_en",
            "environment": {
                "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
                "PIP_CONFIG_FILE": "/dev/null",
                "ALLAM_JAX_CACHE": "{bad}/cache",
            },
        },
        "run once with a network or an index that",
    ),
}
# What may be there after a failed start: what was asked for, and the empty folder of the checkpoints.
HARMLESS = {"config.json", "files.json", "checkpoints"}


EXPORTED = [
    *("config.json", "files.json", "generation_config.json", "model.safetensors", "special_tokens_map.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
]


@pytest.fixture(scope="module")
def bad(launcher, reference, tmp_path_factory):
    """A folder of bad things."""
    folder = tmp_path_factory.mktemp("bad")
    for name, text in CONFIGS.items():
        (folder / name).write_text(text)
    noise = bytes(range(1, 256)) * 4
    for name, content in {
        "binary.py": bytes(64),
        "noise.py": noise,
        "file": b"",
        "empty.txt": b"",
        "latin1.txt": b"good\n" * 5 + b"caf\xe9\n" * 3,
    }.items():
        (folder / name).write_bytes(content)
    shutil.copytree(launcher.root / "corpus" / "en", folder / "truncated")
    truncate(next((folder / "truncated").glob("*-train.*")))
    lines = (launcher.root / "text" / "en.txt").read_text().splitlines()
    (folder / "unigram").mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "unigram" / "tokenizer"),
        vocab_size=60,
        model_type="unigram",
        minloglevel=2,
    )
    arabic = (launcher.root / "text" / "ar.txt").read_text().splitlines()
    train_sentencepiece(lines + arabic, output=folder / "larger", vocab_size=430)
    model = load_model(reference)
    export_huggingface(
        folder / "huggingface", params=model.params, config=model.config, tokenizer_dir=launcher.root / "tokenizer"
    )
    truncate(folder / "huggingface" / "model.safetensors")
    return folder


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def fill(value, **names):
    """{bad} and {reference} in strings, also inside dicts."""
    if isinstance(value, dict):
        return {key: fill(item, **names) for key, item in value.items()}
    return value.format(**names) if isinstance(value, str) else value


@pytest.fixture(scope="module")
def outcomes(launcher, reference, bad, tmp_path_factory):
    """What each case did, and its workdir."""
    folder = tmp_path_factory.mktemp("workdirs")
    found = {}
    for name in CASES:
        options = fill(CASES[name][0], bad=bad, reference=reference)
        workdir = Path(options.pop("workdir", folder / name.replace(" ", "_")))
        found[name] = launcher.run(workdir, **options), workdir
    return found


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line(name, outcomes, bad, reference):
    finished, workdir = outcomes[name]
    assert fill(CASES[name][1], bad=bad, reference=reference) in error_of(finished)
    if workdir.parent == bad:
        assert sorted(path.name for path in (bad / "huggingface").iterdir()) == EXPORTED
        assert not workdir.is_dir() or workdir.name == "huggingface"
    elif workdir.is_dir():
        # What a corpus task has done before it stopped is hidden, and the next start goes on with it.
        left = {path.name for path in workdir.iterdir() if not path.name.startswith(".work-")}
        assert left <= HARMLESS
        assert not (workdir / "checkpoints").is_dir() or not list((workdir / "checkpoints").iterdir())


def test_a_config_that_interrupts_is_interrupted(launcher, bad, tmp_path):
    finished = launcher.run(tmp_path / "run", config=str(bad / "interrupts.py"))
    assert (finished.status, finished.err.splitlines()[-1][:12]) == (128 + signal.SIGINT, "interrupted;")


def test_of_libraries_only_warnings_are_shown(outcomes):
    finished, _ = outcomes["config that logs"]
    # The process that was forked had a handler of another format, which shows both.
    shown = re.findall(r"^[IW]\d{4} .* chatty.py:\d+\] (.*)", finished.err, flags=re.M)
    assert shown == ["warns a library"]


def test_the_source_that_needs_a_network_is_in_the_catalog():
    assert "sahih_muslim_en" in SOURCES


def test_a_platform_that_is_not_there_is_one_line(launcher, tmp_path):
    error = error_of(launcher.run(tmp_path / "run", environment={"JAX_PLATFORMS": "cuda"}))
    assert error.startswith("JAX_PLATFORMS=cuda: no device can be used (")


def test_a_finished_run_is_left_as_it_is_unless_asked_for_more(launcher, reference, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(reference, workdir)
    metrics = (workdir / "metrics.jsonl").read_bytes()
    assert launcher.train(workdir)["step"] == 40
    error = error_of(
        launcher.run(workdir, **{"train.steps": 30, "schedule.decay_start": 20, "schedule.decay_steps": 5})
    )
    assert error.startswith(f"config.train.steps = 30: {workdir} is at step 40 already; give more, or branch from")
    error = error_of(launcher.run(workdir, **{"model.dim": 64}))
    assert error == f"{workdir} holds a run of another model (config.model.dim: 32 -> 64); use another --workdir"
    assert (workdir / "metrics.jsonl").read_bytes() == metrics


def test_two_runs_in_one_workdir_do_not_mix(launcher, tmp_path):
    workdir = tmp_path / "run"
    process = launcher.start(workdir)
    wait_until((workdir / "config.json").exists, process=process)
    error = error_of(launcher.run(workdir, **{"seed": 1}))
    assert error == f"--workdir {workdir}: another run is at work there; let it end, or use another one"
    process.kill()
    wait(process)
    assert '"seed": 0' in (workdir / "config.json").read_text()


def test_attention_for_gpus_is_one_line_on_a_cpu(launcher, tmp_path):
    error = error_of(launcher.run(tmp_path / "run", **{"compute.attention": "triton"}))
    assert error.startswith("config.compute.attention: no attention backend can serve this: triton: ")
