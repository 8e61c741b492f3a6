"""Problems in HumanEval's form: a beginning of a function, and the tests of what a model makes of it.

    {"task_id": "HumanEval/0", "prompt": "def f(x): ...", "entry_point": "f", "test": "def check(candidate): ..."}

`canonical_solution`, what comes behind the prompt in a right program, may be there too.
"""

import ast
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from allam_jax.corpus.found_files import find_files, kind_of
from allam_jax.corpus.parquet_records import column_names, parquet_records
from allam_jax.corpus.record_formats import Record, Unreadable, json_records
from allam_jax.errors import UserError
from allam_jax.evaluation.program_answers import code_of_answer, defines
from allam_jax.files import is_unicode

# Where the completion of a function ends, as in the harness's humaneval: the next line at the margin.
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
_FIELDS = ("task_id", "prompt", "entry_point", "test")
_SOLUTION = "canonical_solution"
_LARGEST = 1 << 22  # bytes of a problem
_FUTURE = re.compile(r"^from __future__ import .+\n", re.M)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem; `solution` is empty if the file has none."""

    id: str
    prompt: str
    entry_point: str
    test: str
    solution: str

    def program(self, answer: str) -> str:
        """The whole program, with its tests, where a model has gone on from the prompt."""
        return f"{self.prompt}{answer}\n{self._checked()}"

    def program_of_chat(self, answer: str) -> str:
        """The same where a model was asked for it, whose code may repeat the beginning (`code_of_answer`).

        The imports and helpers of the prompt stay before it. Its own function goes, which is no whole one where a
        comment stands in place of its docstring.
        """
        code = code_of_answer(answer, name=self.entry_point)
        if not defines(code, self.entry_point):
            return self.program(code)
        own = re.compile(rf"(?:^@.*\n)*^(?:async )?def {re.escape(self.entry_point)}\b", re.M)
        begins = max((found.start() for found in own.finditer(self.prompt)), default=len(self.prompt))
        # Python takes imports of __future__ at the very beginning only.
        first, rest = "".join(_FUTURE.findall(code)), _FUTURE.sub("", code)
        return f"{first}{self.prompt[:begins]}\n{rest}\n{self._checked()}"

    def _checked(self) -> str:
        return f"{self.test}\ncheck({self.entry_point})\n"


def read_problems(path: str, *, key: str) -> tuple[list[Problem], Mapping[str, list[str]]]:
    """The problems of the files at a path, and what was left out: reason -> names. UserError if none is left."""
    found: list[Problem] = []
    left_out: dict[str, list[str]] = {}
    seen: set[str] = set()
    for file in find_files(path).files:
        for number, record in enumerate(_records(file), start=1):
            place = f"{Path(file).name}:{number}"
            problem = _problem(record)
            if isinstance(problem, Problem) and problem.id in seen:
                problem = "an id that an earlier problem has"
            if isinstance(problem, str):
                left_out.setdefault(problem, []).append(place)
            else:
                found.append(problem)
                seen.add(problem.id)
    if not found:
        said = "; ".join(f"{len(places)} with {reason}" for reason, places in left_out.items())
        raise UserError(f"config.{key}: {path}: holds no problems ({said or 'the files are empty'})")
    return found, left_out


def _records(file: Path) -> Iterator[Record]:
    kind = kind_of(file)
    if kind == "parquet":
        others = [name for name in (*_FIELDS[1:], _SOLUTION) if name in column_names(file)]
        return parquet_records(file, text_field=_FIELDS[0], optional=others, limit=_LARGEST)
    if kind != "jsonl":
        raise UserError(f"{file}: problems are read from JSON Lines and Parquet; give such a file")
    return json_records(file, limit=_LARGEST)


def _problem(record: object) -> Problem | str:
    """The problem, or why it is none."""
    if not isinstance(record, Mapping):
        return f"a row {record}"
    for name in _FIELDS:
        value = record.get(name)
        if not isinstance(value, str) or isinstance(value, Unreadable) or not value.strip():
            return f"no text in field {name!r}"
        if not is_unicode(value):
            return f"half a character (a lone surrogate) in field {name!r}"
    if not record["entry_point"].isidentifier():
        return "an entry point that is no name"
    if not _is_python(record["test"]):
        return "a test that this Python cannot read"
    if not defines(record["test"], "check"):
        return "a test that defines no function check"
    solution = record.get(_SOLUTION)
    return Problem(
        id=record["task_id"],
        prompt=record["prompt"],
        entry_point=record["entry_point"],
        test=record["test"],
        solution=solution if isinstance(solution, str) else "",
    )


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
