"""Adds pieces of a language that shares its script with the base's own language, by going on with the base's BPE.

The base's pieces keep their scores and the new ones come below all of them. So any text is first cut exactly as the
base cuts it, and the new pieces then join what the base has left apart inside a word. They can only save tokens. They
do change text of the base's language wherever it has the same letters, so the pieces are chosen under a limit: the
share of lines of that language whose segmentation changes.

Pieces are learned as in BPE: the most frequent pair of neighbours is joined, again and again. Every other line of the
base's language says what a pair would change there; a pair is refused if that is more than its frequency is worth. The
lines between them, which have chosen nothing, end the learning where the limit is reached. Of a few prices, the one
that saves the most tokens is taken.
"""

import dataclasses
import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import regex

from allam_jax.errors import UserError
from allam_jax.tokenizer.kinds import Kind
from allam_jax.tokenizer.piece_merge import CHAT_TOKENS
from allam_jax.tokenizer.scripts import character_class
from allam_jax.tokenizer.sentencepiece_model import SPACE, Piece, SentencePieceModel
from allam_jax.tokenizer.tokenizer import Tokenizer, with_control_tokens
from allam_jax.tokenizer.tokenizer_json import check_expressible

_COVERAGE = 0.99995  # of the language's letters that become pieces of their own; the rest stay bytes
_RAREST = 2  # occurrences in the text of a pair that becomes a piece
_PRICES = (1.0, 0.1, 0.03, 0.01, 0.003, 0.0)  # changed lines that one occurrence of a pair is worth


def extend_vocabulary(
    base: Tokenizer,
    texts: Iterable[str],
    kept: Iterable[str],
    *,
    script: str,
    pieces: int,
    limit: float,
    control_tokens: Sequence[str] = CHAT_TOKENS,
) -> Tokenizer:
    """The base vocabulary, extended by up to `pieces` pieces learned from `texts`, then by `control_tokens`.

    Every base id keeps its piece. Text without the letters of a new piece gets exactly the base's ids, and no text gets
    more tokens than before.

    Args:
        base: a SentencePiece BPE model with byte fallback.
        texts: lines of the new language.
        kept: lines of the language that should stay as it is.
        script: of the new pieces, which have letters and marks of it alone, and a space at most in front.
        pieces: the most that are added; fewer if the texts or the limit give no more.
        limit: largest share of the lines of `kept` whose segmentation may change.
        control_tokens: tokens appended at the end.

    Raises:
        UserError: the base is of another kind, or the texts have no letter of the script.
    """
    model = base.model
    if not isinstance(model, SentencePieceModel):
        raise UserError(
            f"{model.source}: only a SentencePiece tokenizer.model can be extended; if the model has one, put it beside"
        )
    check_expressible(model)
    if not model.proto.trainer_spec.byte_fallback:
        raise UserError(f"{model.source}: expected byte_fallback for unknown characters, as in Llama")
    texts, kept = list(texts), list(kept)
    letters = _missing_letters(base, texts, kept, script=script, limit=limit)[:pieces]
    spelled = _with_pieces(model, letters)
    words = _Words.read(Tokenizer(spelled), base, texts, kept, script=script)
    room = {"most": pieces - len(letters), "longest": model.proto.trainer_spec.max_sentencepiece_length, "limit": limit}
    # Without a price first: if nothing comes near the limit, no price gives more.
    best, most_saved = _learned(words, scores_of(spelled), price=np.inf, **room)
    if len(best) < room["most"]:
        for price in _PRICES:
            learned, saved = _learned(words, scores_of(spelled), price=price, **room)
            if saved > most_saved:
                best, most_saved = learned, saved
    return with_control_tokens(Tokenizer(_with_pieces(spelled, best)), control_tokens)


def measure_extension(base: Tokenizer, extended: Tokenizer, lines: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What an extension changes on held-out lines of each language.

    Returns:
        For each NAME of `lines`: `{NAME_lines: number, NAME_equal: share of these lines with exactly the base's ids,
        NAME_tokens_saved: share of the base's tokens that are no longer needed}`.
    """
    report: dict[str, Any] = {}
    for name, of_language in lines.items():
        before, after = base.encode_batch(of_language), extended.encode_batch(of_language)
        tokens = sum(map(len, before))
        report[f"{name}_lines"] = len(of_language)
        report[f"{name}_equal"] = float(np.mean([a == b for a, b in zip(before, after, strict=True)]))
        report[f"{name}_tokens_saved"] = 1 - sum(map(len, after)) / tokens
    return report


def scores_of(model: SentencePieceModel) -> dict[str, float]:
    """Scores of the pieces that text can reach."""
    return {p.piece: p.score for p, kind in zip(model.proto.pieces, model.kinds, strict=True) if kind is Kind.NORMAL}


def joined(symbols: Sequence[str], scores: Mapping[str, float]) -> list[str]:
    """Joins neighbours as SentencePiece does: the pair with the best score first, the leftmost of equals."""
    symbols = list(symbols)
    while True:
        pairs = [(-scores[a + b], n) for n, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in scores]
        if not pairs:
            return symbols
        _, n = min(pairs)
        symbols[n : n + 2] = [symbols[n] + symbols[n + 1]]


def _letter_class(script: str) -> str:
    return rf"[[{character_class(script)}]&&[\p{{L}}\p{{M}}]]"


def _missing_letters(
    base: Tokenizer, texts: Sequence[str], kept: Sequence[str], *, script: str, limit: float
) -> list[str]:
    """Letters of the script that the base spells in bytes, the most frequent first, until enough text is covered.

    Letters that change more than `limit` of the lines of `kept` are left out.
    """
    letter = regex.compile(_letter_class(script), regex.VERSION1)
    counts = Counter(letter.findall("".join(texts)))
    if not counts:
        raise UserError(f"tokenizer extension: the texts have no letter of script {script!r}; check the sources")
    lines: defaultdict[str, set[int]] = defaultdict(set)
    for number, line in enumerate(kept):
        for character in set(line) & counts.keys():
            lines[character].add(number)
    missing: list[str] = []
    changed: set[int] = set()
    covered, total = 0, counts.total()
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= _COVERAGE * total:
            break
        covered += count
        if base.piece_to_id(character) is None and len(changed | lines[character]) <= limit * len(kept):
            missing.append(character)
            changed |= lines[character]
    return missing


def _with_pieces(model: SentencePieceModel, pieces: Sequence[str]) -> SentencePieceModel:
    """The model with pieces appended, whose scores are below all others and fall in the given order."""
    proto = type(model.proto)()
    proto.CopyFrom(model.proto)
    floor = min(piece.score for piece in proto.pieces)
    # Llama-2 scores white space -1e9, where neighbouring float32 numbers are 64 apart.
    step = max(1.0, 2 * float(np.spacing(np.float32(abs(floor)))))
    for rank, piece in enumerate(pieces, start=1):
        proto.pieces.add(piece=piece, score=floor - rank * step, type=Piece.NORMAL)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return SentencePieceModel(proto.SerializeToString(deterministic=True), source=f"{model.source}, extended")


@dataclasses.dataclass(frozen=True)
class _Words:
    """The distinct words of both languages, as the base cuts them; only those of several pieces.

    Attributes:
        symbols: the pieces of each word.
        counts: how often each word occurs in the new language.
        lines: word -> the lines of the kept language that have it.
        changed: whether a line of the kept language is cut differently already, because of new letters.
    """

    symbols: list[tuple[str, ...]]
    counts: list[int]
    lines: dict[int, np.ndarray]
    changed: np.ndarray

    @classmethod
    def read(
        cls, tokenizer: Tokenizer, base: Tokenizer, texts: Sequence[str], kept: Sequence[str], *, script: str
    ) -> "_Words":
        """The words of `texts` and `kept`, as `tokenizer` cuts them: the base with the new letters."""
        belongs = regex.compile(rf"{SPACE}?{_letter_class(script)}*+", regex.VERSION1).fullmatch
        inside = {piece for piece in tokenizer.model.pieces if piece and belongs(piece)}
        counts: Counter[tuple[str, ...]] = Counter()
        for ids in tokenizer.encode_batch(texts):
            counts.update(_words_of(map(tokenizer.id_to_piece, ids), inside=inside))
        lines: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        encoded = tokenizer.encode_batch(kept)
        for number, ids in enumerate(encoded):
            for word in set(_words_of(map(tokenizer.id_to_piece, ids), inside=inside)):
                lines[word].append(number)
        symbols = sorted({*counts, *lines})
        return cls(
            symbols=symbols,
            counts=[counts[word] for word in symbols],
            lines={n: np.array(lines[word]) for n, word in enumerate(symbols) if word in lines},
            changed=np.array([a != b for a, b in zip(encoded, base.encode_batch(kept), strict=True)], dtype=bool),
        )


def _words_of(pieces: Iterable[str], *, inside: Set[str]) -> Iterator[tuple[str, ...]]:
    """Runs of the pieces `inside`; a run also ends before a space. Runs of a single piece are left out."""
    word: list[str] = []
    for piece in [*pieces, SPACE]:
        if piece not in inside or piece.startswith(SPACE):
            if len(word) > 1:
                yield tuple(word)
            word = []
        if piece in inside:
            word.append(piece)


@dataclasses.dataclass
class _Learner:
    """Pairs of neighbours in words, their counts, and what has been joined so far."""

    words: _Words
    scores: dict[str, float]

    def __post_init__(self) -> None:
        self.symbols = [list(word) for word in self.words.symbols]
        self.counts: Counter[str] = Counter()  # piece that a pair would make -> its occurrences in the new language
        self.holders: defaultdict[str, set[int]] = defaultdict(set)  # and the words that have had the pair
        for n in range(len(self.symbols)):
            self._count(n, 1)
        self.heap = [(-count, piece) for piece, count in self.counts.items()]
        heapq.heapify(self.heap)

    def most_frequent(self) -> Iterator[tuple[str, int]]:
        """Yields (piece, occurrences) of the most frequent pair, as long as it is frequent enough."""
        while self.heap:
            count, piece = heapq.heappop(self.heap)
            if -count < _RAREST:
                return
            if -count == self.counts[piece]:  # otherwise it has changed since
                yield piece, -count

    def words_with(self, piece: str) -> list[int]:
        """The words in which two neighbours make the piece."""
        return sorted(n for n in self.holders[piece] if piece in self._pairs(n))

    def join(self, piece: str, *, score: float) -> None:
        """Makes the piece part of the vocabulary."""
        self.scores[piece] = score
        different: set[str] = set()
        for n in self.words_with(piece):
            different |= self._count(n, -1)
            self.symbols[n] = joined(self.symbols[n], self.scores)
            different |= self._count(n, 1)
        for other in different:
            heapq.heappush(self.heap, (-self.counts[other], other))

    def _pairs(self, n: int) -> list[str]:
        return [a + b for a, b in itertools.pairwise(self.symbols[n])]

    def _count(self, n: int, sign: int) -> set[str]:
        pairs = self._pairs(n)
        for piece in pairs:
            self.counts[piece] += sign * self.words.counts[n]
            self.holders[piece].add(n)
        return set(pairs)


def _learned(
    words: _Words, scores: Mapping[str, float], *, most: int, longest: int, price: float, limit: float
) -> tuple[list[str], int]:
    """The learned pieces in order, and the tokens that they save in the new language.

    A piece is refused if it changes more even lines than `price` for each of its occurrences. It is the last one if it
    would change more than `limit` of the odd lines, which have chosen nothing.
    """
    learner = _Learner(words, dict(scores))
    lowest, saved = min(scores.values()), 0
    changed = words.changed.copy()
    pieces: list[str] = []
    for piece, count in learner.most_frequent():
        if len(pieces) == most:
            break
        if len(piece) > longest:
            continue
        with_piece = [words.lines[n] for n in learner.words_with(piece) if n in words.lines]
        then = changed.copy()
        then[np.concatenate(with_piece, dtype=int) if with_piece else []] = True
        if np.count_nonzero(then[::2]) - np.count_nonzero(changed[::2]) > price * count:
            continue
        if np.count_nonzero(then[1::2]) > limit * len(then[1::2]):
            break
        changed = then
        pieces.append(piece)
        saved += count
        learner.join(piece, score=lowest - len(pieces))
    return pieces, saved
