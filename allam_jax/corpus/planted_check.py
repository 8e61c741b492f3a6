"""Recall and precision of a pipeline on planted damage, for each kind.

A dropped document that was not planted can still be damaged, because real texts repeat each other. This module decides
anew, from the documents alone, whether a document that was dropped as a duplicate is one: its address or its words
equal another document's, or its 13-grams have a Jaccard similarity of at least `similarity` with another's.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from allam_jax.corpus.normalise import normalise

_DUPLICATE = {"exact_copy": "duplicate text", "near_copy": "near-duplicate", "url_copy": "duplicate URL"}
_RULES = {"spam": {"spam"}, "foreign": {"language", "code"}}


def scores(
    rows: Mapping[str, Mapping[str, str]],
    truth: Sequence[Mapping[str, Any]],
    dropped: Mapping[str, Sequence[str]],
    stored: Mapping[str, str],
    *,
    repaired: int,
    similarity: float,
    shingle: int,
) -> dict[str, dict[str, float]]:
    """Kind -> {planted, found, flagged, right, recall, precision}.

    Recall is `found / planted`. Precision is `right / flagged`, where `flagged` are all documents with this reason.

    Args:
        rows: id -> the row that was read (`text`, `url`).
        truth: what was planted, from `planted.plant`.
        dropped: id -> reasons.
        stored: id -> text of each document that was kept.
        repaired: number of texts that the repair of mojibake changed.
        similarity, shingle: `verify` and `shingle` of the pipeline's `DedupSettings`.
    """
    kinds: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in truth:
        kinds[entry["kind"]].append(entry)
    result = {}
    # An advertisement is not running text in a language either, so the reason `language` is right for it too.
    beside = {entry["id"] for kind in _RULES for entry in kinds[kind]}
    for kind, rules in _RULES.items():
        flagged = {id_ for id_, reasons in dropped.items() if rules & set(reasons)}
        planted = {entry["id"] for entry in kinds[kind]}
        result[kind] = _score(len(planted), len(planted & flagged), len(flagged), len(beside & flagged))
    for kind, reason in _DUPLICATE.items():
        flagged = {id_ for id_, reasons in dropped.items() if reason in reasons}
        # A copy is no test of this reason if it, or its original, was dropped for another reason.
        planted = {
            entry["id"]
            for entry in kinds[kind]
            if entry["id"] in stored or entry["id"] in flagged
            if entry["id"].rpartition("#")[0] in stored or entry["id"] in flagged
        }
        right = _true_duplicates(rows, flagged, kind=kind, similarity=similarity, shingle=shingle)
        result[kind] = _score(len(planted), len(planted & flagged), len(flagged), right)
    duplicates = set(_DUPLICATE.values())
    damaged = [entry for entry in kinds["mojibake"] if not duplicates & set(dropped.get(entry["id"], ()))]
    restored = sum(_same(stored.get(entry["id"], ""), entry["text"]) for entry in damaged)
    changed = sum(_same(stored.get(entry["id"], ""), entry["text"]) for entry in kinds["mojibake"])
    undecided = len(kinds["mojibake"]) - len(damaged)  # repaired, and then dropped as duplicates
    result["mojibake"] = _score(len(damaged), restored, repaired, min(changed + undecided, repaired))
    return result


def _score(planted: int, found: int, flagged: int, right: int) -> dict[str, float]:
    return {
        "planted": planted,
        "found": found,
        "flagged": flagged,
        "right": right,
        "recall": found / planted if planted else float("nan"),
        "precision": right / flagged if flagged else float("nan"),
    }


def _same(stored: str, text: str) -> bool:
    """Whether the texts are equal except for composition and spaces at the ends, which change in every text."""
    return normalise(stored).strip() == normalise(text).strip()


def _true_duplicates(
    rows: Mapping[str, Mapping[str, str]], flagged: Iterable[str], *, kind: str, similarity: float, shingle: int
) -> int:
    """The number of flagged rows that do repeat another row."""
    flagged = set(flagged)
    if kind != "near_copy":
        key = _address if kind == "url_copy" else _words
        counts = Counter(key(row) for row in rows.values())
        return sum(counts[key(rows[id_])] > 1 for id_ in flagged)
    shingles = {id_: _shingles(rows[id_], shingle) for id_ in flagged}
    holders = defaultdict(list)
    for id_, some in shingles.items():
        for gram in some:
            holders[gram].append(id_)
    nearest = dict.fromkeys(flagged, 0.0)
    for id_, row in rows.items():
        grams = _shingles(row, shingle)
        shared = Counter(other for gram in grams for other in holders.get(gram, ()) if other != id_)
        for other, count in shared.items():
            union = len(grams) + len(shingles[other]) - count
            nearest[other] = max(nearest[other], count / union)
    return sum(value >= similarity for value in nearest.values())


def _address(row: Mapping[str, str]) -> str:
    return re.sub(r"^https?://(www\.)?|#.*$", "", row["url"], flags=re.IGNORECASE).rstrip("/").lower()


def _words(row: Mapping[str, str]) -> tuple[str, ...]:
    marks = (character for character in row["text"] if character != "\u0640" and not _is_mark(character))
    return tuple(re.findall(r"[^\W_]+", "".join(marks).lower()))


def _is_mark(character: str) -> bool:
    if character < "\u0600":
        return False
    arabic = "\u0600" <= character <= "\u08ff" and not "\u0653" <= character <= "\u0655"
    return (arabic and unicodedata.category(character) == "Mn") or unicodedata.category(character) == "Cf"


def _shingles(row: Mapping[str, str], size: int) -> set[int]:
    words = _words(row)
    return {hash(words[start : start + size]) for start in range(len(words) - size + 1)}
