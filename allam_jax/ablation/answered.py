"""Measures of answers to prompts with one right answer: how many are right, or hold no words, and who wins.

Each reads stages of task `generate` that have answered the prompts of task `instruction_data`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from allam_jax.ablation.measures import Measure, computed
from allam_jax.corpus.words import bare_words
from allam_jax.evaluation.exact_answers import ExactAnswer, exact_answers, win_rate
from allam_jax.generation.over_rows import read_answers

PERCENT = "%"


def right(name: str, *, stage: str, title: str = "Exact answers") -> Measure:
    """The share of prompts that are answered to the letter, in percent."""
    return _share(name, stage=stage, title=title, counts=lambda answer: answer.is_right)


def without_words(name: str, *, stage: str, title: str = "Answers without words") -> Measure:
    """The share of answers that hold no word, in percent."""
    return _share(name, stage=stage, title=title, counts=lambda answer: not bare_words(answer.text))


def wins(name: str, *, stage: str, over: str, title: str = "Win rate") -> Measure:
    """`exact_answers.win_rate` of the answers of `stage` over those of the stage `over`, in percent."""

    def read(directories: Mapping[str, Path]) -> float:
        return 100 * win_rate(_answers(directories[over]), _answers(directories[stage]))

    return computed(name, read, stages=(over, stage), title=title, unit=PERCENT)


def _share(name: str, *, stage: str, title: str, counts: Callable[[ExactAnswer], bool]) -> Measure:
    def read(directories: Mapping[str, Path]) -> float:
        answers = _answers(directories[stage])
        return 100 * sum(map(counts, answers)) / len(answers)

    return computed(name, read, stages=(stage,), title=title, unit=PERCENT)


def _answers(directory: Path) -> list[ExactAnswer]:
    return exact_answers(read_answers(directory), where=str(directory))
