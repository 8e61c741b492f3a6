"""The files of a source: those below a folder, those that a pattern matches, or a single one.

A folder and a pattern follow one rule. Links to folders are followed, each folder once. Hidden files, files of another
kind and links that lead nowhere are not read; they are named with the reason.
"""

import difflib
import fnmatch
import glob
import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from allam_jax.corpus import web_archives
from allam_jax.corpus.compressed_streams import COMPRESSIONS
from allam_jax.errors import UserError
from allam_jax.files import shown

KINDS = {
    **{f".{name}{end}": "jsonl" for name in ("jsonl", "ndjson", "jsonlines", "jl") for end in ("", *COMPRESSIONS)},
    # Without compression, .json is the suffix of settings and of notebooks' metadata too.
    **{f".json{end}": "jsonl" for end in COMPRESSIONS},
    **{f".{name}{end}": name for name in ("csv", "tsv", "txt") for end in ("", *COMPRESSIONS)},
    ".parquet": "parquet",
    ".pq": "parquet",
    **dict.fromkeys(web_archives.SUFFIXES, "archive"),
}
_EXPECTED = f".jsonl, .csv, .tsv, .txt (each also {', '.join(COMPRESSIONS)}), .parquet, .warc(.gz) or .wet(.gz)"
HIDDEN = "hidden"
DATASET_FILE = "dataset_info.json"  # of TFDS; a folder that has it is a dataset of documents
_LISTED = 5
_ANY_DEPTH = -1


class Found(NamedTuple):
    """What is at a path: the files to read, sorted, and reason -> those that are not read."""

    files: list[Path]
    skipped: dict[str, list[Path]]


def kind_of(file: Path) -> str | None:
    """`jsonl`, `csv`, `tsv`, `txt`, `parquet` or `archive`, by the suffixes in any case; None for another file."""
    suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
    return KINDS.get("".join(suffixes)) or KINDS.get("".join(suffixes[-1:]))


def find_files(given: str, *, also: Sequence[str] = ()) -> Found:
    """The files of a path: a file, a directory, or a glob pattern (`**` allowed).

    `also` are suffixes of more files that are read. UserError if there is nothing to read (the message names the
    nearest path).
    """
    path = Path(given)
    if path.is_dir():
        what, found = "no files to read in this directory", _sorted_out(_below(path), also=also)
    elif path.exists() or path.is_symlink():
        what, found = "cannot read it", _sorted_out([(path, "")], hidden=True, also=also)
    elif glob.has_magic(given):
        asked_for_hidden = any(part.startswith(".") and glob.has_magic(part) for part in path.parts)
        what, found = "no file matches this pattern", _sorted_out(_matched(path), asked_for_hidden, also)
    else:
        raise UserError(f"{path}: no such file or directory{_near(path)}")
    if not found.files:
        hint = "; JSON Lines are read as .jsonl" if any(file.suffix == ".json" for file in _all(found.skipped)) else ""
        hint = datasets_below(path) or hint
        raise UserError(f"{path}: {what}{_seen(found.skipped)}; expected {_EXPECTED}{hint}")
    return found


def datasets_below(folder: Path) -> str:
    """What an error adds about a folder that is no dataset itself and holds some; empty if it holds none."""
    found = [*folder.glob(f"*/{DATASET_FILE}"), *folder.glob(f"*/*/{DATASET_FILE}")]
    names = sorted(shown(file.parent) for file in found)
    listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
    return f"; it holds datasets: give one of {listed}" if names else ""


def common_folder(files: Sequence[Path]) -> Path:
    """The deepest folder that holds all of the files."""
    return Path(os.path.commonpath([file.absolute().parent for file in files]))


def part_of(files: Sequence[Path], *, part: int, parts: int) -> list[Path]:
    """The files of one part. All bytes are cut evenly; a file belongs to the part with the middle of its bytes."""
    sizes = [max(file.stat().st_size, 1) for file in files]
    middles = (end - size / 2 for size, end in zip(sizes, itertools.accumulate(sizes), strict=True))
    return [file for file, middle in zip(files, middles, strict=True) if int(middle * parts / sum(sizes)) == part]


def _sorted_out(candidates: Iterable[tuple[Path, str]], hidden: bool = False, also: Sequence[str] = ()) -> Found:
    """Divides what was found, each with a reason not to read it or ""; `hidden` files can have been asked for."""
    files: list[Path] = []
    skipped: dict[str, list[Path]] = {}
    for path, known in sorted(candidates):
        if reason := known or _why_not(path, hidden=hidden, also=also):
            skipped.setdefault(reason, []).append(path)
        else:
            files.append(path)
    return Found(files, skipped)


def _why_not(path: Path, *, hidden: bool, also: Sequence[str]) -> str:
    if path.name.startswith(".") and not hidden:
        return HIDDEN
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "a link to nothing"
    except OSError as error:  # a link to itself, for one
        return (error.strerror or "unreadable").lower()
    if not stat.S_ISREG(mode):
        return "no regular file"
    if kind_of(path) is None and path.suffix.lower() not in also:
        suffixes = path.suffixes[-2:] if path.suffix.lower() in COMPRESSIONS else path.suffixes[-1:]
        return f"of another kind ({shown(Path(''.join(suffixes))) if suffixes else 'no suffix'})"
    return ""


def _below(folder: Path, *, depth: int = _ANY_DEPTH) -> Iterator[tuple[Path, str]]:
    """All files below a folder, down to this depth, and the folders that are not entered with the reason.

    Links come last, so that a folder with several names is read under its own.
    """
    folders, links = [(folder, depth)], list[tuple[Path, int]]()
    seen = set()
    while folders or links:
        current, levels = folders.pop() if folders else links.pop(0)
        try:
            status, entries = current.stat(), list(os.scandir(current))
        except OSError as error:
            yield current, (error.strerror or "unreadable").lower()
            continue
        if (status.st_dev, status.st_ino) in seen:
            yield current, "a link to a folder that is read already"
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            path = current / entry.name
            if not os.path.isdir(path):
                yield path, ""
            elif entry.name.startswith("."):
                yield path, HIDDEN
            elif levels == 1:
                yield path, "a folder below the pattern"
            else:
                (links if entry.is_symlink() else folders).append((path, levels - 1))


def _matched(pattern: Path) -> Iterator[tuple[Path, str]]:
    """What a pattern matches, found by `_below`, because `glob` follows links in circles."""
    fixed = next(number for number, part in enumerate(pattern.parts) if glob.has_magic(part))
    root, wanted = Path(*pattern.parts[:fixed]), pattern.parts[fixed:]
    depth = _ANY_DEPTH if "**" in wanted else len(wanted)
    for path, reason in _below(root, depth=depth) if root.is_dir() else ():
        if _fits(path.relative_to(root).parts, wanted):
            yield path, reason


def _fits(parts: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    if not parts or not wanted:
        return not parts and set(wanted) <= {"**"}
    if wanted[0] == "**":
        return _fits(parts, wanted[1:]) or _fits(parts[1:], wanted)
    return fnmatch.fnmatchcase(parts[0], wanted[0]) and _fits(parts[1:], wanted[1:])


def _all(skipped: Mapping[str, list[Path]]) -> list[Path]:
    return list(itertools.chain.from_iterable(skipped.values()))


def _seen(skipped: Mapping[str, list[Path]]) -> str:
    """What was there instead, for a message."""
    reasons = sorted(skipped.items(), key=lambda item: -len(item[1]))[:3]
    return f" ({'; '.join(f'{shown(paths[0])}: {reason}' for reason, paths in reasons)})" if reasons else ""


def _near(path: Path) -> str:
    """The end of a message: names similar to the first part of the path that does not exist."""
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    names = [entry.name for entry in missing.parent.iterdir()] if missing.parent.is_dir() else []
    close = difflib.get_close_matches(missing.name, names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(str(missing.parent / name) for name in close)}?" if close else ""
