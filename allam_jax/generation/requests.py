"""What the engine is asked for, and what it gives back. Plain values: no arrays, no JAX."""

import dataclasses
import math
import numbers
from collections.abc import Iterable
from typing import Literal

from allam_jax.errors import UserError
from allam_jax.generation.settings import SamplingSettings

FinishReason = Literal["stop", "length", "cancelled"]

MAX_TOP_LOGPROBS = 20  # what a request can ask for; the device always computes so many, so that nothing recompiles
MAX_BANNED_IDS = 64
MAX_STOP_IDS = 16  # the engine's and a request's together
LARGEST_SEED = 2**32 - 1
_MOST = 2**31 - 1  # of what the device holds as int32
_COUNTS = ("max_new_tokens", "min_new_tokens", "top_k", "seed", "samples", "logprobs")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the tokens of one request are chosen, and when it ends. UserError for a value out of bounds.

    Logits are changed in this order: banned ids (and stop ids before `min_new_tokens`), the repetition penalty (over
    prompt and answer, as in Keskar et al. 2019, 1909.05858), the presence and frequency penalties (over the answer, as
    OpenAI's API defines them), temperature, top-k, top-p, min-p. At temperature 0 the likeliest token is taken.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    samples: int = 1  # continuations of the prompt; they differ by their number
    banned_ids: tuple[int, ...] = ()
    stop_ids: tuple[int, ...] = ()  # beside those of the engine
    stop_texts: tuple[str, ...] = ()  # the answer's text ends before the first of them
    logprobs: int | None = None  # None: none; k: of the chosen token and of the k likeliest
    echo: bool = False  # the prompt's log-probabilities too

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if not _are_whole([] if name == "logprobs" and value is None else [value]):
                raise UserError(f"{name} = {value!r}: expected a whole number")
        for name in ("banned_ids", "stop_ids"):
            if not _are_whole(getattr(self, name)) or not all(0 <= one <= _MOST for one in getattr(self, name)):
                raise UserError(f"{name} = {getattr(self, name)!r}: expected whole numbers from 0 to {_MOST}")
        checks = {
            "max_new_tokens": (0 <= self.max_new_tokens <= _MOST, f"0 or more, at most {_MOST}"),
            "min_new_tokens": (0 <= self.min_new_tokens <= self.max_new_tokens, "between 0 and max_new_tokens"),
            "temperature": (0 <= self.temperature < math.inf, "0 or more"),
            "top_k": (0 <= self.top_k <= _MOST, "0 (all) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0"),
            "presence_penalty": (math.isfinite(self.presence_penalty), "a finite number"),
            "frequency_penalty": (math.isfinite(self.frequency_penalty), "a finite number"),
            "seed": (0 <= self.seed <= LARGEST_SEED, f"between 0 and {LARGEST_SEED}"),
            "samples": (self.samples >= 1, "1 or more"),
            "banned_ids": (len(self.banned_ids) <= MAX_BANNED_IDS, f"at most {MAX_BANNED_IDS} ids"),
            "stop_texts": (all(self.stop_texts), "texts that are not empty"),
            "logprobs": (
                self.logprobs is None or 0 <= self.logprobs <= MAX_TOP_LOGPROBS,
                f"between 0 and {MAX_TOP_LOGPROBS}",
            ),
        }
        for name, (valid, expected) in checks.items():
            if not valid:
                raise UserError(f"{name} = {getattr(self, name)!r}: expected {expected}")


def sampling_of(settings: SamplingSettings, *, seed: int, samples: int = 1, logprobs: int | None = None) -> Sampling:
    """What a section of a config asks for."""
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(SamplingSettings)}
    return Sampling(**values, seed=seed, samples=samples, logprobs=logprobs)


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt and how to go on from it. `name` tells requests apart: one that is under way has it alone."""

    name: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling

    def __post_init__(self) -> None:
        if not _are_whole(self.prompt_ids):
            raise UserError(f"prompt {self.name}: expected ids, which are whole numbers")


def _are_whole(values: Iterable[object]) -> bool:
    return all(type(one) is int or (isinstance(one, numbers.Integral) and type(one) is not bool) for one in values)


@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """Natural log-probability of a token before penalties, temperature and filters, and of the likeliest ones."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (id, log-probability), likeliest first


@dataclasses.dataclass(frozen=True)
class Delta:
    """What one step gave one sample of a request.

    Text that may yet become a stop text, or is half a character, is held back: `text` may be behind `ids`. The last
    delta of a sample has a `finish_reason`, and all that was held back and belongs to the answer.
    """

    name: str
    sample: int
    ids: tuple[int, ...]  # without the id that stopped it
    text: str  # empty without a tokenizer
    logprobs: tuple[TokenLogprob, ...]  # one an id, where the request asks for them
    finish_reason: FinishReason | None
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()  # echo: in the first delta; None for the first token


@dataclasses.dataclass(frozen=True)
class Completion:
    """One sample of a request, from its first to its last delta."""

    name: str
    sample: int
    ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()


def joined(deltas: list[Delta]) -> Completion:
    """The completion that all deltas of one sample amount to."""
    last = deltas[-1]
    if last.finish_reason is None:
        raise ValueError(f"sample {last.sample} of {last.name} has not ended")
    return Completion(
        name=last.name,
        sample=last.sample,
        ids=tuple(index for delta in deltas for index in delta.ids),
        text="".join(delta.text for delta in deltas),
        logprobs=tuple(one for delta in deltas for one in delta.logprobs),
        finish_reason=last.finish_reason,
        prompt_logprobs=deltas[0].prompt_logprobs,
    )
