"""The backend of `over_rows` that is our own engine."""

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from allam_jax.errors import UserError
from allam_jax.generation.engine import Engine
from allam_jax.generation.over_rows import Choice, RowAnswer
from allam_jax.generation.requests import Completion, Delta, Request, Sampling, joined
from allam_jax.generation.rows import Prompt

_LOOK_AHEAD = 8  # rows that the engine has or that wait for an earlier one, for each slot


class EngineBackend:
    """Answers with an engine.

    Args:
        engine: idle, and used by nobody else meanwhile.
        encode: ids of what a row asks; UserError if it cannot be asked.
        sampling: of every row. The seed of a row follows from its seed and the row's number.
        identity: of the model, as JSON values.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        encode: Callable[[Prompt], Sequence[int]],
        sampling: Sampling,
        identity: Mapping[str, Any],
    ):
        self._engine, self._encode, self._sampling, self._identity = engine, encode, sampling, identity

    def describe(self) -> dict[str, Any]:
        """The model and the sampling."""
        return {**self._identity, "sampling": dataclasses.asdict(self._sampling)}

    def answers(self, prompts: Iterable[Prompt]) -> Iterator[RowAnswer]:
        """See `over_rows.Backend`."""
        prompts, gathered = iter(prompts), GatheredDeltas()
        order: collections.deque[str] = collections.deque()
        done: dict[str, RowAnswer] = {}
        sizes: dict[str, int] = {}
        more = True
        while more or order:
            while more and self._engine.queued < self._engine.slots and len(order) < _LOOK_AHEAD * self._engine.slots:
                prompt = next(prompts, None)
                if prompt is None:
                    more = False
                    break
                name = str(prompt.row)
                order.append(name)
                try:
                    sampling = dataclasses.replace(self._sampling, seed=self.seed_of(prompt.row))
                    request = Request(name, tuple(self._encode(prompt)), sampling)
                    sizes[name] = len(request.prompt_ids)
                    self._engine.submit(request)
                except UserError as error:
                    done[name] = RowAnswer(error=str(error).removeprefix(f"prompt {name}: "))
            for completions in gathered.add(self._engine.step(), samples=self._sampling.samples):
                name = completions[0].name
                done[name] = RowAnswer(tuple(map(_choice, completions)), sizes.pop(name))
            while order and order[0] in done:
                yield done.pop(order.popleft())

    def seed_of(self, row: int) -> int:
        """The seed of a row: equal prompts get different samples, and other rows change nothing."""
        digest = hashlib.blake2b(f"{self._sampling.seed}/{row}".encode(), digest_size=4).digest()
        return int.from_bytes(digest)


class GatheredDeltas:
    """Joins the deltas of requests until all samples of one have ended."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[int, list[Delta]]] = {}

    def add(self, deltas: Iterable[Delta], *, samples: int) -> Iterator[list[Completion]]:
        """Takes deltas of requests with so many samples; gives the samples of those that have ended, in order."""
        for delta in deltas:
            parts = self._parts.setdefault(delta.name, {})
            parts.setdefault(delta.sample, []).append(delta)
            if len(parts) == samples and all(part[-1].finish_reason for part in parts.values()):
                del self._parts[delta.name]
                yield [joined(parts[sample]) for sample in sorted(parts)]


def _choice(completion: Completion) -> Choice:
    logprobs = [one.logprob for one in completion.logprobs] or None
    return Choice(completion.text, completion.finish_reason, len(completion.ids), logprobs)
