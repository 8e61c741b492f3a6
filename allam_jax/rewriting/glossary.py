"""Terms and their translations: which of them a text has, and whether a translation uses them.

A glossary is a file of lines `source<TAB>target`. Words are compared without case, vowel marks and punctuation; Arabic
ones by their stems (light10), so that a term is found with another article, conjunction or ending.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from allam_jax.errors import UserError
from allam_jax.files import sha256_of_json
from allam_jax.rewriting.text_facts import folded_words, stem

Term = tuple[str, str]  # as it is in the source, and its translation
Stems = tuple[str, ...]

_ARTICLE, _SHORT = "ال", 3


@dataclasses.dataclass(frozen=True)
class Glossary:
    """Terms with their translations; of several translations of a term each is right."""

    terms: Mapping[Stems, Sequence[Term]]

    @property
    def fingerprint(self) -> str:
        """A hash of all terms."""
        return sha256_of_json(sorted(term for terms in self.terms.values() for term in terms))

    def terms_in(self, text: str) -> list[Term]:
        """The terms of a text in the order in which they come, each once; where terms overlap, the longest."""
        stems = stems_of(text)
        longest = max(map(len, self.terms))
        found: dict[Term, None] = {}
        place = 0
        while place < len(stems):
            sizes = range(min(longest, len(stems) - place), 0, -1)
            size = next((n for n in sizes if stems[place : place + n] in self.terms), 0)
            if size:
                found |= dict.fromkeys(self.terms[stems[place : place + size]])
            place += size or 1
        return list(found)


def read_glossary(path: str) -> Glossary:
    """The glossary of a file; UserError that names a line which is no term."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the glossary ({error}); expected UTF-8") from None
    terms = defaultdict[Stems, list[Term]](list)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split("\t")]
        if len(parts) != 2 or not all(map(stems_of, parts)):
            raise UserError(f"{path}, line {number}: expected a term, a tab and its translation")
        terms[stems_of(parts[0])].append((parts[0], parts[1]))
    if not terms:
        raise UserError(f"{path}: has no terms; write lines of a term, a tab and its translation")
    return Glossary(dict(terms))


def missing_terms(terms: Sequence[Term], text: str) -> Iterator[Term]:
    """Each term of which a translation has none of the translations, with the first of them."""
    words = f" {' '.join(stems_of(text))} "
    targets = defaultdict[Stems, list[Term]](list)
    for term in terms:
        targets[stems_of(term[0])].append(term)
    for some in targets.values():
        if not any(f" {' '.join(stems_of(target))} " in words for _, target in some):
            yield some[0]


def stems_of(text: str) -> Stems:
    """The stems of a text's words.

    light10 leaves words of three letters as they are, so that لغة is not اللغة; with the article both are stemmed.
    """
    words = folded_words(text)
    return tuple(stem(f"{_ARTICLE}{word}" if len(word) == _SHORT and not word.isascii() else word) for word in words)
