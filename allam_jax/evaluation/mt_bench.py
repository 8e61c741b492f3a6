"""MT-bench as FastChat runs it: which prompts a judge gets, and how its judgments are read.

    questions    {"question_id": 81, "category": "writing", "turns": ["...", "..."]}
    answers      {"question_id": 81, "choices": [{"turns": ["...", "..."]}]}
    prompts      {"name": "single-v1", "system_prompt": "...", "prompt_template": "... {question} ... {answer} ..."}

The templates have FastChat's names: `single` or `pair` first, `math` where the judge sees a reference answer, and
`multi-turn` where it sees both turns. Questions of some categories have reference answers.
"""

import dataclasses
import re
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from allam_jax.corpus.record_formats import json_records
from allam_jax.errors import UserError
from allam_jax.evaluation.settings import JudgeSettings
from allam_jax.files import json_text
from allam_jax.generation.rows import Prompt

_LARGEST_RECORD = 1 << 26  # bytes
_TEMPLATES = {  # (mode, reference, turns that are shown) -> name
    ("single", False, 1): "single-v1",
    ("single", True, 1): "single-math-v1",
    ("single", False, 2): "single-v1-multi-turn",
    ("single", True, 2): "single-math-v1-multi-turn",
    ("pairwise", False, 1): "pair-v2",
    ("pairwise", True, 1): "pair-math-v1",
    ("pairwise", False, 2): "pair-v2-multi-turn",
    ("pairwise", True, 2): "pair-math-v1-multi-turn",
}
_RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")
_LOOSE_RATING = re.compile(r"\[(\d+\.?\d*)\]")
_VERDICTS = {"[[A]]": "first", "[[B]]": "second", "[[C]]": "tie"}
_MOST = 10.0  # a rating is from 1 to 10


@dataclasses.dataclass(frozen=True)
class MTQuestion:
    """A question of one or two turns."""

    id: str
    category: str
    turns: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Template:
    """What a judge is asked."""

    system: str
    prompt: str


@dataclasses.dataclass(frozen=True)
class Bench:
    """Everything that judgments are made of. Answers are model -> question -> turns; references question -> turns."""

    questions: tuple[MTQuestion, ...]
    templates: Mapping[str, Template]
    answers: Mapping[str, Mapping[str, tuple[str, ...]]]
    references: Mapping[str, tuple[str, ...]]
    reference_categories: tuple[str, ...]

    def single(self) -> Iterator[Prompt]:
        """A prompt for each model, question and turn."""
        row = 0
        for model in self.answers:
            for question in self.questions:
                for turn in range(1, len(question.turns) + 1):
                    yield self._prompt(row, question, turn, mode="single", models=(model,))
                    row += 1

    def pairwise(self, *, baseline: str) -> Iterator[Prompt]:
        """A prompt for each pair of models, question, turn and order of the answers."""
        names = list(self.answers)
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if baseline in ("", a, b)]
        row = 0
        for a, b in pairs:
            for question in self.questions:
                for turn in range(1, len(question.turns) + 1):
                    for models in ((a, b), (b, a)):
                        yield self._prompt(row, question, turn, mode="pairwise", models=models)
                        row += 1

    def _prompt(self, row: int, question: MTQuestion, turn: int, *, mode: str, models: tuple[str, ...]) -> Prompt:
        wants = question.category in self.reference_categories
        references = self.references.get(question.id, ()) if wants else ()
        shown = len(references) >= turn
        kept = {
            "question": question.id,
            "category": question.category,
            "turn": turn,
            "models": list(models),
            "reference": shown,
            "lacks_reference": wants and not shown,
        }
        given = [self.answers[model].get(question.id, ()) for model in models]
        for model, turns in zip(models, given, strict=True):
            if len(turns) < turn:
                return Prompt(row, "", kept, problem=f"{model} has no answer to a turn")
        values = {f"ref_answer_{i}": text for i, text in enumerate(references, start=1)}
        if turn == 1:
            values["question"] = question.turns[0]
        else:
            values |= {f"question_{i}": text for i, text in enumerate(question.turns[:turn], start=1)}
        for letter, turns in zip(("",) if mode == "single" else ("_a", "_b"), given, strict=True):
            if turn == 1:
                values[f"answer{letter}"] = turns[0]
            else:
                values |= {f"answer{letter}_{i}": text for i, text in enumerate(turns[:turn], start=1)}
        template = self.templates[_TEMPLATES[mode, shown, min(turn, 2)]]
        filled = re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template.prompt)
        messages = [{"role": "system", "content": template.system}, {"role": "user", "content": filled}]
        return Prompt(row, messages, kept)


def read_questions(path: str, *, key: str) -> list[MTQuestion]:
    """The questions of a file that `key` of the config names; UserError that names a line which is none."""
    questions: dict[str, MTQuestion] = {}
    for where, record in _records(path, key=key):
        name, turns = _id(record, where), record.get("turns")
        if not _texts(turns) or len(turns) > 2:
            raise UserError(f"{where}: `turns` is no list of one or two texts")
        _refuse_second(name, questions, where)
        questions[name] = MTQuestion(name, str(record.get("category") or ""), tuple(turns))
    return list(questions.values())


def read_bench(settings: JudgeSettings) -> Bench:
    """The files that a config names; UserError that names a line or a template that is missing."""
    questions = read_questions(settings.questions, key="judge.questions")
    templates = {
        str(record.get("name")): Template(
            str(record.get("system_prompt") or ""), str(record.get("prompt_template") or "")
        )
        for _, record in _records(settings.prompts, key="judge.prompts")
    }
    needed = [name for (mode, reference, turns), name in _TEMPLATES.items() if mode == settings.mode]
    if missing := [name for name in needed if not templates.get(name, Template("", "")).prompt]:
        raise UserError(f"config.judge.prompts: {settings.prompts}: has no prompt called {', '.join(missing)}")
    answers = {model: _answers(path, key=f"judge.answers.{model}") for model, path in settings.answers.items()}
    references = _answers(settings.references, key="judge.references") if settings.references else {}
    return Bench(tuple(questions), templates, answers, references, tuple(settings.reference_categories))


def rating(judgment: str) -> float | None:
    """The rating of a judgment, from 1 to 10, by its first `[[...]]`, or else its first `[...]`; None without one."""
    found = _RATING.search(judgment) or _LOOSE_RATING.search(judgment)
    value = float(found[1]) if found else 0.0
    return value if 1 <= value <= _MOST else None


def verdict(judgment: str) -> str | None:
    """`first`, `second` or `tie`, by the first of `[[A]]`, `[[B]]`, `[[C]]` in this order that it holds; else None."""
    return next((meaning for mark, meaning in _VERDICTS.items() if mark in judgment), None)


def _answers(path: str, *, key: str) -> dict[str, tuple[str, ...]]:
    found = dict[str, tuple[str, ...]]()
    for where, record in _records(path, key=key):
        name, choices = _id(record, where), record.get("choices")
        turns = (
            choices[0].get("turns") if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
        )
        if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
            raise UserError(f"{where}: `choices[0].turns` is no list of texts")
        _refuse_second(name, found, where)
        found[name] = tuple(turns)
    return found


def _refuse_second(name: str, known: Container[str], where: str) -> None:
    if name in known:
        raise UserError(f"{where}: an earlier line has the question_id {name}; give each its own")


def _records(path: str, *, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    file = Path(path)
    if not path or not file.is_file():
        raise UserError(f"config.{key}: {path or 'is empty'}: no such file; give JSON Lines as FastChat writes them")
    for number, record in enumerate(json_records(file, limit=_LARGEST_RECORD), start=1):
        where = f"{file}, line {number}"
        if isinstance(record, str):
            raise UserError(f"{where}: {record}")
        try:
            json_text(record).encode()
        except UnicodeEncodeError:
            raise UserError(f"{where}: has half a character (a lone surrogate); mend or remove it") from None
        yield where, record


def _id(record: Mapping[str, Any], where: str) -> str:
    if not isinstance(record.get("question_id"), str | int):
        raise UserError(f"{where}: no question_id")
    return str(record["question_id"])


def _texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) and one for one in value)
