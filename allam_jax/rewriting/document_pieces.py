"""Cuts a document into pieces that a model can rewrite, which joined give the document again, byte for byte.

A piece ends at a border of paragraphs. A paragraph that is too long is cut at its lines, a line at its sentences, a
sentence at white space, and what has none anywhere. The time is linear in the length of the document.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence

from allam_jax.errors import UserError

# Where a part may end, from the best border to the worst. The white space behind the border belongs to it.
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")
_LINE = re.compile(r"\n\s*")
_SENTENCE = re.compile(r"(?<![.!?؟۔…])[.!?؟۔…]+[\"'”’»)\]}]*\s+|[。！？]+\s*")
_BORDERS = (_BLANK_LINE, _LINE, _SENTENCE)
_INVISIBLE = " \t\n\r\f\v"

Count = Callable[[Sequence[str]], Sequence[int]]  # texts -> tokens of each


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a document. `kept`: no model sees it, as white space, or because it is marked."""

    text: str
    kept: bool


def count_by_bytes(texts: Sequence[str]) -> list[int]:
    """Tokens where no tokenizer is known: one for three UTF-8 bytes, rounded up."""
    return [-(-len(text.encode()) // 3) for text in texts]


def patterns_of(sources: Sequence[str], *, key: str) -> list[re.Pattern[str]]:
    """Compiles the patterns of a config; UserError that names `config.KEY` for one that is none, or fits no text."""
    found = []
    for source in sources:
        try:
            pattern = re.compile(source, re.DOTALL)
        except re.error as error:
            raise UserError(f"config.{key}: {source!r} is no regular expression ({error})") from None
        if pattern.match(""):
            raise UserError(f"config.{key}: {source!r} also fits an empty text; make it say what is kept")
        found.append(pattern)
    return found


def pieces_of(
    text: str, *, most_tokens: int, count: Count, keep: Sequence[re.Pattern[str]] = (), by_sentence: bool = False
) -> list[Piece]:
    """Cuts a text; the joined texts of the pieces are the text.

    Args:
        text: a document.
        most_tokens: of a piece, as the sum of the counts of its paragraphs, lines or sentences.
        count: counts tokens.
        keep: what a pattern finds is a piece that is kept. Text without letters or digits is kept too.
        by_sentence: every sentence is a piece of its own, however short, so that it can be set beside its translation.
    """
    found: list[Piece] = []
    for part, marked in _marked(text, keep):
        if marked:
            found.append(Piece(part, kept=True))
            continue
        wholes = sentences_of(part) if by_sentence else [part]
        found += [piece for whole in wholes for unit in _packed(whole, most_tokens, count) for piece in _bare(unit)]
    return _joined(found)


def rejoin(pieces: Sequence[Piece], rewritten: Sequence[str | None]) -> str:
    """The document with new texts in place of pieces; None leaves a piece as it was."""
    return "".join(piece.text if new is None else new for piece, new in zip(pieces, rewritten, strict=True))


def _marked(text: str, keep: Sequence[re.Pattern[str]]) -> Iterator[tuple[str, bool]]:
    """The text in parts, each with whether a pattern found it; where findings overlap, the earlier one counts."""
    spans = sorted(match.span() for pattern in keep for match in pattern.finditer(text))
    end = 0
    for start, stop in spans:
        if start < end:
            continue
        if start > end:
            yield text[end:start], False
        yield text[start:stop], True
        end = stop
    if end < len(text):
        yield text[end:], False


def _bare(unit: str) -> list[Piece]:
    """A unit as a piece between its outer white space; kept if there is nothing to read."""
    inner = unit.strip()
    if not any(map(str.isalnum, inner)):
        return [Piece(unit, kept=True)]
    start = unit.index(inner)
    parts = ((unit[:start], True), (inner, False), (unit[start + len(inner) :], True))
    return [Piece(part, kept) for part, kept in parts if part]


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours that are kept as one."""
    found: list[list[str]] = []
    kinds: list[bool] = []
    for piece in pieces:
        if piece.kept and kinds and kinds[-1]:
            found[-1].append(piece.text)
        else:
            found.append([piece.text])
            kinds.append(piece.kept)
    return [Piece("".join(texts), kept) for texts, kept in zip(found, kinds, strict=True)]


def _packed(text: str, most: int, count: Count) -> Iterator[str]:
    """Neighbouring units together, as many as fit."""
    held: list[str] = []
    tokens = 0
    for unit, number in _units(text, most, count, level=0):
        if held and tokens + number > most:
            yield "".join(held)
            held, tokens = [], 0
        held.append(unit)
        tokens += number
    if held:
        yield "".join(held)


def sentences_of(text: str) -> Iterator[str]:
    """The sentences of each line, with the white space behind them; joined they are the text."""
    for line in _cut(text, _LINE):
        yield from _cut(line, _SENTENCE)


def _units(text: str, most: int, count: Count, *, level: int) -> Iterator[tuple[str, int]]:
    """Parts of at most `most` tokens with their counts, cut at the best borders that give such."""
    parts = list(_cut(text, _BORDERS[level])) if level < len(_BORDERS) else list(_blocks(text, most))
    for part, number in zip(parts, count(parts), strict=True):
        if number <= most:
            yield part, number
        elif level < len(_BORDERS):
            yield from _units(part, most, count, level=level + 1)
        else:
            yield from _halves(part, number, most, count)


def _cut(text: str, border: re.Pattern[str]) -> Iterator[str]:
    start = 0
    for match in border.finditer(text):
        if match.end() < len(text):
            yield text[start : match.end()]
            start = match.end()
    yield text[start:]


def _blocks(text: str, size: int) -> Iterator[str]:
    """Blocks of at most `size` characters, which end behind white space where there is some in their second half."""
    start = 0
    while len(text) - start > size:
        end = start + size
        space = max(text.rfind(sign, start + size // 2, end) for sign in _INVISIBLE)
        end = space + 1 if space > 0 else end
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _halves(text: str, tokens: int, most: int, count: Count) -> Iterator[tuple[str, int]]:
    """A block of few characters with many tokens, halved until it fits; one character is as short as it gets."""
    if tokens <= most or len(text) == 1:
        yield text, tokens
        return
    middle = len(text) // 2
    for half in (text[:middle], text[middle:]):
        yield from _halves(half, count([half])[0], most, count)
