"""Goes on with the merges of a byte-level BPE tokenizer (Llama 3, SmolLM2, Qwen) on text of another language.

A new merge comes after all merges of the base, so any text is first cut as the base cuts it. A new piece holds a
character of the new language's script, or begins one in bytes with which no other script's characters begin. So text
without such characters keeps exactly the ids of the base. A merge whose result is a piece already is left out: pieces
could then join earlier merges, and learning would differ from encoding.
"""

import bisect
import functools
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import regex

from allam_jax.errors import UserError
from allam_jax.tokenizer.json_model import JsonModel, byte_alphabet
from allam_jax.tokenizer.kinds import Kind
from allam_jax.tokenizer.merge_learning import MergeLearner, Pair
from allam_jax.tokenizer.scripts import script_pattern
from allam_jax.tokenizer.sentencepiece_model import SentencePieceModel
from allam_jax.tokenizer.tokenizer import Tokenizer

_RAREST = 2  # occurrences in the text of a pair that becomes a piece
_UNASSIGNED, _OF_NO_SCRIPT = regex.compile(r"\p{Cn}"), regex.compile(r"[\p{Script=Inherited}\p{Script=Common}]")
# Cuts of text that no pre-tokenizer of llama.cpp's looks beyond, but for signs before the end of a line.
_CHUNK = re.compile(r"\s?\S+")


def extend_byte_level(
    base: Tokenizer,
    texts: Iterable[str],
    kept: Sequence[str],
    *,
    script: str,
    pieces: int,
    limit: float,
    control_tokens: Sequence[str] = (),
) -> Tokenizer:
    """The base vocabulary, extended by up to `pieces` pieces learned from `texts`, then by `control_tokens`.

    Every base id keeps its piece, and new ids follow the base's last one. No text gets more tokens than before.

    Args:
        base: a byte-level BPE tokenizer.
        texts: of the new language.
        kept: lines of languages that should stay as they are.
        script: every new piece holds a character of it.
        pieces: the most that are added; fewer if the texts or the limit give no more.
        limit: largest share of the lines of `kept` whose segmentation may change. It matters only where these lines
            have characters of the script.
        control_tokens: tokens appended at the end.

    Raises:
        UserError: the base is of another kind, or the texts have no character of the script.
    """
    model = check_byte_level(base.model)
    words = _words(model, texts, script=script)
    if not words:
        raise UserError(f"tokenizer extension: the texts have no character of script {script!r}; check the sources")
    learned = _Learned(model, script=script)
    learned.merges = MergeLearner(words).learn(learned.join, most=pieces, rarest=_RAREST)

    at_risk = list(filter(script_pattern(script).search, kept))
    before = base.encode_batch(at_risk)

    def changed_share(merges: int) -> float:
        after = learned.tokenizer(merges).encode_batch(at_risk)
        return sum(ours != theirs for ours, theirs in zip(before, after, strict=True)) / max(len(kept), 1)

    count = len(learned.merges)
    if changed_share(count) > limit:  # the more merges, the more lines change
        count = bisect.bisect_right(range(count), limit, key=changed_share) - 1
    return learned.tokenizer(count, control_tokens)


def check_byte_level(model: JsonModel | SentencePieceModel) -> JsonModel:
    """The model; UserError if it is no byte-level BPE."""
    if not isinstance(model, JsonModel) or not model.byte_level:
        raise UserError(
            f"{model.source}: no byte-level BPE, as of Llama 3; of a tokenizer with byte fallback (Llama 2, Mistral) "
            "put its tokenizer.model beside it"
        )
    return model


def verify_byte_level(base: Tokenizer, extended: Tokenizer, lines: Iterable[str], *, script: str) -> dict[str, Any]:
    """What holds of an extension: all of it follows from how it is made, and is looked for in real text.

    Returns:
        For script="arabic": `{non_arabic_lines: number of lines without a character of the script, or one whose
        UTF-8 begins like theirs, non_arabic_equal: share of them with exactly the base's ids (None without lines),
        new_pieces: number, unreachable_pieces: how many of them their own text does not become}`.
    """
    others = [line for line in lines if _is_safe(line, script)]
    pairs = zip(base.encode_batch(others), extended.encode_batch(others), strict=True)
    equal = sum(before == after for before, after in pairs)
    model = extended.model
    new = [index for index in range(base.vocab_size, extended.vocab_size) if model.kinds[index] is Kind.NORMAL]
    return {
        f"non_{script}_lines": len(others),
        f"non_{script}_equal": equal / len(others) if others else None,
        "new_pieces": len(new),
        "unreachable_pieces": sum(model.segment_piece(model.pieces[index]) != [index] for index in new),
    }


def train_byte_level(like: Tokenizer, texts: Iterable[str], *, pieces: int) -> Tokenizer:
    """A byte-level BPE of a language alone, which cuts words like another one: what an extension is measured against.

    It has the 256 bytes and `pieces` pieces.
    """
    model = like.model
    assert isinstance(model, JsonModel)
    return Tokenizer(model.trained_anew(texts, pieces=pieces))


class _Learned:
    """The vocabulary while merges are learned: symbols are ids."""

    def __init__(self, model: JsonModel, *, script: str):
        self.model, self.merges = model, list[Pair]()
        self.pieces = list(model.pieces)
        self.known = {piece for piece in model.pieces if piece}
        self._holds = functools.partial(_holds_script, script=script)

    def join(self, pair: Pair) -> int | None:
        """Adds the piece that a pair makes; None if there is such a piece, or it says nothing of the script."""
        piece = self.pieces[pair[0]] + self.pieces[pair[1]]
        if piece in self.known or not self._holds(_bytes_of(piece)):
            return None
        self.pieces.append(piece)
        self.known.add(piece)
        return len(self.pieces) - 1

    def tokenizer(self, merges: int, control_tokens: Sequence[str] = ()) -> Tokenizer:
        """The base with the first of the learned merges."""
        learned = [(self.pieces[first], self.pieces[second]) for first, second in self.merges[:merges]]
        return Tokenizer(self.model.extended(learned, control_tokens=control_tokens))


def _words(model: JsonModel, texts: Iterable[str], *, script: str) -> dict[tuple[int, ...], int]:
    """The ids of each distinct word with a character of the script, as the base cuts it -> occurrences."""
    chunks: Counter[str] = Counter()
    for text in texts:
        chunks.update(_CHUNK.findall(text))
    has_script = script_pattern(script).search
    counted: Counter[str] = Counter()
    for chunk, occurrences in chunks.items():
        if has_script(chunk):
            for word in model.words_of(chunk):
                counted[word] += occurrences
    words: Counter[tuple[int, ...]] = Counter()
    for word, occurrences in counted.items():
        if has_script(_bytes_of(word).decode("utf-8", "ignore")):
            words[tuple(model.segment_piece(word))] += occurrences
    return {word: occurrences for word, occurrences in words.items() if len(word) > 1}


def _bytes_of(piece: str) -> bytes:
    alphabet = byte_alphabet()
    return bytes([alphabet[character] for character in piece])


def _holds_script(content: bytes, *, script: str) -> bool:
    """Whether these bytes have a character of the script, or begin one as only the script does."""
    start = 0
    while start < len(content) and content[start] & 0xC0 == 0x80:  # the end of a character that began before
        start += 1
    whole = content[start:].decode("utf-8", "ignore")
    if script_pattern(script).search(whole):
        return True
    return _begins_script(content[start + len(whole.encode()) :], script)


@functools.cache
def _begins_script(begun: bytes, script: str) -> bool:
    """Whether these bytes, which are not all of a character's UTF-8, begin most often one of this script.

    None that they begin is of another script. They may begin a few of none: E0 B8 begins Thai, and the sign of the
    baht; E0 A5 begins Devanagari, and two marks of every script. E2 80 begins mostly dashes and quotes.
    """
    if not begun:
        return False
    size = 4 if begun[0] >= 0xF0 else 3 if begun[0] >= 0xE0 else 2
    missing = size - len(begun)
    if missing < 1 or missing > 2:
        return False
    code = begun[0] & (0x7F >> size)
    for byte in begun[1:]:
        code = code << 6 | byte & 0x3F
    low = max(code << 6 * missing, {3: 0x800, 4: 0x10000}.get(size, 0x80))
    high = min((code + 1 << 6 * missing) - 1, sys.maxunicode)
    ended = "".join(map(chr, [c for c in range(low, high + 1) if not 0xD800 <= c < 0xE000]))
    ended = _UNASSIGNED.sub("", ended)
    others = script_pattern(script).sub("", ended)
    return len(others) < len(ended) / 2 and not _OF_NO_SCRIPT.sub("", others)


def _is_safe(line: str, script: str) -> bool:
    """Whether no new piece can occur in a line: it has no character that begins like those of the script."""
    beginnings = {content[:end] for content in map(str.encode, set(line)) for end in range(1, len(content))}
    return not script_pattern(script).search(line) and not any(_begins_script(begun, script) for begun in beginnings)
