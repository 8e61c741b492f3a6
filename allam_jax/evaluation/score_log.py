"""Scores on disk as they are computed: a run that was killed computes no score twice that it has written.

A line is a key, a log-probability and whether the continuation is greedy. The key is a hash of the ids and of what
decides their scores, so scores of other weights in the same file are never taken.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from allam_jax.checksums import hash_json
from allam_jax.evaluation.shared_prefixes import Pair, Score
from allam_jax.files import json_text


class ScoreLog:
    """The scores in a file.

    Args:
        path: of the file; made with the first score.
        identity: what decides scores beside the ids, as JSON values: the weights and how they are computed.
        writes: whether this process writes; of several that work together one does.
        agree: the first process's value on all of them.
    """

    def __init__(
        self,
        path: Path,
        *,
        identity: Mapping[str, Any],
        writes: bool = True,
        agree: Callable[[Any], Any] = lambda value: value,
    ):
        self._path, self._writes = path, writes
        self._salt = hash_json(identity).encode()
        content = agree(path.read_bytes() if writes and path.exists() else b"")
        lines = [_read(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]
        self._scores = dict(line for line in lines if line)
        if damaged := lines.count(None):
            logging.warning("%s: %d damaged lines; their scores are computed again", path, damaged)
        if writes and content and not content.endswith(b"\n"):  # a line that a crash has cut
            path.write_bytes(content[: content.rfind(b"\n") + 1])

    def known(self, pair: Pair) -> Score | None:
        """The score of a pair, if it is there."""
        return self._scores.get(self._key(pair))

    def add(self, pairs: Iterable[Pair], scores: Sequence[Score]) -> None:
        """Appends scores."""
        found = {self._key(pair): score for pair, score in zip(pairs, scores, strict=True)}
        self._scores |= found
        if self._writes:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json_text([key, *score]) + "\n" for key, score in found.items())

    def _key(self, pair: Pair) -> str:
        ids = np.array([len(pair.context), *pair.context, *pair.continuation], np.int32)
        return hashlib.blake2b(ids.tobytes(), key=self._salt[:64], digest_size=16).hexdigest()


def _read(line: bytes) -> tuple[str, Score] | None:
    try:
        key, logprob, greedy = json.loads(line)
        return str(key), Score(float(logprob), bool(greedy))
    except (ValueError, TypeError):
        return None
