"""Checks of a rewrite against its original, each a small function that returns the evidence of what is wrong, or "".

Advertising may vanish: what a rewrite must keep is `Rewrite.required`, the original without its sentences of
advertising. What a rewrite must not invent is looked for in the whole original.
"""

import dataclasses
import difflib
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from allam_jax.corpus.language_id import LANGUAGES, identify, whole_language
from allam_jax.corpus.model_phrases import refusal_in, scaffolds_in_rewrite
from allam_jax.corpus.normalise import without_marks
from allam_jax.corpus.repetition_tags import TAGS, grams
from allam_jax.corpus.words import Words, ends_sentence
from allam_jax.generation.over_rows import ENDED
from allam_jax.rewriting import text_facts
from allam_jax.rewriting.advertising import without_advertising
from allam_jax.rewriting.glossary import Term, missing_terms
from allam_jax.rewriting.settings import CheckSettings

_SHOWN = 80  # characters of evidence
_PASSAGE = 8  # words of the shortest passage that counts as dropped
_COUNTERPART = 0.3  # a passage whose place holds a smaller share of its words has none
_LEAST_LETTERS = 40  # fewer say little about a language
_COPIED_WORDS = 5


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a check found: its name, and the passage or the values that show it."""

    check: str
    evidence: str


@dataclasses.dataclass(frozen=True)
class Rewrite:
    """A text and what a model made of it.

    Attributes:
        original: the text that the model saw.
        text: what it gave.
        language: that the result should have.
        finish_reason: the backend's word for how the answer ended.
        source_language: of the original; empty: the same.
        common: stems of ordinary Arabic words, which are no names.
        terms: of a glossary that the original has, each with its translation.
    """

    original: str
    text: str
    language: str
    finish_reason: str = "stop"
    source_language: str = ""
    common: frozenset[str] = frozenset()
    terms: Sequence[Term] = ()

    @functools.cached_property
    def required(self) -> str:
        """The original without its sentences of advertising."""
        return without_advertising(self.original, language=self.language)

    @functools.cached_property
    def stems(self) -> list[str]:
        """Of the rewrite's words."""
        return list(map(text_facts.stem, text_facts.folded_words(self.text)))

    @functools.cached_property
    def required_stems(self) -> list[str]:
        """Of the words that must be kept."""
        return list(map(text_facts.stem, text_facts.folded_words(self.required)))


def findings(rewrite: Rewrite, settings: CheckSettings) -> list[Finding]:
    """What the checks of the settings find, in their order; none for a rewrite that passes."""
    found = ((name, CHECKS[name](rewrite, settings)) for name in settings.names)
    return [Finding(name, evidence[:_SHOWN]) for name, evidence in found if evidence]


def _finish(rewrite: Rewrite, _: CheckSettings) -> str:
    if not rewrite.text.strip():
        return "empty"
    return "" if rewrite.finish_reason in ENDED else f"ended by {rewrite.finish_reason!r}"


def _scaffold(rewrite: Rewrite, _: CheckSettings) -> str:
    kept = set(map(str.casefold, scaffolds_in_rewrite(rewrite.original)))
    return next((one for one in scaffolds_in_rewrite(rewrite.text) if one.casefold() not in kept), "")


def _refusal(rewrite: Rewrite, _: CheckSettings) -> str:
    found = refusal_in(rewrite.text)
    return found if found and not refusal_in(rewrite.original) else ""


def _end(rewrite: Rewrite, _: CheckSettings) -> str:
    """An original that ends a sentence has a rewrite that does."""
    kept = rewrite.required.rstrip()
    if not kept or not ends_sentence(kept) or ends_sentence(rewrite.text.rstrip()):
        return ""
    return f"ends with {rewrite.text.rstrip()[-30:]!r}"


def _length(rewrite: Rewrite, settings: CheckSettings) -> str:
    letters, kept, whole = (sum(map(str.isalnum, t)) for t in (rewrite.text, rewrite.required, rewrite.original))
    if letters < settings.least_length * kept or letters > settings.most_length * max(whole, 1):
        return f"{letters} letters of {whole}"
    return ""


def _dropped(rewrite: Rewrite, settings: CheckSettings) -> str:
    """Passages of the original in whose place the rewrite has nothing, and whose words it has nowhere else."""
    kept, given = rewrite.required_stems, rewrite.stems
    runs = difflib.SequenceMatcher(None, kept, given).get_opcodes()
    new = Counter(stem for tag, *_, j1, j2 in runs if tag != "equal" for stem in given[j1:j2])
    passages: list[list[str]] = []
    for tag, i1, i2, j1, j2 in runs:
        if tag not in ("delete", "replace") or i2 - i1 < _PASSAGE or j2 - j1 >= _COUNTERPART * (i2 - i1):
            continue
        elsewhere = (Counter(kept[i1:i2]) & new).total()
        if elsewhere < (i2 - i1) / 2:
            passages.append(kept[i1:i2])
    if sum(map(len, passages)) <= settings.most_dropped * max(len(kept), 1):
        return ""
    return " ".join(sorted(passages, key=len)[-1])


def _numbers(rewrite: Rewrite, settings: CheckSettings) -> str:
    """Numbers that are gone or new, that have another unit, or that stand in the other order in a range or ratio."""
    if said := _compared(text_facts.numbers_of, rewrite, most_lost=settings.most_lost_numbers):
        return said
    before, now = map(text_facts.units_of, (rewrite.original, rewrite.text))
    measured = {(number, kind) for number, kind, _ in before}
    units = {f"{kind} of {number}" for number, kind, _ in now - before if (number, kind) in measured}
    before_, now_ = map(text_facts.orders_of, (rewrite.original, rewrite.text))
    turned = {f"{first} and {second}" for first, second in now_ - before_ if (second, first) in before_}
    return _said({"other": units, "turned": turned})


def _dates(rewrite: Rewrite, settings: CheckSettings) -> str:
    def shown(text: str) -> set[str]:
        return set(map(text_facts.shown_date, text_facts.dates_of(text)))

    return _compared(shown, rewrite, most_lost=settings.most_lost_numbers)


def _links(rewrite: Rewrite, _: CheckSettings) -> str:
    return _compared(text_facts.links_of, rewrite, most_lost=0.0)


def _quotations(rewrite: Rewrite, _: CheckSettings) -> str:
    """Quoted words must occur, with or without the signs around them."""
    words = f" {' '.join(text_facts.folded_words(rewrite.text))} "
    return next((one for one in sorted(text_facts.quotations_of(rewrite.required)) if f" {one} " not in words), "")


def _names(rewrite: Rewrite, settings: CheckSettings) -> str:
    """Names that vanish beyond a share, and names that occur nowhere in the original."""
    original, given = map(text_facts.word_forms, (rewrite.original, rewrite.text))

    def names(text: str) -> set[str]:
        arabic = text_facts.arabic_names(text, common=rewrite.common) if rewrite.language == "ar" else set()
        return text_facts.latin_names(text) | arabic

    invented = {name for name in names(rewrite.text) if name not in original}
    wanted = names(rewrite.required)
    lost = {name for name in wanted if name not in given}
    return _said({"lost": lost if len(lost) > settings.most_lost_names * len(wanted) else set(), "new": invented})


def _language(rewrite: Rewrite, settings: CheckSettings) -> str:
    """Every new paragraph that is long enough, and the whole text, are in the language.

    The whole is not judged where the original is in the same language and not known as such either.
    """
    if rewrite.language not in LANGUAGES:
        return ""
    same = rewrite.source_language in ("", rewrite.language)
    known = not same or _probability(rewrite.original, rewrite.language) >= settings.least_language
    paragraphs = [line for line in rewrite.text.split("\n") if line.strip() and line not in rewrite.original]
    for text in [*paragraphs, *([rewrite.text] if known else [])]:
        long_enough = sum(map(str.isalpha, text)) >= _LEAST_LETTERS
        if long_enough and _probability(text, rewrite.language) < settings.least_language:
            return f"{next(iter(identify(without_marks(text))))}: {text.strip()}"
    return ""


def _probability(text: str, language: str) -> float:
    found = identify(without_marks(text)).items()
    return sum(score for name, score in found if whole_language(name) == language)


def _copied(rewrite: Rewrite, settings: CheckSettings) -> str:
    share = share_copied(rewrite.original, rewrite.text)
    if share is None or settings.least_copied <= share <= settings.most_copied:
        return ""
    return f"{share:.2f} of the word {_COPIED_WORDS}-grams are the original's"


def share_copied(original: str, text: str) -> float | None:
    """The share of a text's word 5-grams that the original has; None for a text without any."""
    theirs, own = (list(grams(text_facts.folded_words(one), _COPIED_WORDS)) for one in (original, text))
    known = set(theirs)
    return sum(gram in known for gram in own) / len(own) if own else None


def _repetition(rewrite: Rewrite, settings: CheckSettings) -> str:
    share, before = (_repeated(text, rewrite.language) for text in (rewrite.text, rewrite.original))
    return f"{share:.2f}, {before:.2f} before" if share > before + settings.most_repetition else ""


def _repeated(text: str, language: str) -> float:
    return TAGS["gopher_duplicate_5_gram_share"][0](Words(text, language=language), None) or 0.0


def _glossary(rewrite: Rewrite, _: CheckSettings) -> str:
    return "; ".join(f"{source}: {target}" for source, target in missing_terms(rewrite.terms, rewrite.text))


def _compared(found: Callable[[str], set[str]], rewrite: Rewrite, *, most_lost: float) -> str:
    """What of the required text is gone, beyond a share, and what the original does not have."""
    wanted, given = found(rewrite.required), found(rewrite.text)
    lost = wanted - given
    told = lost if len(lost) > most_lost * len(wanted) else set()
    return _said({"lost": told, "new": given - found(rewrite.original)})


def _said(parts: Mapping[str, Iterable[str]]) -> str:
    return "; ".join(f"{word}: {', '.join(sorted(values))}" for word, values in parts.items() if values)


CHECKS: dict[str, Callable[[Rewrite, CheckSettings], str]] = {
    "finish": _finish,
    "scaffold": _scaffold,
    "refusal": _refusal,
    "end": _end,
    "length": _length,
    "dropped": _dropped,
    "numbers": _numbers,
    "dates": _dates,
    "links": _links,
    "quotations": _quotations,
    "names": _names,
    "language": _language,
    "copied": _copied,
    "repetition": _repetition,
    "glossary": _glossary,
}
