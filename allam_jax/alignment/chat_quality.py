"""Which rows of conversations or pairs are kept, and why others are not: rows alone, then rows among each other.

Repeats are found as in a corpus: equal words, then MinHash with verified similarity. A reply is cut where it has no end
while the replies of its source have one as a rule. Texts of evaluation sets are looked for by their n-grams.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from allam_jax.alignment import chat_faults
from allam_jax.alignment.chat_faults import Examined, examine
from allam_jax.alignment.settings import CHAT_FAULTS, ChatQualitySettings
from allam_jax.corpus import duplicates
from allam_jax.corpus.keys import digest, text_key
from allam_jax.corpus.minhash import MinHash, jaccard
from allam_jax.corpus.ngram_index import NgramIndex
from allam_jax.corpus.record_formats import Record
from allam_jax.corpus.settings import DedupSettings
from allam_jax.corpus.words import bare_words

_BLOCK = 1024  # rows at a time
_LEAST_ENDS = 20  # long replies from which a source has a habit


@dataclasses.dataclass
class Row:
    """A record of a source, its faults, and whether it is dropped for one of them."""

    source: str
    number: int
    examined: Examined
    faults: dict[str, str]

    def dropped_for(self, settings: ChatQualitySettings) -> list[str]:
        """The faults for which the settings drop it."""
        return [fault for fault in settings.drop if fault in self.faults]


def examined_rows(
    sources: Mapping[str, Iterable[Record]], *, settings: ChatQualitySettings, index: NgramIndex | None
) -> list[Row]:
    """All rows with their faults, in order.

    Args:
        sources: name -> records.
        settings: what counts as alike.
        index: of the texts of evaluations, each an item.
    """
    rows: list[Row] = []
    minhash = MinHash(DedupSettings(shingle=settings.shingle, bands=32, rows=4))
    keys, signed = list[bytes](), list[int]()
    signatures, shingled = list[np.ndarray](), dict[int, np.ndarray]()
    for source, records in sources.items():
        first = len(rows)
        for number, record in enumerate(records):
            examined = examine(record, most_similar=settings.most_similar)
            rows.append(Row(source, number, examined, dict(examined.faults)))
        _mark_cut(rows[first:], habit=settings.end_habit)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        texts = [row.examined.text for row in block]
        words = [bare_words(text) for text in texts]
        keys += [digest(text_key(text, own), salt="") for text, own in zip(texts, words, strict=True)]
        for place, shingles in enumerate(minhash.shingles(words), start=start):
            if len(shingles):
                signed.append(place)
                signatures.append(minhash.signature(shingles))
                shingled[place] = shingles
        if index is not None:
            _mark_evaluation(block, texts, index, share=settings.evaluation_share)
    readable = np.array([place for place, row in enumerate(rows) if row.examined.text], np.int64)
    order = np.zeros(len(rows), np.int64)  # the first of a group stays
    table = np.frombuffer(b"".join(keys), np.uint64).reshape(-1, 2)
    equal = duplicates.equal_keys(table, order, among=readable)
    for place in equal.removed.tolist():
        rows[place].faults[chat_faults.DUPLICATE] = rows[place].examined.text
    if signed:
        bands = minhash.band_keys(np.stack(signatures))
        left = np.isin(signed, equal.removed, invert=True)
        members = np.array(signed, np.int64)[left]
        pairs = [duplicates.band_pairs(bands[left, band], members, every=True) for band in range(minhash.bands)]
        near = duplicates.clusters(
            pairs, order, verify=lambda a, b: jaccard(shingled[a], shingled[b]) >= settings.near_duplicate
        )
        for place in near.removed.tolist():
            rows[place].faults[chat_faults.NEAR] = rows[place].examined.text
    return rows


def evaluation_index(records: Iterable[Record], *, n: int) -> NgramIndex:
    """An index of all texts in records of evaluations, also those in lists such as choices."""
    return NgramIndex.build((text for record in records for text in _texts_in(record)), n=n)


def summary(rows: Sequence[Row], settings: ChatQualitySettings) -> dict[str, Any]:
    """For each source: rows, kept, counts of faults, what they are dropped for, and the means of the measures.

    A mean is None where no row has the measure, as no short reply has a lexical diversity.
    """
    found: dict[str, Any] = {}
    for source in dict.fromkeys(row.source for row in rows):
        own = [row for row in rows if row.source == source]
        read = [row.examined for row in own if row.examined.text]
        rejected = [one.rejected_words for one in read if one.rejected_words]
        chosen = [one.reply_words[-1] for one in read if one.rejected_words]
        found[source] = {
            "rows": len(own),
            "kept": sum(not row.dropped_for(settings) for row in own),
            "faults": _counted(row.faults for row in own),
            "dropped_for": _counted(row.dropped_for(settings) for row in own),
            "mean_turns": _mean([len(one.reply_words) for one in read]),
            "mean_words_of_reply": _mean([count for one in read for count in one.reply_words]),
            "lexical_diversity": _mean([one.diversity for one in read if one.diversity is not None]),
            **(
                {
                    "chosen_over_rejected_words": sum(chosen) / sum(rejected),
                    "chosen_longer": _mean([a > b for a, b in zip(chosen, rejected, strict=True)]),
                }
                if rejected
                else {}
            ),
        }
    return found


def _mark_cut(rows: Sequence[Row], *, habit: float) -> None:
    """Marks rows with a long reply without an end, if at least this share of the source's long replies has one."""
    ends = [end for row in rows for end in row.examined.ends]
    if len(ends) < _LEAST_ENDS or np.mean(ends) < habit:
        return
    for row in rows:
        if not all(row.examined.ends):
            row.faults[chat_faults.CUT] = "… " + row.examined.text[-100:]


def _mark_evaluation(rows: Sequence[Row], texts: Sequence[str], index: NgramIndex, *, share: float) -> None:
    for row, text, matches in zip(rows, texts, index.find(texts), strict=True):
        item, found = next(iter(index.texts_in(matches).items()), (-1, 0.0))
        if found >= share:
            row.faults[chat_faults.EVALUATION] = f"{found:.0%} of evaluation text {item}: {text}"


def _texts_in(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value.encode(errors="replace").decode()
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts_in(item)


def _counted(faults: Iterable[Iterable[str]]) -> dict[str, int]:
    counts = collections.Counter(fault for own in faults for fault in own)
    return {fault: counts[fault] for fault in CHAT_FAULTS if counts[fault]}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
