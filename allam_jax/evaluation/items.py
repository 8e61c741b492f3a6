"""Questions with choices, read from files in the shapes that suites come in, and written as items of the harness.

    {"id": "Algeria-180", "question": "...", "answer": "نعم"}                    with fixed choices
    {"id": "Biology-7", "question": "...", "A": "...", ..., "answer": "B"}       a field for each choice
    {"question": "...", "choices": ["...", "..."], "answer": 0}                  a list, and a number
    {..., "choices": {"text": ["...", ...], "label": ["1", ...]}, "answer": "1"} as in ARC, or [{"text": ..., "label":
                                                                                 ...}, ...], or {"A": "...", ...}
    question,first,second,third,fourth,A                                         CSV without names

What cannot be asked is left out, counted by its reason, and named.
"""

import dataclasses
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.corpus.found_files import common_folder, find_files, kind_of
from allam_jax.corpus.record_formats import Record, Unreadable, csv_records, json_records
from allam_jax.errors import UserError
from allam_jax.evaluation.settings import SuiteSettings
from allam_jax.files import is_unicode, shown

LATIN = ("A", "B", "C", "D", "E", "F")
ARABIC = ("أ", "ب", "ج", "د", "هـ", "و")
_SPELLINGS = ({"ا": "أ", "ه": "هـ"}, {letter.lower(): letter for letter in LATIN})
_LARGEST_ITEM = 1 << 24  # bytes
_LONGEST_NUMBER = 9  # digits
_UNLIKE = "a number as answer, beside letters in the same file: set first_number to 1 if 1 is the first choice"
_ROLE = re.compile(r"[-_ ](test|dev|val|valid|validation|train)$")  # what a file's name says beside its subject
_NUMBER = re.compile(r"[-_ ]\d+$")


@dataclasses.dataclass(frozen=True)
class Question:
    """One item: what is asked, its choices, and the number of the right one."""

    id: str
    text: str
    choices: tuple[str, ...]
    answer: int
    subject: str

    def permuted(self, seed: int) -> "Question":
        """The same with its choices in another order, which depends on the seed and the id."""
        order = list(range(len(self.choices)))
        chance = random.Random(f"{seed}/{self.id}")
        while order == sorted(order):
            chance.shuffle(order)
        choices = tuple(self.choices[number] for number in order)
        return dataclasses.replace(self, choices=choices, answer=order.index(self.answer))


@dataclasses.dataclass(frozen=True)
class Questions:
    """The items of some files. `problems`: reason -> the items (by id, or file and number) that it left out."""

    items: tuple[Question, ...]
    problems: Mapping[str, tuple[str, ...]]


def read_items(path: str, suite: SuiteSettings, *, key: str) -> Questions:
    """The items at a path, in the order of the files.

    Args:
        path: file, folder or pattern.
        suite: the shape of the items.
        key: of the path in the config, for errors.

    Raises:
        UserError: there are no files, or no item can be asked.
    """
    items: list[Question] = []
    problems: dict[str, list[str]] = {}
    seen: set[str] = set()
    files = find_files(path).files
    folder = Path(path).absolute() if Path(path).is_dir() else common_folder(files)
    for file in files:
        by_letter, by_number = list[Question](), list[Question]()
        for number, record in enumerate(_records(file, suite), start=1):
            fields: Mapping[str, Any] = record if isinstance(record, Mapping) else {}
            place = f"{shown(file.absolute().relative_to(folder))}:{number}"  # names may repeat in folders
            name = _text(fields.get("id")) or place
            found = _question(record, suite, name=name, file=file)
            if isinstance(found, Question) and found.id in seen:
                found = "an id that an earlier item has"
            if isinstance(found, str):
                problems.setdefault(found, []).append(name.encode(errors="backslashreplace").decode())
            else:
                items.append(found)
                seen.add(found.id)
                kind = _kind_of_answer(fields[suite.answer], found.choices, labels=_choices(fields, suite)[1])
                {"letter": by_letter, "number": by_number}.get(kind, []).append(found)
        # Published files have A to D in some items and 1 to 4 in others. A 0 would say that numbers count from there.
        if by_letter and by_number and not suite.first_number and all(item.answer for item in by_number):
            problems[_UNLIKE] = [*problems.get(_UNLIKE, ()), *(item.id for item in by_number)]
            refused = {item.id for item in by_number}
            items = [item for item in items if item.id not in refused]
    if not items:
        said = "; ".join(f"{len(names)} with {reason}" for reason, names in problems.items())
        raise UserError(f"config.{key}: {path}: no item can be asked ({said or 'the files are empty'})")
    return Questions(tuple(items), {reason: tuple(names) for reason, names in problems.items()})


def prompt_of(question: Question, suite: SuiteSettings) -> str:
    """The text that is asked."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(suite.letters, question.choices, strict=False)]
    named = {"question": question.text, "choices": "\n".join(lines), "subject": question.subject.replace("_", " ")}
    return _filled(suite.prompt, named)


def lettered(suite: SuiteSettings) -> bool:
    """Whether the letters of the choices are scored, not their texts."""
    return bool(suite.letters) and not suite.fixed_choices


def shows_choices(suite: SuiteSettings) -> bool:
    """Whether the order of the choices can be seen in the prompt."""
    return "{choices}" in suite.prompt and lettered(suite)


def record_of(question: Question, suite: SuiteSettings) -> dict[str, Any]:
    """The item as the harness reads it: `prompt`, `choices` that are scored, `answer`, and what reports need."""
    return {
        "id": question.id,
        "subject": question.subject,
        "category": suite.categories.get(question.subject, ""),
        "instruction": _filled(suite.instruction, {"subject": question.subject.replace("_", " ")}),
        "prompt": prompt_of(question, suite),
        "choices": list(suite.letters[: len(question.choices)] if lettered(suite) else question.choices),
        "texts": list(question.choices),
        "answer": question.answer,
    }


def drawn(items: Sequence[Question], count: int, *, seed: int) -> list[Question]:
    """So many items, drawn by the seed, in their order; all for 0."""
    if not count or count >= len(items):
        return list(items)
    chosen = sorted(random.Random(seed).sample(range(len(items)), count))
    return [items[number] for number in chosen]


def _filled(template: str, named: Mapping[str, str]) -> str:
    """The template with each `{name}` replaced once; braces in questions stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda match: named.get(match[1], match[0]), template)


def _records(file: Path, suite: SuiteSettings) -> Iterator[Record]:
    kind = kind_of(file)
    if kind == "jsonl":
        return json_records(file, limit=_LARGEST_ITEM)
    if kind == "parquet":
        from allam_jax.corpus.parquet_records import parquet_records  # pyarrow takes a second

        fields = tuple(
            name for name in (suite.question, suite.answer, suite.choices, suite.subject, "id", *LATIN, *ARABIC) if name
        )
        return parquet_records(file, text_field=suite.question, optional=fields, limit=_LARGEST_ITEM)
    if kind in ("csv", "tsv"):
        return csv_records(file, text_field=suite.question, dialect=kind, limit=_LARGEST_ITEM, columns=suite.columns)
    raise UserError(f"{file}: holds no items; expected JSON Lines, CSV, TSV or Parquet")


def _question(record: Record, suite: SuiteSettings, *, name: str, file: Path) -> Question | str:
    """The item, or why it cannot be asked."""
    if isinstance(record, str):
        return f"a row {record}"
    if any(isinstance(value, Unreadable) for value in record.values()):
        return "a field that cannot be read"
    text = _text(record.get(suite.question))
    if not text:
        return f"no text in field {suite.question!r}"
    choices, labels = _choices(record, suite)
    if not is_unicode(name + text + "".join(choices)):
        return "half a character (a lone surrogate)"
    if len(choices) < 2 or not all(choices):
        return "a missing choice"
    if labels and len(set(filter(None, labels))) != len(choices):
        return "choices whose labels do not fit their texts"
    if len(set(choices)) < len(choices) and not lettered(suite):  # published suites have some, which letters tell apart
        return "two equal choices"
    if lettered(suite) and len(choices) > len(suite.letters):
        return "more choices than letters"
    given = record.get(suite.answer)
    named = [labels.index(_text(given))] if _text(given) in labels else []
    answers = named or _answers(given, choices, first=suite.first_number)
    if suite.fixed_choices:
        answers = answers[:1]  # no letters are shown: a text is a text
    if not answers:
        return f"an answer in field {suite.answer!r} that is none of the choices"
    if len({choices[answer] for answer in answers}) > 1:
        return f"an answer in field {suite.answer!r} that is the text of one choice and the letter of another"
    return Question(name, text, tuple(choices), answers[0], _subject(record, suite, name=name, file=file))


def _choices(record: Mapping[str, Any], suite: SuiteSettings) -> tuple[list[str], list[str]]:
    """The choices and the labels that the item itself gives them; an empty choice stands for one that is missing."""
    if suite.fixed_choices:
        return list(suite.fixed_choices), []
    if not suite.choices:
        return _in_fields(record), []
    given = record.get(suite.choices)
    if isinstance(given, Mapping):
        columns = [given.get("text"), given.get("label")] if "text" in given else [[*given.values()], [*given]]
    elif isinstance(given, list | tuple) and all(isinstance(one, Mapping) for one in given):
        columns = [[one.get(name) for one in given] for name in ("text", "label")]
    else:
        columns = [given, []]
    texts, labels = ([*map(_text, column)] if isinstance(column, list | tuple) else [] for column in columns)
    while labels and len(labels) == len(texts) and not texts[-1]:  # a column of Parquet has the most labels of any item
        texts.pop()
        labels.pop()
    return texts, labels


def _in_fields(record: Mapping[str, Any]) -> list[str]:
    names = next((names for names in (LATIN, ARABIC) if names[0] in record), LATIN)
    found = [_text(record.get(name)) for name in names]
    while found and not found[-1]:
        found.pop()
    # The letters that the first line of a table names are the choices of all of its items.
    return found + [""] * (sum(name in record for name in names[:4]) - len(found))


def _answers(given: Any, choices: Sequence[str], *, first: int) -> list[int]:
    """The numbers of the choices that an answer can mean: as a text, then as a letter in either script or a number."""
    if isinstance(given, bool) or given is None or (isinstance(given, float) and not given.is_integer()):
        return []  # NaN and the infinities among them
    if isinstance(given, int | float):
        return _numbered(int(given), choices, first=first)
    text = _text(given)
    if choices.count(text) > 1:
        return []
    found = [choices.index(text)] if text in choices else []
    for letters, spelled in ((ARABIC, _SPELLINGS[0]), (LATIN, _SPELLINGS[1])):
        letter = spelled.get(text.rstrip("."), text.rstrip("."))
        if letter in letters[: len(choices)]:
            return [*found, letters.index(letter)]
    # A number among numbers is a text: suites of arithmetic have choices such as 1, 2, 3, 4.
    short = not found and len(text) <= _LONGEST_NUMBER and text.isascii() and text.isdigit()
    return found + (_numbered(int(text), choices, first=first) if short else [])


def _kind_of_answer(given: Any, choices: Sequence[str], *, labels: Sequence[str]) -> str:
    """Whether an answer that means a choice is its own label, its text, its number or its letter."""
    if _text(given) in labels:
        return "label"
    if _text(given) in choices and not isinstance(given, int | float):
        return "text"
    return "number" if isinstance(given, int | float) or _text(given).isdigit() else "letter"


def _numbered(given: int, choices: Sequence[str], *, first: int) -> list[int]:
    return [given - first] if 0 <= given - first < len(choices) else []


def _subject(record: Mapping[str, Any], suite: SuiteSettings, *, name: str, file: Path) -> str:
    if suite.subject == "file":
        return _ROLE.sub("", file.name.split(".")[0])
    if suite.subject == "id":
        return _NUMBER.sub("", name)
    return _text(record.get(suite.subject)) if suite.subject else ""


def _text(value: Any) -> str:
    """A value of an item as text, without white space around it; empty for none, as which Parquet may have NaN."""
    return "" if value is None or value != value or isinstance(value, list | dict) else str(value).strip()
