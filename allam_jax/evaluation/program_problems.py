"""Problems in HumanEval's form: a beginning of a function, and the tests of what a model makes of it.

    {"task_id": "HumanEval/0", "prompt": "def f(x): ...", "entry_point": "f", "test": "def check(candidate): ..."}

`canonical_solution`, what comes behind the prompt in a right program, may be there too.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from allam_jax.corpus.found_files import find_files
from allam_jax.corpus.record_formats import json_records
from allam_jax.errors import UserError

# Where the completion of a function ends, as in the harness's humaneval: the next line at the margin.
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
_FIELDS = ("task_id", "prompt", "entry_point", "test")
_LARGEST = 1 << 22  # bytes of a problem
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.S)


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
        return f"{self.prompt}{answer}\n{self.test}\ncheck({self.entry_point})\n"

    def program_of_chat(self, answer: str) -> str:
        """The same where a model was asked for it: its first block of code, which may repeat the beginning.

        The prompt stays before it, with imports and helpers; its own function, all docstring, is then defined again.
        """
        block = _BLOCK.search(answer)
        code = block[1] if block else answer
        whole = re.search(rf"^\s*(?:async )?def {re.escape(self.entry_point)}\b", code, re.M)
        return self.program(f"\n{code}" if whole else code)


def read_problems(path: str, *, key: str) -> tuple[list[Problem], Mapping[str, list[str]]]:
    """The problems of the files at a path, and what was left out: reason -> names. UserError if none is left."""
    found: list[Problem] = []
    left_out: dict[str, list[str]] = {}
    seen: set[str] = set()
    for file in find_files(path).files:
        for number, record in enumerate(json_records(file, limit=_LARGEST), start=1):
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


def _problem(record: object) -> Problem | str:
    """The problem, or why it is none."""
    if not isinstance(record, Mapping):
        return f"a row {record}"
    for name in _FIELDS:
        if not isinstance(record.get(name), str) or not record[name].strip():
            return f"no text in field {name!r}"
    if not record["entry_point"].isidentifier():
        return "an entry point that is no name"
    solution = record.get("canonical_solution")
    return Problem(
        id=record["task_id"],
        prompt=record["prompt"],
        entry_point=record["entry_point"],
        test=record["test"],
        solution=solution if isinstance(solution, str) else "",
    )
