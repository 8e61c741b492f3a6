"""Text as it streams, against decoding everything at once, for real tokenizers and random ids."""

import functools
import json
import random

import pytest

from allam_jax.corpus import catalog
from allam_jax.generation.streaming import Detokenizer, StopTexts
from allam_jax.tokenizer.json_model import byte_alphabet
from allam_jax.tokenizer.tokenizer import Tokenizer
from allam_jax.tokenizer.tokenizer_json import tokenizer_json

TEXTS = [
    "In the name of God, the 1st  text\n\twith  spaces ",
    "بسم الله الرحمن الرحيم، والصلاة والسلام",
    "😀👨‍👩‍👧‍👦 𝄞 clef, é and 日本語",
    "كتاب book 😀 كتاب",
    "𒀀𒀁𒀂 𒀃𒀄 a𒀅",  # characters of bytes, one after the other
]


@functools.cache
def mistral():
    return Tokenizer.from_sentencepiece(catalog.read_asset("mistral_tokenizer"))


@pytest.fixture(scope="module", params=["sentencepiece", "bytes", "byte fallback"])
def tokenizer(request, tmp_path_factory):
    if request.param == "sentencepiece":
        return mistral()
    if request.param == "byte fallback":
        file = tmp_path_factory.mktemp("fallback") / "tokenizer.json"
        file.write_text(json.dumps(tokenizer_json(mistral().model)))
        return Tokenizer.load(file)
    vocab = {symbol: index for index, symbol in enumerate(byte_alphabet())}
    special = {"id": 256, "content": "<eos>", "special": True}
    special |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    file = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    model = {"type": "BPE", "vocab": vocab | {"<eos>": 256}, "merges": []}
    document = {"version": "1.0", "model": model, "pre_tokenizer": byte_level, "decoder": byte_level}
    file.write_text(json.dumps(document | {"added_tokens": [special]}))
    return Tokenizer.load(file)


def streamed(tokenizer, prompt, ids) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt)
    return [*(detokenizer.push(index) for index in ids), detokenizer.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_add_up_and_no_character_is_cut(tokenizer, text):
    ids = tokenizer.encode(text)
    for start in range(1, len(ids)):
        starts = (tokenizer.decode(ids[:end]) for end in range(start, -1, -1))
        before = next(text for text in starts if "\ufffd" not in text)  # without the beginning of a character
        pieces = streamed(tokenizer, ids[:start], ids[start:])
        assert "".join(pieces) == tokenizer.decode(ids)[len(before) :]
        assert not any("\ufffd" in piece for piece in pieces)


def test_any_ids_add_up(tokenizer):
    rng = random.Random(0)
    plain = [index for index in range(tokenizer.vocab_size) if not tokenizer.is_special(index)]
    for _ in range(30):
        # Characters, one byte at a time, between any pieces: what a model may give.
        ids = [rng.choice(plain)]
        for _ in range(40):
            byte_by_byte = rng.random() < 0.5
            ids += byte_ids(tokenizer, rng.choice("é日😀ب")) if byte_by_byte else [rng.choice(plain)]
        # The tokenizers library forgets characters of bytes in front of a byte that is wrong; SentencePiece does not.
        decode = mistral().decode if tokenizer.vocab_size > 300 else tokenizer.decode
        whole, before = decode(ids), decode(ids[:1])
        text = "".join(streamed(tokenizer, ids[:1], ids[1:]))
        if "\ufffd" not in whole:
            assert before + text == whole
        assert text.replace("\ufffd", "") == whole[len(before) :].replace("\ufffd", "") or "\ufffd" in before


def byte_ids(tokenizer, character: str) -> list[int]:
    alphabet = {byte: symbol for symbol, byte in byte_alphabet().items()}
    pieces = [
        tokenizer.piece_to_id(f"<0x{byte:02X}>")
        if tokenizer.vocab_size > 300
        else tokenizer.piece_to_id(alphabet[byte])
        for byte in character.encode()
    ]
    assert None not in pieces
    return pieces


def test_a_cut_character_is_given_at_the_end(tokenizer):
    ids = tokenizer.encode("ab") + byte_ids(tokenizer, "😀")[:2]
    *pieces, last = streamed(tokenizer, ids[:1], ids[1:])
    assert "\ufffd" not in "".join(pieces)
    assert last
    assert set(last) == {"\ufffd"}


@pytest.mark.parametrize("seed", range(30))
def test_stop_texts_against_looking_at_the_whole_text(seed):
    rng = random.Random(seed)
    stops = ["".join(rng.choices("abc", k=rng.randint(1, 4))) for _ in range(rng.randint(0, 3))]
    pieces = ["".join(rng.choices("abcd", k=rng.randint(0, 3))) for _ in range(20)]
    matcher, given, so_far = StopTexts(stops), "", ""
    for piece in pieces:
        so_far += piece
        text, stopped = matcher.push(piece)
        given += text
        found = [so_far.find(stop) for stop in stops if stop in so_far]
        assert stopped == bool(found)
        if stopped:
            assert given == so_far[: min(found)]
            return
        # Everything is given but an end that may become a stop text.
        rest = so_far[len(given) :]
        assert so_far == given + rest
        longest = max((n for stop in stops for n in range(len(stop)) if so_far.endswith(stop[:n])), default=0)
        assert len(rest) == longest
    assert given + matcher.flush() == so_far


def test_rows_that_no_token_uses_have_no_text(tokenizer):
    """Models of others have more rows than their tokenizer has ids, and may sample one."""
    ids = tokenizer.encode("one two")
    spare = tokenizer.vocab_size + 3
    assert "".join(streamed(tokenizer, ids[:1], [spare, *ids[1:], spare])) == "".join(
        streamed(tokenizer, ids[:1], ids[1:])
    )
