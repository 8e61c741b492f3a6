"""The one way to map rows through a model: prompts in order in, shards of answers out.

    DIR/answers/00000.jsonl     the rows that were answered, each file written in one step
    DIR/errors/00000.jsonl      the rows of the same shard that were not, with the reason
    DIR/unfinished/00001.jsonl  the rows of the next shard so far, one by one
    DIR/over_rows.json          what decides the answers; a directory made otherwise is refused

A shard is a fixed number of rows of the input. A run that was killed goes on behind the last row that it has written,
so that every row occurs once, as an answer or as an error. What it had asked behind that row is asked again: rows under
way, and answers that waited for an earlier row's.
"""

import collections
import dataclasses
import datetime
import itertools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from absl import logging

from allam_jax.corpus.record_formats import json_records
from allam_jax.errors import UserError
from allam_jax.files import json_text, read_json, sweep, write_json, write_text
from allam_jax.generation.rows import Prompt

STATE_FILE = "over_rows.json"
ANSWERS, ERRORS = "answers", "errors"
_UNFINISHED = "unfinished"
ENDED = frozenset({"stop", "eos", "end_turn"})  # words of backends for an answer that ended by itself
_LEAST_ROWS = 20  # before so many rows the share of errors says nothing, unless all are errors
_LONGEST_REASON = 80


@dataclasses.dataclass(frozen=True)
class Choice:
    """One answer to a prompt. `finish_reason` is the backend's own word; `logprobs` of its tokens, if asked for."""

    text: str
    finish_reason: str
    tokens: int
    logprobs: Sequence[float] | None = None


@dataclasses.dataclass(frozen=True)
class RowAnswer:
    """What a backend gave for one prompt: choices, or why there are none."""

    choices: Sequence[Choice] = ()
    prompt_tokens: int = 0
    error: str = ""


class Backend(Protocol):
    """A model that answers prompts."""

    def describe(self) -> dict[str, Any]:
        """What decides its answers, as JSON values."""

    def answers(self, prompts: Iterable[Prompt]) -> Iterator[RowAnswer]:
        """An answer for each prompt, in their order; takes prompts as it has room for them.

        UserError for what no other row would change, such as an endpoint that is not there.
        """


def over_rows(
    rows: Iterable[Prompt],
    *,
    total: int,
    backend: Backend,
    directory: Path,
    identity: Mapping[str, Any],
    shard_rows: int,
    max_error_share: float,
    every_seconds: float = 10.0,
    writes: bool = True,
    agree: Callable[[Any], Any] = lambda value: value,
) -> dict[str, Any]:
    """Answers every row; goes on where an earlier run ended.

    Args:
        rows: in a fixed order; iterated from its start, also when the first of them are done.
        total: number of rows.
        backend: answers them.
        directory: where shards are written.
        identity: of the input, as JSON values: with the backend's description it must be that of an earlier run.
        shard_rows: rows of a shard.
        max_error_share: of the rows so far; more errors end the run.
        every_seconds: between two progress lines.
        writes: whether this process writes; of several that work together one does.
        agree: the first process's value on all of them.

    Returns:
        Numbers of rows, of answered rows and of errors by reason.

    Raises:
        UserError: the directory belongs to another run, there are too many errors, or the backend's.
    """
    if writes:
        _claim(directory, {**identity, **backend.describe(), "shard_rows": shard_rows})
    shards = -(-total // shard_rows)
    finished = agree(next((n for n in range(shards) if not _shard(directory, ANSWERS, n).exists()), shards))
    shard = _Shard(directory, finished, writes=writes)
    errors = _Errors(agree(_errors_of(directory, shards=finished, unfinished=shard.errors())))
    done = finished * shard_rows + agree(len(shard))
    progress = _Progress(total=total, done=done, every=every_seconds)
    answered = _in_order(itertools.islice(rows, done, None), backend)
    for number in range(finished, shards):
        try:
            for prompt, answer in itertools.islice(answered, (number + 1) * shard_rows - done):
                shard.append(_record(prompt, answer))
                done += 1
                if answer.error:
                    errors.add(answer.error)
                progress.row(answer, errors=errors.total())
        except UserError as error:
            raise UserError(
                f"{error} ({done:,} of {total:,} rows are done, {errors.total():,} of them errors)"
            ) from None
        finally:
            shard.close()
        shard.finish()
        shard = _Shard(directory, number + 1, writes=writes)
        _check_share(errors, rows=min((number + 1) * shard_rows, total), most=max_error_share, directory=directory)
    return {"rows": total, "answered": total - errors.total(), "errors": errors.by_reason()}


def read_answers(directory: Path) -> Iterator[dict[str, Any]]:
    """The answered rows of a finished run, in order: `row`, fields that were kept, `prompt`, `answers`."""
    return _records(directory / ANSWERS)


def read_errors(directory: Path) -> Iterator[dict[str, Any]]:
    """The other rows of a finished run, in order: the same with `error` in place of `answers`."""
    return _records(directory / ERRORS)


def _records(directory: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(directory.glob("*.jsonl")):
        for record in json_records(file, limit=1 << 30):
            if isinstance(record, str):
                raise UserError(f"{file}: a line {record}; remove it and run the same command again")
            yield record


def _in_order(rows: Iterable[Prompt], backend: Backend) -> Iterator[tuple[Prompt, RowAnswer]]:
    """Every row with its answer; rows with a problem never reach the backend."""
    waiting: collections.deque[Prompt] = collections.deque()

    def askable() -> Iterator[Prompt]:
        for row in rows:
            waiting.append(row)
            if not row.problem:
                yield row

    def problems() -> Iterator[tuple[Prompt, RowAnswer]]:
        while waiting and waiting[0].problem:
            row = waiting.popleft()
            yield row, RowAnswer(error=row.problem)

    for answer in backend.answers(askable()):
        yield from problems()
        yield waiting.popleft(), answer
        yield from problems()
    yield from problems()


def _record(prompt: Prompt, answer: RowAnswer) -> dict[str, Any]:
    asked = {"prompt": prompt.asked} if isinstance(prompt.asked, str) else {"messages": prompt.asked}
    record = {"row": prompt.row, **prompt.kept, **asked}
    if answer.error:
        return record | {"error": answer.error}
    choices = [{k: v for k, v in dataclasses.asdict(choice).items() if v is not None} for choice in answer.choices]
    return record | {"answers": choices, "prompt_tokens": answer.prompt_tokens}


def _shard(directory: Path, name: str, number: int) -> Path:
    return directory / name / f"{number:05d}.jsonl"


def _claim(directory: Path, identity: Mapping[str, Any]) -> None:
    """Notes what decides the answers; UserError if earlier answers there were decided by something else."""
    path = directory / STATE_FILE
    identity = json.loads(json.dumps(identity))  # as it is read back: tuples become lists
    if path.exists():
        earlier = read_json(path, kind=dict)
        different = sorted(key for key in {*identity, *earlier} if identity.get(key) != earlier.get(key))
        if different:
            raise UserError(
                f"{directory}: holds answers that were made with another {' and '.join(different)}; "
                "remove it, or use another --workdir"
            )
    for name in (ANSWERS, ERRORS, _UNFINISHED):
        (directory / name).mkdir(parents=True, exist_ok=True)
        sweep(directory / name)
    write_json(path, identity)


class _Shard:
    """The rows of one shard, each on the disk as soon as it is there. Of several processes one writes."""

    def __init__(self, directory: Path, number: int, *, writes: bool):
        """Begins with the rows that an earlier run has written; removes those of other shards, which are complete."""
        self._directory, self._number, self._writes = directory, number, writes
        self._path = directory / _UNFINISHED / f"{number:05d}.jsonl"
        self._lines: list[tuple[str, str]] = []  # each with the row's error, or nothing
        self._file: BinaryIO | None = None
        if writes:
            for path in self._path.parent.iterdir():
                if path == self._path:
                    self._lines = _whole_lines(path)
                else:
                    path.unlink()

    def __len__(self) -> int:
        return len(self._lines)

    def errors(self) -> list[str]:
        """Of the rows that have one."""
        return [error for _, error in self._lines if error]

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a row."""
        if not self._writes:
            return
        if self._file is None:
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - `close` closes it
            self._file.truncate(sum(len(line.encode()) for line, _ in self._lines))
        self._lines.append((json_text(record) + "\n", record.get("error", "")))
        self._file.write(self._lines[-1][0].encode())

    def finish(self) -> None:
        """Writes the files of the shard, the answers last: they make it complete."""
        if self._writes:
            for name in (ERRORS, ANSWERS):
                lines = (line for line, error in self._lines if bool(error) == (name == ERRORS))
                write_text(_shard(self._directory, name, self._number), "".join(lines))
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Leaves the rows so far on the disk."""
        if self._file:
            self._file.close()


def _whole_lines(path: Path) -> list[tuple[str, str]]:
    """The rows at the beginning of a file that a kill may have cut short."""
    found = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict) or not line.endswith(b"\n"):
            break
        found.append((line.decode(), record.get("error", "")))
    return found


def _errors_of(directory: Path, *, shards: int, unfinished: Iterable[str]) -> dict[str, int]:
    """Reason -> number of the errors in the first shards and in the one that follows."""
    found = _Errors({})
    for number in range(shards):
        for line in _shard(directory, ERRORS, number).read_bytes().splitlines():
            found.add(json.loads(line)["error"])
    for error in unfinished:
        found.add(error)
    return found.by_reason()


class _Errors:
    """Counts errors. Reasons that differ in their numbers alone are one, which is told by the first of them."""

    def __init__(self, by_reason: Mapping[str, int]):
        self._counts, self._first = collections.Counter[str](), dict[str, str]()
        for reason, count in by_reason.items():
            self.add(reason, count)

    def add(self, error: str, count: int = 1) -> None:
        """Counts an error by its first words, without the file that it names first."""
        reason = re.sub(r"^\S*/[^:]*: ", "", error).partition(":")[0][:_LONGEST_REASON]
        kind = reason if reason.startswith("status ") else re.sub(r"\d[\d,]*", "N", reason)
        self._counts[kind] += count
        self._first.setdefault(kind, reason)

    def total(self) -> int:
        """All of them."""
        return self._counts.total()

    def by_reason(self) -> dict[str, int]:
        """Reason -> count, the most frequent first."""
        return {self._first[kind]: count for kind, count in self._counts.most_common()}


def _check_share(errors: _Errors, *, rows: int, most: float, directory: Path) -> None:
    count = errors.total()
    if (rows >= _LEAST_ROWS or count == rows) and count > most * rows:
        listed = ", ".join(f"{number:,} {reason}" for reason, number in list(errors.by_reason().items())[:3])
        raise UserError(
            f"{count:,} of {rows:,} rows have no answer ({listed}; all are in {directory / ERRORS}); mend the cause "
            "and remove the directory, or raise max_error_share"
        )


class _Progress:
    """Logs how far the rows are, from time to time."""

    def __init__(self, *, total: int, done: int, every: float):
        self._total, self._rows, self._every = total, min(done, total), every
        self._tokens, self._begun, self._first = 0, time.monotonic(), self._rows
        self._shown = self._begun

    def row(self, answer: RowAnswer, *, errors: int) -> None:
        """Counts a row; shows the line if it is time."""
        self._rows += 1
        self._tokens += sum(choice.tokens for choice in answer.choices)
        now = time.monotonic()
        if now - self._shown < self._every and self._rows < self._total:
            return
        self._shown, seconds = now, max(now - self._begun, 1e-9)
        left = (self._total - self._rows) * seconds / (self._rows - self._first)
        eta = str(datetime.timedelta(seconds=round(left)))
        logging.info(
            "%s of %s rows, %s errors, %s tokens/s, ETA %s",
            *(f"{count:,}" for count in (self._rows, self._total, errors, round(self._tokens / seconds))),
            eta,
        )
