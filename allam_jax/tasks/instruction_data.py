"""Task `instruction_data`: conversations with exact answers, made of texts of the catalog, in parts that share nothing.

The workdir holds

    train/LANGUAGE.jsonl      conversations to tune on; `text` is the same as plain text
    preferences.jsonl         conversations whose last replies are the chosen sides of pairs
    held_out/LANGUAGE.jsonl   conversations for losses
    prompts.jsonl             held-out prompts, each with the one right answer in `expected`
    evaluations.jsonl         what no row to train on may hold: held-out passages, questions about untaught countries
    instruction_data.json     numbers of rows, by part, language and kind
"""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.alignment.quiz_conversations import (
    LANGUAGES,
    Quiz,
    country_quizzes,
    hadith_quizzes,
    untaught_questions,
)
from allam_jax.alignment.settings import InstructionDataSettings
from allam_jax.evaluation.capitals import countries
from allam_jax.files import unit_hash, write_json, write_json_lines
from allam_jax.settings import Settings

_PARTS = ("train", "preferences", "held_out")


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Writes the files; returns what `instruction_data.json` says."""
    options = config.instruction_data
    known = countries()
    quizzes = list(country_quizzes(known, seed=config.seed))
    for book in options.books:
        quizzes += hadith_quizzes(book, most_words=options.most_words)
    parts: dict[str, list[Quiz]] = {name: [] for name in _PARTS}
    # In an order that any number of first rows is a sample of.
    for quiz in sorted(quizzes, key=lambda quiz: unit_hash(f"{config.seed}/order/{quiz.id}")):
        parts[_part(quiz, options, seed=config.seed)].append(quiz)

    for name in ("train", "held_out"):
        (workdir / name).mkdir(exist_ok=True)
        for language in LANGUAGES:
            rows = [quiz.record() for quiz in parts[name] if quiz.language == language]
            write_json_lines(workdir / name / f"{language}.jsonl", rows)
    chosen = [asked for quiz in parts["preferences"] for asked in quiz.asked()]
    write_json_lines(workdir / "preferences.jsonl", _first(chosen, options.preferences))
    prompts = [_prompt(asked) for quiz in parts["held_out"] for asked in quiz.asked()]
    prompts = list(_first(prompts, options.prompts))
    write_json_lines(workdir / "prompts.jsonl", prompts)
    passages = dict.fromkeys(quiz.passage for quiz in parts["held_out"] if quiz.passage)
    write_json_lines(
        workdir / "evaluations.jsonl", ({"text": text} for text in (*passages, *untaught_questions(known)))
    )

    turns = {
        name: collections.Counter(f"{turn.kind} ({quiz.language})" for quiz in own for turn in quiz.turns)
        for name, own in parts.items()
    }
    result = {
        "conversations": {name: len(own) for name, own in parts.items()},
        "replies": {name: dict(sorted(counts.items())) for name, counts in turns.items()},
        "prompts": dict(sorted(collections.Counter(f"{row['kind']} ({row['language']})" for row in prompts).items())),
    }
    write_json(workdir / "instruction_data.json", result)
    return result


def _part(quiz: Quiz, options: InstructionDataSettings, *, seed: int) -> str:
    place = unit_hash(f"{seed}/part/{quiz.unit}")
    if place < options.held_out_share:
        return "held_out"
    return "preferences" if place < options.held_out_share + options.preference_share else "train"


def _prompt(asked: Mapping[str, Any]) -> dict[str, Any]:
    *before, reply = asked["messages"]
    return {**asked, "messages": before, "expected": reply["content"]}


def _first(rows: Sequence[dict[str, Any]], most: int) -> Sequence[dict[str, Any]]:
    return rows[:most] if most else rows
