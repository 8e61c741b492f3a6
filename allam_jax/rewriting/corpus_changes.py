"""What became of the documents of a corpus, where nobody knows the right text: what changed, and what was lost.

Every measure is a value of a document, a share unless it says otherwise; `restoration.with_interval` takes their mean.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping

from allam_jax.rewriting import text_facts
from allam_jax.rewriting.advertising import without_advertising
from allam_jax.rewriting.checks import share_copied


def stems_of_two(texts: Iterable[str]) -> frozenset[str]:
    """Stems of words that two texts have: ordinary words, which are no names."""
    counts = Counter(one for text in texts for one in set(map(text_facts.stem, text_facts.folded_words(text))))
    return frozenset(one for one, number in counts.items() if number > 1)


def changes(
    originals: Mapping[str, str], texts: Mapping[str, str], *, languages: Mapping[str, str], common: frozenset[str]
) -> dict[str, list[float]]:
    """Measure -> its values for the documents that have one.

    What was lost, what was copied and the length are those of documents that are still there and have changed. What
    stood in sentences of advertising, which may go, is not lost.

    Args:
        originals: id -> text before.
        texts: id -> text now; a document that is gone is not in it.
        languages: id -> language; Arabic names are looked for in Arabic documents.
        common: stems of ordinary Arabic words.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for name, original in originals.items():
        text = texts.get(name)
        found["unchanged"].append(float(text == original))
        found["gone"].append(float(text is None))
        if text is None or text == original:
            continue
        language = languages.get(name, "")
        required = without_advertising(original, language=language)
        values = {f"{kind} lost": _share_lost(facts(required), facts(text)) for kind, facts in _FACTS.items()}
        names = text_facts.latin_names(required)
        if language == "ar":
            names |= text_facts.arabic_names(required, common=common)
        values |= {
            "names lost": _share_lost(names, text_facts.word_forms(text)),
            "words copied": share_copied(original, text),
            "length, as a ratio": _letters_ratio(original, text),
        }
        for measure, value in values.items():
            if value is not None:
                found[measure].append(value)
    return dict(found)


def _share_lost(wanted: set[str], given: set[str]) -> float | None:
    return len(wanted - given) / len(wanted) if wanted else None


def _dates(text: str) -> set[str]:
    return set(map(text_facts.shown_date, text_facts.dates_of(text)))


def _letters_ratio(original: str, text: str) -> float | None:
    before, now = (sum(map(str.isalnum, one)) for one in (original, text))
    return now / before if before else None


_FACTS: dict[str, Callable[[str], set[str]]] = {
    "numbers": text_facts.numbers_of,
    "dates": _dates,
    "links": text_facts.links_of,
}
