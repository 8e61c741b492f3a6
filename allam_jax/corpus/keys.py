"""The keys by which duplicates are found: columns with one row for each document of a part.

Two texts are exact duplicates if they have the same `bare_words` in the same order: case, punctuation, white space,
vowel marks, tatweel and characters that are not seen make no difference. A text without words is compared as it is.
Addresses are equal as `addresses.py` says.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from allam_jax.corpus.addresses import parse_address
from allam_jax.corpus.dates import microseconds, parse_date
from allam_jax.corpus.minhash import MinHash
from allam_jax.corpus.word_boundaries import without_inner_punctuation
from allam_jax.corpus.words import bare_words
from allam_jax.files import atomic_path, write_array

KEYS, SIGNED, BANDS, SHINGLES = "keys.npz", "signed.npy", "bands.npy", "shingles.npz"

NO_DATE = np.iinfo(np.int64).min + 1  # below all dates, and its negative is an int64 too
_WORDS_AT_ONCE = 1 << 16
# Characters that are not seen: hyphens that may break a word, joiners, marks that choose between shapes of a letter.
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u180b-\u180f\u200c-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef]+"
)
_CUTTING = "\u200b"  # is not seen either, and ends a word


class Columns:
    """Collects the rows of a part and writes them.

    `keys.npz` holds `text` and `url` (uint64 `[rows, 2]`; zeros where there is no address), `length` (bytes) and `date`
    (microseconds). For the documents that are long enough for a signature, `signed.npy` holds the rows, `bands.npy` the
    keys of the bands, and `shingles.npz` (if asked for) all shingles, one document after another, with the end of each.
    """

    def __init__(self, *, minhash: MinHash | None, salt: str):
        """`salt` keeps sources apart: keys with different salts are never equal."""
        self._minhash, self._salt = minhash, salt
        self._text: list[bytes] = []
        self._url: list[bytes] = []
        self._length: list[int] = []
        self._date: list[int] = []
        self._waiting: list[Sequence[str]] = []
        self._words_waiting = 0
        self._signed: list[int] = []
        self._signatures: list[np.ndarray] = []
        self._shingles: list[np.ndarray] = []

    def append(self, text: str, *, words: Sequence[str], url: str, date: str, size: int) -> None:
        """Adds a document, given its text, its `bare_words`, its address, its date and its size in bytes."""
        self._text.append(digest(text_key(text, words), salt=self._salt))
        address = parse_address(url)
        self._url.append(digest(address.key, salt=self._salt) if address else bytes(16))
        self._length.append(size)
        self._date.append(date_key(date))
        if self._minhash is not None:
            self._waiting.append(words)
            self._words_waiting += len(words)
            if self._words_waiting >= _WORDS_AT_ONCE:
                self._sign(self._minhash)

    def _sign(self, minhash: MinHash) -> None:
        """Computes the signatures of the waiting documents."""
        first = len(self._text) - len(self._waiting)
        for row, shingles in enumerate(minhash.shingles(self._waiting), start=first):
            if len(shingles):
                self._signed.append(row)
                self._signatures.append(minhash.signature(shingles))
                self._shingles.append(shingles)
        self._waiting, self._words_waiting = [], 0

    def write(self, directory: Path, *, with_shingles: bool) -> None:
        """Writes the files."""
        columns = {
            "text": np.frombuffer(b"".join(self._text), np.uint64).reshape(-1, 2),
            "url": np.frombuffer(b"".join(self._url), np.uint64).reshape(-1, 2),
            "length": np.array(self._length, np.int64),
            "date": np.array(self._date, np.int64),
        }
        save_arrays(directory / KEYS, columns)
        if self._minhash is None:
            return
        self._sign(self._minhash)
        table = np.empty((0, self._minhash.bands), np.uint64)
        if self._signatures:
            table = self._minhash.band_keys(np.stack(self._signatures))
        if self._salt:
            table = table ^ np.frombuffer(digest("bands", salt=self._salt)[:8], np.uint64)
        save_arrays(directory / SIGNED, np.array(self._signed, np.int64))
        save_arrays(directory / BANDS, table)
        if with_shingles:
            ends = np.cumsum([len(some) for some in self._shingles], dtype=np.int64)
            flat = np.concatenate(self._shingles) if self._shingles else np.empty(0, np.uint64)
            save_arrays(directory / SHINGLES, {"flat": flat, "ends": ends})


def text_key(text: str, words: Sequence[str]) -> str:
    """The string that two texts must share to be duplicates."""
    if _CUTTING in text:
        words = bare_words(text.replace(_CUTTING, ""))
    return without_inner_punctuation(_UNSEEN.sub("", " ".join(words))) if words else f"\0{text}"


def date_key(date: str) -> int:
    """Microseconds from 1970 to a date in one of the forms of `parse_date`; else `NO_DATE`."""
    moment = parse_date(date) if date else None
    return int(NO_DATE) if moment is None else microseconds(moment)


def digest(text: str, *, salt: str) -> bytes:
    """16 bytes that identify the text, for one salt."""
    return hashlib.blake2b(text.encode(), digest_size=16, key=salt.encode()[:64]).digest()


def save_arrays(path: Path, value: dict[str, np.ndarray] | np.ndarray) -> None:
    """Writes one array as .npy, or several named ones as .npz, atomically."""
    if not isinstance(value, dict):
        write_array(path, value)
        return
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **value)  # type: ignore[arg-type]
