"""What answers to multiple-choice items amount to: accuracy with its interval, beside what needs no model at all."""

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_LONGEST = 4000  # characters of a question that are kept
_Z = 1.959963984540054  # of 95 %


@dataclasses.dataclass(frozen=True)
class Answered:
    """One item and the choice that the model finds likeliest.

    Attributes:
        id: the same in tasks of the same items.
        right, chosen: numbers of choices.
        texts: of the choices, in the order in which they were shown.
        by_characters, by_bytes: 1 if the choice of most log-likelihood for each character, or byte, is right, else 0;
            None where the task does not measure it.
        subject, category: empty where the item has none.
        fixed: whether the choices mean the same in every item, such as letters, or yes and no.
        question: what was asked, without worked examples where the item knows it.
    """

    id: str
    right: int
    chosen: int
    texts: tuple[str, ...]
    by_characters: float | None
    by_bytes: float | None
    subject: str = ""
    category: str = ""
    fixed: bool = False
    question: str = ""


def answered(sample: Mapping[str, Any], *, fixed: bool) -> Answered | None:
    """An item of the harness's log of a multiple-choice task; None if it has no single right choice."""
    right, scores = sample["target"], [response[0] for response in sample["filtered_resps"]]
    choices = [str(arguments[1]) for arguments in sample["arguments"]]
    if not isinstance(right, int) or not 0 <= right < len(scores):
        return None
    document = sample["doc"]
    return Answered(
        id=str(document.get("id", sample["doc_id"])),
        right=right,
        chosen=int(np.argmax(scores)),
        texts=tuple(document.get("texts") or choices),
        by_characters=sample.get("acc_norm"),
        by_bytes=sample.get("acc_bytes"),
        subject=str(document.get("subject") or ""),
        category=str(document.get("category") or ""),
        fixed=fixed,
        question=str(document.get("prompt") or sample["arguments"][0][0])[-_LONGEST:],
    )


def summary(items: Sequence[Answered]) -> dict[str, Any]:
    """Scores of some items, as shares: accuracy with its 95 % interval, by characters and by bytes, and what they beat.

    `chance` is the accuracy of a blind guess, `majority` that of always giving the commonest right choice, `macro_f1`
    the mean F1 of the choices. The last two are None where choices mean another thing in every item.
    """
    count = len(items)
    right = sum(item.chosen == item.right for item in items)
    low, high = wilson(right, count)
    fixed = all(item.fixed for item in items)
    return {
        "items": count,
        "accuracy": right / count,
        "low": low,
        "high": high,
        "by_characters": _mean([item.by_characters for item in items]),
        "by_bytes": _mean([item.by_bytes for item in items]),
        "chance": sum(1 / len(item.texts) for item in items) / count,
        "majority": collections.Counter(item.right for item in items).most_common(1)[0][1] / count if fixed else None,
        "macro_f1": macro_f1([item.right for item in items], [item.chosen for item in items]) if fixed else None,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None if one is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def grouped(items: Iterable[Answered], key: str) -> dict[str, dict[str, Any]]:
    """`summary` for each subject or category, by name; without items that have none."""
    found: dict[str, list[Answered]] = {}
    for item in items:
        if name := getattr(item, key):
            found.setdefault(name, []).append(item)
    return {name: summary(found[name]) for name in sorted(found)}


def flips(first: Iterable[Answered], second: Iterable[Answered]) -> dict[str, Any]:
    """Of items that were asked twice, with their choices in two orders, the share whose chosen text differs."""
    other = {item.id: item for item in second}
    pairs = [(item, other[item.id]) for item in first if item.id in other]
    flipped = sum(a.texts[a.chosen] != b.texts[b.chosen] for a, b in pairs)
    low, high = wilson(flipped, len(pairs))
    return {"items": len(pairs), "flipped": flipped / len(pairs), "low": low, "high": high}


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which stays within 0 and 1."""
    share, z2 = hits / count, _Z**2
    centre, width = share + z2 / (2 * count), _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, (centre - width) / (1 + z2 / count)), min(1.0, (centre + width) / (1 + z2 / count))


def macro_f1(right: Sequence[int], chosen: Sequence[int]) -> float:
    """The mean over all choices that are right somewhere of 2 * hits / (times right + times chosen)."""
    hits = collections.Counter(r for r, c in zip(right, chosen, strict=True) if r == c)
    times_right, times_chosen = collections.Counter(right), collections.Counter(chosen)
    return sum(2 * hits[label] / (times_right[label] + times_chosen[label]) for label in times_right) / len(times_right)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The exact two-sided p-value that two models are equally often right on the same items (McNemar 1947)."""
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    count, fewer = only_first + only_second, min(only_first, only_second)
    if count == 0:
        return 1.0
    tail = sum(math.comb(count, k) for k in range(fewer + 1)) / 2**count
    return min(1.0, 2 * tail)


def paired_bootstrap(
    first: Sequence[bool], second: Sequence[bool], *, samples: int, seed: int
) -> tuple[float, float, float]:
    """How much more often the second model is right on the same items, and the 95 % interval (percentile bootstrap)."""
    differences = np.asarray(second, float) - np.asarray(first, float)
    chance, count = np.random.default_rng(seed), len(differences)
    # How often each difference is drawn says all: there are only three.
    values, counts = np.unique(differences, return_counts=True)
    means = chance.multinomial(count, counts / count, size=samples) @ values / count
    low, high = np.quantile(means, (0.025, 0.975))
    return float(differences.mean()), float(low), float(high)
