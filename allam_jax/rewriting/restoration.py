"""How well a corpus was restored: planted damage that is gone, clean text and facts that are kept, beside each other.

Every measure is a share of each document; its mean over the documents has a bootstrap interval, with documents as the
units that are drawn.
"""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from allam_jax.corpus.repetition_tags import grams
from allam_jax.corpus.words import bare_words
from allam_jax.rewriting import text_facts

_WORDS = 3  # of the n-grams that say how much clean text is kept
_DRAWS = 1000
_AT_ONCE = 1 << 22  # values that are drawn, so that a million documents need no more memory than a thousand
_LEVELS = (2.5, 97.5)
_GRAMS = (1, 2, 3)


def still_there(planted: str, text: str) -> bool:
    """Whether planted damage is still in a text: its words in a row, or a line break between the same two words."""
    if "\n" in planted:
        before, after = map(re.escape, planted.split("\n"))
        return re.search(rf"(?<!\w){before}[^\S\n]*\n\s*{after}(?!\w)", text) is not None
    words = text_facts.folded_words(planted)
    return f" {' '.join(words)} " in f" {' '.join(text_facts.folded_words(text))} "


def share_removed(planted: Iterable[str], text: str) -> float | None:
    """The share of planted damage that is gone; None if nothing was planted."""
    left = [still_there(one, text) for one in planted]
    return 1 - sum(left) / len(left) if left else None


def share_kept(original: str, text: str) -> float | None:
    """The share of the original's word trigrams that a text has; None for an original without any."""
    wanted, given = (Counter(grams(text_facts.folded_words(one), _WORDS)) for one in (original, text))
    return (wanted & given).total() / wanted.total() if wanted else None


def share_of_facts(original: str, text: str) -> float | None:
    """The share of the original's numbers, dates, links and Latin names that a text has; None if there are none."""
    kinds = (text_facts.numbers_of, text_facts.dates_of, text_facts.links_of, text_facts.latin_names)
    wanted, given = ({(kind.__name__, fact) for kind in kinds for fact in kind(one)} for one in (original, text))
    return len(wanted & given) / len(wanted) if wanted else None


def scores(originals: Mapping[str, str], planted: Mapping[str, Sequence[tuple[str, str]]], texts: Mapping[str, str]):
    """Measure -> its values for the documents, of those that have one. A document that is gone has the empty text.

    Args:
        originals: id -> clean text.
        planted: id -> kind and text of the damage.
        texts: id -> text of the corpus that is judged.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for name, original in originals.items():
        text = texts.get(name, "")
        values = {"clean text kept": share_kept(original, text), "facts kept": share_of_facts(original, text)}
        by_kind: dict[str, list[str]] = defaultdict(list)
        for kind, damage in planted.get(name, ()):
            by_kind[kind].append(damage)
        values |= {f"removed: {kind}": share_removed(some, text) for kind, some in by_kind.items()}
        values["removed"] = share_removed([damage for some in by_kind.values() for damage in some], text)
        for measure, value in values.items():
            if value is not None:
                found[measure].append(value)
    return dict(found)


def with_interval(values: Sequence[float], *, seed: int) -> dict[str, Any]:
    """Mean, the 95 % bootstrap interval of the mean, and the number of documents."""
    array, generator = np.asarray(values), np.random.default_rng(seed)
    size = max(1, _AT_ONCE // len(array))
    means = [
        array[generator.integers(len(array), size=(min(size, _DRAWS - done), len(array)))].mean(axis=1)
        for done in range(0, _DRAWS, size)
    ]
    low, high = np.percentile(np.concatenate(means), _LEVELS)
    return {"mean": float(array.mean()), "low": float(low), "high": float(high), "documents": len(array)}


def blocked(texts: Iterable[str], entries: frozenset[tuple[str, ...]]) -> dict[str, float]:
    """Documents with an entry of a block list, as a share, and entries for each 1,000 words."""
    documents = hits = words = with_any = 0
    longest = max(map(len, entries), default=0)
    for text in texts:
        own = bare_words(text)
        count = sum(gram in entries for n in range(1, longest + 1) for gram in grams(own, n))
        documents, words, hits, with_any = documents + 1, words + len(own), hits + count, with_any + bool(count)
    return {"documents with any": with_any / max(documents, 1), "in 1,000 words": 1000 * hits / max(words, 1)}


def diversity(texts: Iterable[str]) -> dict[str, float]:
    """Distinct word n-grams as a share of all, and compressed bytes as a share of all: higher is more diverse."""
    seen: dict[int, set[tuple[str, ...]]] = {n: set() for n in _GRAMS}
    totals, raw, packer, packed = Counter[int](), 0, zlib.compressobj(6), 0
    for text in texts:
        words = bare_words(text)
        for n in _GRAMS:
            own = list(grams(words, n))
            seen[n].update(own)
            totals[n] += len(own)
        content = text.encode()
        raw, packed = raw + len(content), packed + len(packer.compress(content))
    packed += len(packer.flush())
    return {f"distinct {n}-grams": len(seen[n]) / max(totals[n], 1) for n in _GRAMS} | {
        "compressed": packed / max(raw, 1)
    }
