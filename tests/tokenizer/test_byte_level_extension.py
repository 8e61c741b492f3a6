"""Continued byte-level BPE against a loop that counts everything anew, and against the tokenizers library."""

import itertools
import json
from collections import Counter

import byte_level
import numpy as np
import pytest
import tokenizers
from tokenizer_helpers import Corpus

from allam_jax.errors import UserError
from allam_jax.tokenizer.byte_level_extension import _holds_script, extend_byte_level, verify_byte_level
from allam_jax.tokenizer.fertility import fertility
from allam_jax.tokenizer.json_model import JsonModel
from allam_jax.tokenizer.kinds import Kind
from allam_jax.tokenizer.merge_learning import MergeLearner
from allam_jax.tokenizer.provenance import expansion_plan
from allam_jax.tokenizer.scripts import script_pattern
from allam_jax.tokenizer.tokenizer import Tokenizer

CONTROL_TOKENS = ["<|im|>", "<|x|>"]  # the base has the first


def learn_slowly(words: dict[tuple[int, ...], int], *, most: int, refused: set) -> tuple[list, list[list[int]]]:
    """Sennrich's loop: counts all pairs again for each merge."""
    symbols = [list(word) for word in words]
    learned: list[tuple[int, int]] = []
    while len(learned) < most:
        counts: Counter[tuple[int, int]] = Counter()
        for word, occurrences in zip(symbols, words.values(), strict=True):
            for pair in itertools.pairwise(word):
                counts[pair] += occurrences
        left = [(-count, pair) for pair, count in counts.items() if count > 1 and pair not in refused]
        if not left:
            break
        pair = min(left)[1]
        for word in symbols:
            place = 0
            while place < len(word) - 1:
                if (word[place], word[place + 1]) == pair:
                    word[place : place + 2] = [100 + len(learned)]
                place += 1
        learned.append(pair)
    return learned, symbols


@pytest.mark.parametrize("seed", range(20))
def test_incremental_counts_are_those_of_counting_anew(seed):
    rng = np.random.default_rng(seed)
    letters = int(rng.integers(1, 5))  # few letters: runs, and pairs that overlap
    words = {tuple(rng.integers(0, letters, rng.integers(2, 9)).tolist()): int(rng.integers(1, 6)) for _ in range(40)}
    refused = {(0, 0)} if seed % 2 and letters > 1 else set()
    symbols = itertools.count(100)
    learner = MergeLearner(words)
    learned = learner.learn(lambda pair: None if pair in refused else next(symbols), most=30, rarest=2)
    expected, expected_words = learn_slowly(words, most=30, refused=refused)
    assert learned == expected
    assert list(learner.words()) == expected_words


@pytest.fixture(scope="module", params=["smollm", "llama-bpe"])
def base(request, corpus: Corpus) -> Tokenizer:
    english = corpus.train["en"][:600] + corpus.train["code"][:600] + corpus.train["ar"][:20]
    return byte_level.as_tokenizer(byte_level.train(english, size=1200, pre=request.param))


def test_extension_of_a_byte_level_base(base: Tokenizer, corpus: Corpus, awkward_lines):
    texts = corpus.train["ar"][:600]
    extended = extend_byte_level(
        base,
        texts,
        corpus.train["en"][:200],
        script="arabic",
        pieces=800,
        limit=0.0,
        control_tokens=CONTROL_TOKENS,
    )
    assert extended.vocab_size == base.vocab_size + 801
    assert [extended.id_to_piece(i) for i in range(base.vocab_size)] == base.model.pieces
    assert extended.special_tokens == base.special_tokens | {"<|x|>": base.vocab_size + 800}
    has_arabic = script_pattern("arabic").search
    lines = [*corpus.test["en"], *corpus.test["code"], *awkward_lines[:400], *corpus.test["ar"][:200]]
    for line in lines:
        if not has_arabic(line):
            assert extended.encode(line) == base.encode(line), line
        assert extended.decode(extended.encode(line)) == base.decode(base.encode(line))
        assert len(extended.encode(line)) <= len(base.encode(line))
    proof = verify_byte_level(base, extended, lines, script="arabic")
    assert proof["non_arabic_lines"] > 600
    assert (proof["non_arabic_equal"], proof["new_pieces"], proof["unreachable_pieces"]) == (1.0, 800, 0)
    before, after = (fertility(tokenizer, corpus.test["ar"])["tokens_per_word"] for tokenizer in (base, extended))
    assert after < before * 0.6
    again = Tokenizer(type(extended.model)(extended.model.serialized(), settings={}, source="again"))
    assert again.encode_batch(lines) == extended.encode_batch(lines)
    plan = expansion_plan(base, extended)
    assert len(plan.new) == 800
    assert list(plan.special) == [base.vocab_size + 800]
    for index, spelled in plan.new.items():
        assert b"".join(map(base.token_bytes, spelled)) == extended.token_bytes(index)
        assert len(spelled) > 1
    assert extended.model.kinds[base.vocab_size] is Kind.NORMAL


def test_a_shared_script_keeps_to_the_limit(base: Tokenizer, corpus: Corpus):
    kept = corpus.train["en"][1500:1700]
    numbers = []
    for limit in (0.0, 0.2, 1.0):
        extended = extend_byte_level(base, corpus.test["en"], kept, script="latin", pieces=60, limit=limit)
        changed = np.mean([base.encode(line) != extended.encode(line) for line in kept])
        assert changed <= limit
        numbers.append(extended.vocab_size)
    assert sorted(set(numbers)) == numbers  # more are allowed, more are added


def test_added_tokens_that_have_other_ids_than_stated_are_told_and_not_extended(base: Tokenizer, caplog):
    """The tokenizers library, and so transformers, numbers an added token behind a gap anew."""
    model = base.model
    assert isinstance(model, JsonModel)
    document = json.loads(model.serialized())
    entry = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    stated = base.vocab_size + 50
    document["added_tokens"].append({"id": stated, "content": "<new>", **entry})
    gapped = JsonModel(json.dumps(document), settings=model.settings, source="gapped")
    actual = tokenizers.Tokenizer.from_str(json.dumps(document)).token_to_id("<new>")
    assert gapped.moved == {"<new>": (stated, actual)}
    assert gapped.pieces[actual] == "<new>"
    said = f"token '<new>' has the id {actual} and not {stated}, as stated"
    assert said in caplog.text
    with pytest.raises(UserError, match=f"gapped: {said}"):
        gapped.extended([("a", "b")])


def test_texts_without_the_script_are_refused(base: Tokenizer):
    with pytest.raises(UserError, match="no character of script 'arabic'"):
        extend_byte_level(base, ["only English"], [], script="arabic", pieces=10, limit=0.0)


@pytest.mark.parametrize(
    ("script", "content", "expected"),
    [
        ("arabic", "ك".encode(), True),
        ("arabic", b" " + "ك".encode()[:1], True),  # D9 begins Arabic alone
        ("arabic", "ك".encode()[1:], False),  # the end of some character
        ("arabic", b"\xdd", False),  # U+0740..077F: Syriac too
        ("arabic", b"\xe2\x80", False),  # the joiners, and all dashes and quotes
        ("arabic", b"\xe2\x80\x8c", True),
        ("arabic", "aك".encode(), True),
        ("arabic", b"abc", False),
        ("devanagari", b"\xe0", False),
        ("devanagari", b"\xe0\xa4", True),  # U+0900..093F
        ("devanagari", b"\xe0\xa5", True),  # U+0940..097F, two of them marks of every script
        ("thai", b"\xe0\xb8", True),  # with the sign of the baht, and what is not assigned
        ("latin", b"\xcc", False),  # marks of every script, some of them mostly Latin
        ("han", "漢".encode()[:2], True),
        ("han", b"\xf0\xa0", True),  # U+20000..20FFF
        ("han", b"\xf0", False),
    ],
)
def test_bytes_that_only_a_script_has(script, content, expected):
    assert _holds_script(content, script=script) is expected
