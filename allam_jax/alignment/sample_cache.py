"""Samples on disk: the tokens of conversations with the column that says what is learned, written once.

A directory holds `samples.json` (what made it, and what was left out), `files.json`, and

    tokens.bin   uint16 or uint32: the ids of the samples one after another
    turns.bin    uint8: 0 for a token that is not learned, else the number of its reply, from 1; 1 for text
    index.npy    [samples] of (end, source, held_out): the end of a sample in the two files; of pairs, chosen and
                 rejected follow one another
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from absl import logging

from allam_jax.alignment.chat_files import chat_files, chat_records
from allam_jax.alignment.conversations import BadRow, conversation_of, pair_of
from allam_jax.alignment.reply_masks import Made, Masker, Sample
from allam_jax.checksums import FileList, hash_json, is_whole, write_list
from allam_jax.corpus.record_formats import Record
from allam_jax.errors import UserError
from allam_jax.files import atomic_path, json_text, read_array, read_json, unit_hash, write_array, write_json

MANIFEST = "samples.json"
_VERSION = 4
_REMEDY = "remove the directory: it is written again"
_INDEX = np.dtype([("end", "<u8"), ("source", "<u2"), ("held_out", "u1")])
_LEAST_ROWS = 20  # before so many rows the share of bad ones says nothing, unless all are bad
_LONGEST_REASON = 160
_BLOCK = 128  # records at a time
_AT_ONCE = 2  # blocks

Parsed = TypeVar("Parsed")

# Records -> what becomes of each.
Maker = Callable[[Sequence[Record]], list[Made | BadRow]]
# Tokens of the conversations that are learned -> name of a source -> samples of its text.
Text = Callable[[int], Mapping[str, Iterable[Sample]]]


@dataclasses.dataclass(frozen=True)
class Samples:
    """An opened directory.

    Attributes:
        identity: hash of what decides the samples.
        sources: names, in the order in which `source` counts them.
        lengths: tokens of each sample, [samples].
        source: of each sample, [samples].
        held_out: whether a sample is for evaluation, bool [samples].
        report: what was read and left out, by source.
    """

    identity: str
    sources: tuple[str, ...]
    lengths: np.ndarray
    source: np.ndarray
    held_out: np.ndarray
    report: Mapping[str, Any]
    _ends: np.ndarray
    _tokens: np.ndarray
    _turns: np.ndarray

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> Sample:
        """The ids and turns of a sample."""
        end = int(self._ends[number])
        place = slice(end - int(self.lengths[number]), end)
        return Sample(self._tokens[place].astype(np.int32), self._turns[place])


def conversations(masker: Masker, *, learned: str) -> Maker:
    """Makes the samples of SFT."""
    return functools.partial(_made, parse=conversation_of, make=functools.partial(masker.samples, learned=learned))


def pairs(masker: Masker) -> Maker:
    """Makes the two samples of a preference."""
    return functools.partial(_made, parse=pair_of, make=masker.pairs)


def _made(
    records: Sequence[Record],
    *,
    parse: Callable[[Mapping[str, Any]], Parsed],
    make: Callable[[Sequence[Parsed]], list[Made | BadRow]],
) -> list[Made | BadRow]:
    parsed = [_parsed(record, parse) for record in records]
    made = iter(make([one for one in parsed if not isinstance(one, BadRow)]))
    return [one if isinstance(one, BadRow) else next(made) for one in parsed]


def _parsed(record: Record, parse: Callable[[Mapping[str, Any]], Parsed]) -> Parsed | BadRow:
    if isinstance(record, str):
        return BadRow(f"a row {record}")
    try:
        return parse(record)
    except BadRow as reason:
        return reason


def write_samples(
    directory: Path,
    *,
    paths: Mapping[str, str],
    make: Maker,
    identity: Mapping[str, Any],
    vocab_size: int,
    held_out_share: float,
    max_bad_share: float,
    text: Text | None = None,
) -> None:
    """Reads conversations and writes their samples, unless a whole directory of the same identity is there.

    Args:
        directory: what is written; complete or not there.
        paths: name of a source -> where its conversations are.
        make: from `conversations` or `pairs`.
        identity: of all that decides the samples, as JSON values.
        vocab_size: ids are smaller.
        held_out_share: of the conversations.
        max_bad_share: of the rows of a source; more end the run.
        text: what is learned beside the conversations; its sources come last, as `text_NAME`, and are not held out.

    Raises:
        UserError: nothing can be read, no sample is left, or too many rows cannot be used.
    """
    wanted = hash_json([_VERSION, identity])
    if is_whole(directory) and read_json(directory / MANIFEST, kind=dict)["identity"] == wanted:
        return
    dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
    report, index, end = dict[str, Any](), list[tuple[int, int, bool]](), 0
    with atomic_path(directory) as temporary:
        temporary.mkdir()
        with open(temporary / "tokens.bin", "wb") as tokens, open(temporary / "turns.bin", "wb") as turns:

            def write(sample: Sample, *, source: int, held_out: bool) -> None:
                nonlocal end
                tokens.write(sample.ids.astype(dtype).tobytes())
                turns.write(sample.turns.tobytes())
                end += len(sample)
                index.append((end, source, held_out))

            learned = 0
            for number, (name, path) in enumerate(paths.items()):
                source = _Source(name, path, max_bad_share=max_bad_share)
                for made in source.made(make):
                    held_out = unit_hash(json.dumps(made.text, sort_keys=True)) < held_out_share
                    for sample in made.samples:
                        write(sample, source=number, held_out=held_out)
                        learned += 0 if held_out else len(sample) - 1
                report[name] = source.report()
            for name, samples in text(learned).items() if text else ():
                count = len(index)
                for sample in samples:
                    write(sample, source=len(report), held_out=False)
                report[f"text_{name}"] = {"samples": len(index) - count}
        if not index:
            raise UserError(f"conversations: no sample is left; {_shown(report)}")
        write_array(temporary / "index.npy", np.array(index, _INDEX))
        manifest = {"identity": wanted, "sources": list(report), "dtype": dtype.str, "tokens": end, "report": report}
        write_json(temporary / MANIFEST, manifest)
        write_list(temporary)
    logging.info("%s: %s", directory, _shown(report))


def open_samples(directory: Path) -> Samples:
    """The samples of a directory that `write_samples` has written; UserError if it is damaged."""
    files = FileList.read(directory, remedy=_REMEDY)
    files.check(remedy=_REMEDY)
    manifest = files.read_json(MANIFEST, remedy=_REMEDY)
    index = read_array(directory / "index.npy", remedy=_REMEDY)
    if index.dtype != _INDEX or index.ndim != 1:
        raise UserError(f"{directory / 'index.npy'}: holds {index.dtype} of shape {index.shape}; {_REMEDY}")
    ends = index["end"].astype(np.int64)
    return Samples(
        identity=manifest["identity"],
        sources=tuple(manifest["sources"]),
        lengths=np.diff(ends, prepend=0),
        source=index["source"].astype(np.int32),
        held_out=index["held_out"].astype(bool),
        report=manifest["report"],
        _ends=ends,
        _tokens=np.memmap(directory / "tokens.bin", np.dtype(manifest["dtype"]), "r"),
        _turns=np.memmap(directory / "turns.bin", np.uint8, "r"),
    )


def _in_turn(make: Maker, blocks: Iterator[Sequence[Record]]) -> Iterator[list[Made | BadRow]]:
    """What `make` gives for each block, in order. While one is encoded, the template's process renders the next."""
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        waiting = collections.deque(pool.submit(make, block) for block in itertools.islice(blocks, _AT_ONCE))
        while waiting:
            made = waiting.popleft().result()
            waiting.extend(pool.submit(make, block) for block in itertools.islice(blocks, 1))
            yield made


class _Source:
    """Reads one source, and counts."""

    def __init__(self, name: str, path: str, *, max_bad_share: float):
        self._name, self._path, self._most = name, path, max_bad_share
        self._rows = self._samples = 0
        self._bad, self._left_out = collections.Counter[str](), collections.Counter[str]()

    def made(self, make: Maker) -> Iterator[Made]:
        records = itertools.chain.from_iterable(chat_records(file) for file in chat_files(self._path))
        for block in _in_turn(make, iter(lambda: list(itertools.islice(records, _BLOCK)), [])):
            for made in block:
                self._rows += 1
                if isinstance(made, BadRow):
                    self._bad[str(made)[:_LONGEST_REASON]] += 1
                    self._check_share(at_least=_LEAST_ROWS)
                    continue
                self._left_out.update(made.left_out)
                self._samples += len(made.samples)
                yield made
        self._check_share(at_least=1)
        if not self._rows:
            raise UserError(f"config.conversations.sources.{self._name}: {self._path}: holds no rows")

    def report(self) -> dict[str, Any]:
        """Numbers of rows, samples, and what was left out by reason."""
        return {
            "rows": self._rows,
            "samples": self._samples,
            "bad_rows": dict(self._bad.most_common()),
            "left_out": dict(self._left_out.most_common()),
        }

    def _check_share(self, *, at_least: int) -> None:
        bad = self._bad.total()
        if self._rows >= at_least and bad > self._most * self._rows:
            listed = ", ".join(f"{count:,} {reason}" for reason, count in self._bad.most_common(3))
            raise UserError(
                f"config.conversations.sources.{self._name}: {bad:,} of {self._rows:,} rows cannot be used ({listed}); "
                "mend them, or raise conversations.max_bad_share"
            )


def _shown(report: Mapping[str, Any]) -> str:
    return json_text(report)
