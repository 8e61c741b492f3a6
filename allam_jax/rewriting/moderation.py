"""What a server of moderation says of corpora: documents that it flags, by category."""

import collections
import json
from collections.abc import Iterable, Mapping
from typing import Any

from allam_jax.evaluation.judgments import NO_ANSWER

CATEGORIES = ("harassment", "hate", "sexual", "violence")
ANY = "any"


def moderation_table(
    answers: Iterable[Mapping[str, Any]], places: Mapping[str, Iterable[int]]
) -> dict[str, dict[str, Any]]:
    """Corpus -> documents that were judged, those without an answer, and of each category: flagged ones, mean score.

    Args:
        answers: rows of `over_rows` with a `moderation_endpoint` behind it.
        places: corpus -> numbers of the rows of its documents; documents with the same text share one.
    """
    found = {row["row"]: json.loads(row["answers"][0]["text"]) for row in answers}
    table: dict[str, dict[str, Any]] = {}
    for corpus, rows in places.items():
        rows = list(rows)
        given = [found[row] for row in rows if row in found]
        flagged = collections.Counter[str]()
        for one in given:
            own = [name for name in CATEGORIES if one["flagged"].get(name)]
            flagged.update([*own, *([ANY] if own else [])])
        table[corpus] = {"documents": len(given), NO_ANSWER: len(rows) - len(given)}
        for name in CATEGORIES:
            scores = [one["scores"][name] for one in given if name in one["scores"]]
            table[corpus] |= {name: flagged[name], f"{name}, mean score": sum(scores) / len(scores) if scores else None}
        table[corpus][ANY] = flagged[ANY]
    return table
