"""Programs that models write: hostile ones harm nothing, ordinary ones pass, and pass@k is what brute force finds."""

import gzip
import itertools
import json
import os
import platform
import statistics

import pyarrow
import pyarrow.parquet
import pytest
from small_server import save_model

from allam_jax.errors import UserError
from allam_jax.evaluation import program_sandbox
from allam_jax.evaluation.program_answers import code_blocks
from allam_jax.evaluation.program_problems import Problem, read_problems
from allam_jax.evaluation.program_sandbox import FAILED, KILLED, PASSED, TIMED_OUT, pass_at_k, run_program
from allam_jax.evaluation.settings import ProgramsSettings
from allam_jax.generation.over_rows import Choice, RowAnswer
from allam_jax.tasks import programs, runner
from allam_jax.tasks.answering import Answerer
from configs import base

DENIED = "PermissionError: "
ORDINARY = """
import collections, copy, datetime, decimal, fractions, functools, hashlib, heapq, itertools, json, math, random, re
import statistics, string, sys, time, typing
import dataclasses
@dataclasses.dataclass
class Point:
    x: int
assert hashlib.md5(b"Hello world").hexdigest() == "3e25960a79dbc69b674cd4ec67a72c62"
assert math.isclose(statistics.mean([1, 2]), 1.5) and Point(3).x == 3
assert json.loads('"\\u0645"') == "م"
assert datetime.date(2024, 2, 29).isoformat() == "2024-02-29"
random.seed(0); time.sleep(0.001); print("x" * 50_000_000)
"""
# Finds the token of the report, and writes a report that the guard would not.
FORGED = """
import json, os, sys
guard = sys._getframe(1).f_locals
os.write(guard["report"], json.dumps({"token": guard["token"], **FIELDS}).encode())
os._exit(0)
"""
HOSTILE = [
    ("import os\nwhile True: os.fork()", FAILED, DENIED),
    ("import ctypes\nassert ctypes.CDLL(None).fork() > 0", FAILED, "AssertionError"),
    ("import ctypes\nassert ctypes.CDLL(None).syscall(425, 8, 0) >= 0", FAILED, "AssertionError"),  # io_uring
    ("import threading\nthreading.Thread(target=print).start()", FAILED, "RuntimeError: can't start new thread"),
    ("import subprocess\nsubprocess.run(['true'])", FAILED, DENIED),
    ("import os\nos.execv('/bin/sh', ['sh', '-c', 'true'])", FAILED, DENIED),
    ("while True: pass", TIMED_OUT, "processor time"),
    ("while True: print('x' * 10_000)", TIMED_OUT, "processor time"),
    ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)", FAILED, DENIED),
    ("import time\ntime.sleep(60)", TIMED_OUT, "waits for something"),
    ("import socket\nsocket.socket()", FAILED, DENIED),
    ("import socket\nsocket.create_connection(('127.0.0.1', 1))", FAILED, DENIED),
    ("open('{secret}').read()", FAILED, DENIED),
    ("open('{secret}', 'w')", FAILED, DENIED),
    ("open('{secret}', 'a')", FAILED, DENIED),
    ("open('{secret}.new', 'x')", FAILED, DENIED),
    ("open('here', 'w')", FAILED, DENIED),
    ("import os\nos.unlink('{secret}')", FAILED, DENIED),
    ("import os\nos.rename('{secret}', '{secret}.gone')", FAILED, DENIED),
    ("import os\nos.truncate('{secret}', 0)", FAILED, DENIED),
    ("import os\nos.chmod('{secret}', 0)", FAILED, DENIED),
    ("import os\nos.mkdir('{secret}.d')", FAILED, DENIED),
    ("import os\nos.listdir('/root')", FAILED, DENIED),
    ("import os\nassert os.environ.get('SANDBOX_TEST_KEY') or len(os.environ) > 2", FAILED, "AssertionError"),
    ("open('/proc/{parent}/environ').read()", FAILED, DENIED),
    ("import os\nos.kill({parent}, 9)", FAILED, DENIED),
    ("import os\nos.killpg(0, 9)", FAILED, DENIED),
    ("import os\nos.abort()", KILLED, ""),
    ("import ctypes\nctypes.string_at(0)", KILLED, "SIGSEGV"),
    ("x = bytearray(1 << 40)", FAILED, "MemoryError"),
    ("x = 'x'\nwhile True: x = x + x", FAILED, "MemoryError"),
    ("import os\nos._exit(0)", FAILED, "ended by itself before its tests, with status 0"),
    ("import sys\nsys.exit(0)", FAILED, "SystemExit: 0"),
    ("import os\nfor n in range(3, 9):\n try: os.write(n, b'7')\n except OSError: pass\nos._exit(0)", FAILED, "ended"),
    ("class E(Exception):\n def __str__(self): raise self\nraise E", FAILED, "an error that cannot be shown"),
    ("raise Exception('x' * 10**7)", FAILED, "Exception: xxx"),
    ("def f(:", FAILED, "SyntaxError"),
    ("def f(): return f()\nf()", FAILED, "RecursionError"),
    ("\ud83d", FAILED, ""),
    (r"raise Exception('\ud83d')", FAILED, r"Exception: \ud83d"),
    ("import os\nfor n in range(3, 9):\n try: os.write(n, b'[' * 60_000)\n except OSError: pass", FAILED, "ended"),
    (FORGED.replace("FIELDS", "{}"), FAILED, "ended"),
    (FORGED.replace("FIELDS", "{'error': {'a': 1}, 'files': 'x' * 1000}"), FAILED, "{'a': 1}"),
]


def held(source, **given):
    return run_program(source, **({"seconds": 1, "memory_bytes": 1 << 29} | given))


def test_ordinary_programs_pass():
    outcome = held(ORDINARY, seconds=5)
    assert (outcome.status, outcome.detail) == (PASSED, "")
    assert outcome.files in ("Python", "what nobody may", "what the user may")


@pytest.mark.parametrize(("source", "status", "detail"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_programs_harm_nothing(tmp_path, monkeypatch, source, status, detail):
    if "sleep" in source:
        monkeypatch.setattr(program_sandbox, "_START", 1.0)
    monkeypatch.setattr(program_sandbox, "_WAITING", 1 if "sleep" in source else 60)
    monkeypatch.setenv("SANDBOX_TEST_KEY", "hidden")
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    source = source.replace("{secret}", str(secret)).replace("{parent}", str(os.getpid()))
    # A slow machine needs more than a second to fill the memory.
    outcome = held(source, seconds=30 if detail == "MemoryError" else 1)
    if outcome.files == "what the user may" and "read" in source:
        pytest.skip("this kernel has no Landlock, and the tests are not those of root")
    assert outcome.status == status, outcome
    assert outcome.detail.startswith(detail)
    assert len(outcome.detail) <= 300
    assert os.listdir(tmp_path) == ["secret"]
    assert (secret.read_text(), secret.stat().st_mode & 0o700) == ("hidden", 0o600)


def test_a_kernel_without_landlock_leaves_root_what_nobody_may(monkeypatch, tmp_path):
    """A number that is no system call stands for one that an older kernel does not know."""
    guard = tmp_path / "guard.py"
    text = program_sandbox._GUARD.read_text()
    guard.write_text(text.replace("_ADD_RULE, _RESTRICT = 444,", "_ADD_RULE, _RESTRICT = 1444,"))
    monkeypatch.setattr(program_sandbox, "_GUARD", guard)
    outcome = held("x = 1")
    assert outcome.files == ("what the user may" if os.geteuid() else "what nobody may")
    guard.write_text(text.replace('"x86_64": (0', '"x": (0').replace('"aarch64": (1', '"a": (1'))
    with pytest.raises(UserError, match="cannot be held on this machine .*the system calls of this machine are not"):
        held("x = 1")


def test_a_sandbox_that_can_run_nothing_is_no_fault_of_programs():
    program_sandbox.check_sandbox(seconds=1, memory_bytes=1 << 29)
    with pytest.raises(UserError, match="be run on this machine: an empty one failed .*; raise config.programs.memory"):
        program_sandbox.check_sandbox(seconds=1, memory_bytes=1 << 20)
    with pytest.raises(UserError, match="bytes of address space are asked for, and ulimit allows"):
        held("x = 1", memory_bytes=1 << 70)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="arm64 has no such calls")
def test_the_calls_of_older_c_libraries_are_allowed():
    """stat, lstat, access and readlink, by which imports find files before glibc 2.33."""
    source = """
import ctypes, errno, os
libc, buffer = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(256)
for number, argument in ((4, buffer), (6, buffer), (21, 4), (89, buffer)):
    ctypes.set_errno(0)
    libc.syscall(number, b"/usr/lib/.", argument, 255)
    assert ctypes.get_errno() in (0, errno.EINVAL), number  # EINVAL: no link
assert os.access(os.getcwd(), os.R_OK)
"""
    assert held(source).detail == ""


@pytest.mark.parametrize(("samples", "passed"), [(6, 0), (6, 1), (6, 4), (6, 6), (1, 1)])
def test_pass_at_k_is_the_mean_over_all_choices(samples, passed):
    outcomes = [n < passed for n in range(samples)]
    for k in range(1, samples + 1):
        brute = statistics.mean(float(any(some)) for some in itertools.combinations(outcomes, k))
        assert pass_at_k(samples, passed, k) == pytest.approx(brute)
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(samples, passed, samples + 1)


ROWS = [
    {
        "task_id": "T/0",
        "prompt": 'import math\n\n\ndef helper(x):\n    return x + 1\n\n\ndef twice(x):\n    """Twice x."""\n',
        "entry_point": "twice",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
        "canonical_solution": "    return 2 * x\n",
    },
    {
        "task_id": "T/1",
        "prompt": 'def root(x):\n    """The square root."""\n',
        "entry_point": "root",
        "test": "def check(candidate):\n    assert candidate(9) == 3\n",
        "canonical_solution": "    import socket; socket.socket()\n    return x**0.5\n",  # which no sandbox lets pass
    },
]
BAD = [{**ROWS[0], "task_id": "T/2", "test": ""}, {**ROWS[0], "task_id": "T/3", "entry_point": "a b"}, ROWS[0], 7]
UNUSABLE = {  # reason -> field with a value
    "a test that defines no function check": {"test": "assert twice(2) == 4"},
    "a test that this Python cannot read": {"test": "def check(candidate):\n    assert candidate(2) =="},
    "half a character (a lone surrogate) in field 'prompt'": {"prompt": "def twice(x):\n    # \ud83d\n"},
    "no text in field 'entry_point'": {"entry_point": None},
}


def write_problems(directory):
    path = directory / "problems.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS + BAD)
    return path


def test_files_of_problems(tmp_path):
    found, left_out = read_problems(str(write_problems(tmp_path)), key="x")
    assert [(one.id, one.entry_point, one.prompt) for one in found] == [
        (row["task_id"], row["entry_point"], row["prompt"]) for row in ROWS
    ]
    assert {reason: len(places) for reason, places in left_out.items()} == {
        "no text in field 'test'": 1,
        "an entry point that is no name": 1,
        "an id that an earlier problem has": 1,
        "a row not a JSON object": 1,
    }


def test_problems_that_nothing_could_solve_are_left_out(tmp_path):
    rows = [ROWS[0], *({**ROWS[0], "task_id": reason, **changed} for reason, changed in UNUSABLE.items())]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\r\n" for row in rows))
    found, left_out = read_problems(str(tmp_path / "problems.jsonl"), key="x")
    assert [one.id for one in found] == ["T/0"]
    assert left_out == {reason: [f"problems.jsonl:{n}"] for n, reason in enumerate(UNUSABLE, start=2)}


def test_problems_as_the_hub_has_them(tmp_path):
    (tmp_path / "hub").mkdir()
    table = pyarrow.Table.from_pylist([{"other": [1], **row} for row in ROWS])
    pyarrow.parquet.write_table(table, tmp_path / "hub" / "test-00000-of-00001.parquet")
    of_lines, _ = read_problems(str(write_problems(tmp_path)), key="x")
    assert read_problems(str(tmp_path / "hub"), key="x") == (of_lines, {})
    (tmp_path / "problems.csv").write_text("task_id,prompt\n")
    with pytest.raises(UserError, match=r"problems.csv: problems are read from JSON Lines and Parquet"):
        read_problems(str(tmp_path / "problems.csv"), key="x")


CODE = "def twice(x):\n    return helper(x) + x - 1\n"
DOCUMENTED = (
    'def twice(x):\n    """As\n\n    ```\n    twice(2)\n    ```\n    or ```twice(2)```.\n    """\n    return 2 * x\n'
)


@pytest.mark.parametrize(
    "answer",
    [
        f"Here:\n```python\n{CODE}```\nIt adds.",
        "```\n    return 2 * x\n```",
        "def twice(x):\n    return math.floor(x * 2)",
        "```py\nimport os\n\ndef twice(x):\n    return x * 2",  # cut
        f"Here:\n\n```python\n{CODE}```\nIt adds.".replace("\n", "\r\n"),
        f"```Python\n{CODE}```\nUse:\n```\ntwice(2)\n```",
        f"```python3\n{CODE}```\nThis works because of this.",
        f"~~~ python title=x\n{CODE}~~~\nIt adds.",
        f"````python\n{CODE}````",
        f"Here it is: ```python\n{CODE}```",
        f"```python\n{CODE.rstrip()}```\nIt adds.",
        f"First:\n```bash\npip install six\n```\nand then\n```python\n{CODE}```",
        f"```python\nprint(twice(2))\n```\nwith\n```python\n{CODE}```",
        f"```python\n{DOCUMENTED}```\nIt adds.",
        f"```python\n{CODE}    ```\nIt adds.",
        "1. So:\n\n   ```python\n   " + CODE.replace("\n    ", "\n       ") + "   ```\n2. It adds.",
        "```\n    " + CODE.replace("\n    ", "\n        ") + "```",
        f"```python\nfrom __future__ import annotations\n\n{CODE.replace('(x)', '(x: Number)', 1)}```",
        f"<think>\n```python\ndef twice(x):\n    return None\n```\nNo.\n</think>\n```python\n{CODE}```",
        f"{CODE}```\nIt adds.",  # goes on from a fence that was asked for
        "```python\ndef other():\n    return 1\n\n\ntwice = lambda x: 2 * x\n```",
    ],
)
def test_answers_of_chats_become_programs(answer):
    problem = Problem(*(ROWS[0][name] for name in ("task_id", "prompt", "entry_point", "test")), "")
    assert held(problem.program_of_chat(answer)).status == PASSED
    wrong = answer.replace("return ", "return 1 + ").replace("lambda x: ", "lambda x: 1 + ")
    assert held(problem.program_of_chat(wrong)).status == FAILED


def test_a_prompt_whose_function_is_no_whole_one():
    """A comment in place of a docstring, and a decorator, which would stand before the answer's imports."""
    prompt = "import functools\n\n\n@functools.cache\ndef twice(x):\n    # Twice x.\n"
    problem = Problem("T/0", prompt, "twice", ROWS[0]["test"], "")
    for answer in ("```\n    return 2 * x\n```", "```\nimport functools\n\ndef twice(x):\n    return 2 * x\n```"):
        assert held(problem.program_of_chat(answer)).status == PASSED


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("a\n```\nb\n```\nc", ["b\n"]),
        ("```py\na\n\n  b\n```\n\n~~~\n```\n~~~", ["a\n\n  b\n", "```\n"]),
        ("````\n```\na\n```\n````", ["```\na\n```\n"]),
        ("```\na", ["a\n"]),
        ("``` a`b\nc", []),
        ("", []),
        ("  ```\n  a\n    b\n  ```", ["a\n  b\n"]),
    ],
)
def test_blocks_of_code_are_those_of_commonmark(text, blocks):
    assert code_blocks(text)[1] == blocks


@pytest.mark.slow
def test_programs_of_a_model_run_and_are_counted(tmp_path, monkeypatch):
    of_first = ["    return 2 * x\n", "    return x\n", "    return x + x\n"]
    written = {"T/0": of_first, "T/1": ["    while True: pass\n"] * 3}

    class Backend:
        def describe(self):
            return {"model": "scripted"}

        def answers(self, prompts):
            for prompt in prompts:
                name = "T/0" if "twice" in prompt.asked else "T/1"
                yield RowAnswer(tuple(Choice(text, "stop", 1) for text in written[name]))

    config = base.get_config("programs")
    config.programs.update(input=str(write_problems(tmp_path)), samples=3, temperature=0.8, ks=(1, 2), seconds=1)

    def again(**changed):
        other = config.copy_and_resolve_references()
        other.programs.update(changed)
        with monkeypatch.context() as patch:
            patch.setattr(programs, "open_answerer", lambda *_, **__: Answerer(lambda sampling: Backend()))
            return runner.run(other, workdir=tmp_path / "run")

    result = again()
    assert result["pass@1"] == pytest.approx((2 / 3 + 0) / 2)
    assert result["pass@2"] == pytest.approx((1 + 0) / 2)
    assert result["ended"] == {"passed": 2, "failed": 1, "timed out": 3, "killed": 0}
    assert list(result["solutions_refused"]) == ["T/1"]
    assert sum(result["left_out"].values()) == 4
    lines = [json.loads(line) for line in (tmp_path / "run" / "outcomes.jsonl").open()]
    assert [line["status"] for line in lines] == ["passed", "failed", "passed", *["timed out"] * 3]
    assert r"| pass\@2 | 50.0% |" in (tmp_path / "run" / "programs.md").read_text()
    with pytest.raises(UserError, match="holds answers that were made with another as_chat and instruction"):
        again(as_chat=True)
    wrong = [{**row, "canonical_solution": "    return None\n"} for row in ROWS]
    (tmp_path / "wrong.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wrong))
    with pytest.raises(UserError, match=r"none of the file's 2 own solutions passes here .T/0: AssertionError"):
        again(input=str(tmp_path / "wrong.jsonl"))
    save_model(tmp_path)
    config.init.weights = str(tmp_path / "model")
    config.programs.max_new_tokens = 4
    assert runner.run(config, workdir=tmp_path / "model_run")["programs"] == 6  # our engine's
    for changes, message in (
        ({"ks": (4,)}, r"programs.ks = .4,.: expected numbers from 1 to samples = 3"),
        ({"temperature": 0.0}, "at temperature 0 all are the same"),
        ({"instruction": "Write it"}, "has no {prompt}"),
    ):
        with pytest.raises(UserError, match=message):
            ProgramsSettings(**({"samples": 3, "temperature": 1.0, "ks": (1,)} | changes))
