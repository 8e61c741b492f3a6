"""Grades of documents before and after, by a judge who sees both versions: in each order, so that place cancels out.

The judge answers a line for each criterion with its name and two grades, `format: [[7]] [[9]]`. A judgment that lacks
one of them is counted, and so is a document of which one order has no grades: nothing is dropped in silence.
"""

import collections
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from allam_jax.errors import UserError
from allam_jax.evaluation.judgments import NO_ANSWER, why_missing
from allam_jax.evaluation.mt_bench import rating
from allam_jax.generation.rows import Prompt
from allam_jax.rewriting.instructions import Instruction, read_guidelines, read_instruction
from allam_jax.rewriting.restoration import with_interval

_PLACES = ("{first}", "{second}")
_GRADE = re.compile(r"\[\[[^\[\]]*\]\]")
OVERALL = "overall"  # the mean of all criteria


class Rubric(NamedTuple):
    """What a judge is asked, and the criteria that he grades."""

    instruction: Instruction
    criteria: tuple[str, ...]


class Version(NamedTuple):
    """A document of a corpus before and after."""

    corpus: str
    id: str
    language: str
    before: str
    after: str


def read_rubric(path: str) -> Rubric:
    """The rubric of a file; UserError that names what is wrong with it, or criteria that languages do not share."""
    instruction, guidelines = read_instruction(path, places=_PLACES), read_guidelines(path)
    names = guidelines.names()
    if odd := next((language for language, rules in guidelines.rules.items() if set(rules) != set(names)), ""):
        raise UserError(f"{path}: guidelines.{odd}: other criteria than in the other languages; give the same names")
    return Rubric(instruction, tuple(names))


def prompts(versions: Iterable[Version], *, rubric: Rubric) -> Iterator[Prompt]:
    """Two prompts for each document: the version before first, then the version after."""
    row = 0
    for version in versions:
        for after_first in (False, True):
            shown = (version.after, version.before) if after_first else (version.before, version.after)
            messages = rubric.instruction.filled(
                dict(zip(("first", "second"), shown, strict=True)), language=version.language
            )
            kept = {"corpus": version.corpus, "id": version.id, "after_first": after_first}
            yield Prompt(row, messages, kept)
            row += 1


def grades(judgment: str, criteria: Sequence[str]) -> np.ndarray | None:
    """[criteria, 2]: grades of the version that was shown first and of the other; None if one of them is missing.

    A line is that of a criterion if it begins with its name, whatever signs stand around it. The last such line counts,
    because judges may think aloud.
    """
    names = "|".join(re.escape(name) for name in sorted(criteria, key=len, reverse=True))  # of two the longer one
    begins = re.compile(rf"[\W\d_]*?({names})\b", re.I)
    found: dict[str, list[float | None]] = {}
    for line in judgment.splitlines():
        name = begins.match(line)
        given = list(map(rating, _GRADE.findall(line)))
        if name and len(given) == 2:
            found[name[1].casefold()] = given
    pairs = [found.get(name.casefold(), [None, None]) for name in criteria]
    return None if any(grade is None for pair in pairs for grade in pair) else np.array(pairs, float)


def rubric_scores(
    answers: Iterable[Mapping[str, Any]], errors: Iterable[Mapping[str, Any]], *, criteria: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
    """Corpus -> what its judgments come to.

    `grades` has, for each criterion and `overall`, the means before and after over the documents that were graded in
    both orders, and their difference with its 95 % interval. `first_over_second` is the mean by which a version gets
    more where it is shown first; 0 without position bias. `consistent` is the share of documents of which both orders
    prefer the same version, or none.
    """
    # corpus -> id -> [before shown first, after shown first], each [criteria, 2] of the versions as shown
    found: dict[str, dict[str, list[np.ndarray | None]]] = collections.defaultdict(dict)
    missing: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for row in answers:
        text = row["answers"][0]["text"]
        given = grades(text, criteria)
        found[row["corpus"]].setdefault(row["id"], [None, None])[row["after_first"]] = given
        if given is None:
            missing[row["corpus"]][why_missing(text)] += 1
    for row in errors:
        found[row["corpus"]].setdefault(row["id"], [None, None])
        missing[row["corpus"]][NO_ANSWER] += 1
    return {
        corpus: _scores(documents, criteria=criteria, seed=seed) | {"missing": dict(missing[corpus])}
        for corpus, documents in found.items()
    }


def _scores(
    documents: Mapping[str, Sequence[np.ndarray | None]], *, criteria: Sequence[str], seed: int
) -> dict[str, Any]:
    both = [orders for orders in documents.values() if orders[0] is not None and orders[1] is not None]
    counts = {"documents": len(documents), "graded": len(both)}
    if not both:
        return counts | {"grades": {}, "first_over_second": None, "consistent": None}
    shown_DOCV = np.array(both)  # document, order, criterion, version as shown
    mean = shown_DOCV.mean(axis=2, keepdims=True)
    shown_DOCV = np.concatenate([shown_DOCV, mean], axis=2)
    before_DOC = np.stack([shown_DOCV[:, 0, :, 0], shown_DOCV[:, 1, :, 1]], axis=1)
    after_DOC = np.stack([shown_DOCV[:, 0, :, 1], shown_DOCV[:, 1, :, 0]], axis=1)
    gain_DOC = after_DOC - before_DOC
    prefers_DO = np.sign(gain_DOC[:, :, -1])
    return counts | {
        "grades": {
            name: {
                "before": float(before_DOC[:, :, place].mean()),
                "after": float(after_DOC[:, :, place].mean()),
                "gain": with_interval(gain_DOC[:, :, place].mean(axis=1), seed=seed),
            }
            for place, name in enumerate((*criteria, OVERALL))
        },
        "first_over_second": float((shown_DOCV[..., -1, 0] - shown_DOCV[..., -1, 1]).mean()),
        "consistent": float((prefers_DO[:, 0] == prefers_DO[:, 1]).mean()),
    }
