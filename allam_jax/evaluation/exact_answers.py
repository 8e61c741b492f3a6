"""What answers to prompts with one right answer each amount to."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from allam_jax.corpus.words import bare_words
from allam_jax.errors import UserError
from allam_jax.evaluation.choice_scores import mcnemar, paired_bootstrap, wilson
from allam_jax.evaluation.suite_comparison import holm
from allam_jax.generation.over_rows import ENDED


@dataclasses.dataclass(frozen=True)
class ExactAnswer:
    """An answer to a prompt.

    Attributes:
        id: of the prompt.
        language, kind, turn: of its question.
        question: the last message of the prompt.
        expected: the right answer.
        text: what the model has answered.
        ended: whether it ended by itself.
    """

    id: str
    language: str
    kind: str
    turn: int
    question: str
    expected: str
    text: str
    ended: bool

    @property
    def is_right(self) -> bool:
        """Whether it is the right answer to the letter, but for white space."""
        return self.text.split() == self.expected.split()


def exact_answers(rows: Iterable[Mapping[str, Any]], *, where: str) -> list[ExactAnswer]:
    """The first answers of rows that `over_rows` has written; UserError for rows that do not say what is right."""
    found = []
    for row in rows:
        if missing := [name for name in ("id", "language", "kind", "turn", "expected", "messages") if name not in row]:
            raise UserError(
                f"{where}: answers without {', '.join(missing)}; ask the prompts of task instruction_data, with "
                'generate.keep = ("language", "kind", "turn", "expected")'
            )
        answer, question = row["answers"][0], row["messages"][-1]["content"]
        facts = {name: row[name] for name in ("id", "language", "kind", "turn", "expected")}
        ended = answer["finish_reason"] in ENDED
        found.append(ExactAnswer(question=question, text=answer["text"], ended=ended, **facts))
    return found


def scores(answers: Sequence[ExactAnswer]) -> dict[str, dict[str, Any]]:
    """Of all, of each kind in each language, and of each turn: how many are right, with the 95 % interval, and lengths.

    `words`: the mean of an answer; `cut`: the share that did not end by itself.
    """
    groups: dict[str, list[ExactAnswer]] = collections.defaultdict(list)
    for answer in answers:
        for name in ("all", f"{answer.kind} ({answer.language})", f"turn {answer.turn} ({answer.language})"):
            groups[name].append(answer)
    return {name: _score(groups[name]) for name in sorted(groups, key=lambda name: (name != "all", name))}


def compared(answers: Mapping[str, Sequence[ExactAnswer]], *, samples: int, seed: int) -> list[dict[str, Any]]:
    """Every two models on the same prompts: how often only one of them is right, and the difference of their shares.

    `p` is that of McNemar's exact test, adjusted for the number of comparisons (Holm 1979).
    """
    rows: list[dict[str, Any]] = []
    for first, second in itertools.combinations(answers, 2):
        pairs = _rights(answers[first], answers[second], names=f"{first} and {second}")
        one, two = zip(*pairs, strict=True)
        difference, low, high = paired_bootstrap(one, two, samples=samples, seed=seed)
        counts = {"losses": pairs.count((True, False)), "wins": pairs.count((False, True))}
        values = {"first": first, "second": second, "prompts": len(pairs)} | counts
        rows.append(values | {"difference": difference, "low": low, "high": high, "p": mcnemar(one, two)})
    return [row | {"p": p} for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True)]


def win_rate(first: Sequence[ExactAnswer], second: Sequence[ExactAnswer]) -> float:
    """The share of prompts that only the second model answers rightly, and half of those that both or none does."""
    pairs = _rights(first, second, names="the models")
    return sum((1 + two - one) / 2 for one, two in pairs) / len(pairs)


def _rights(first: Sequence[ExactAnswer], second: Sequence[ExactAnswer], *, names: str) -> list[tuple[bool, bool]]:
    """Whether each model is right, for the prompts that both have answered."""
    other = {answer.id: answer for answer in second}
    pairs = [(one.is_right, other[one.id].is_right) for one in first if one.id in other]
    if not pairs:
        raise UserError(f"{names} have answered no prompt in common; give both the same prompts")
    return pairs


def _score(answers: Sequence[ExactAnswer]) -> dict[str, Any]:
    right, count = sum(answer.is_right for answer in answers), len(answers)
    low, high = wilson(right, count)
    words = sum(len(bare_words(answer.text)) for answer in answers) / count
    cut = sum(not answer.ended for answer in answers) / count
    return {"prompts": count, "right": right / count, "low": low, "high": high, "words": words, "cut": cut}
