"""The host's side of the slots: arrays with a row for each, which every burst takes, and the buckets of lengths."""

import numpy as np

from allam_jax.generation.programs import Texts
from allam_jax.generation.requests import MAX_BANNED_IDS, MAX_STOP_IDS, Request
from allam_jax.generation.sampling import SlotSampling

NOTHING = -1  # pads lists of ids
# Smaller divisors would make logits infinite, and smaller shares 0, at which nothing is left to draw from.
_LEAST_DIVISOR, _LEAST_SHARE = np.float32(1e-30), np.finfo(np.float32).tiny


class Slots:
    """The texts under way, as NumPy arrays. A free slot has length 0 and parameters that ask for no work."""

    def __init__(self, slots: int, capacity: int):
        def each(value, dtype) -> np.ndarray:
            return np.full(slots, value, dtype)

        self.texts = Texts(
            tokens_BC=np.zeros((slots, capacity), np.int32),
            lengths_B=each(0, np.int32),
            limits_B=each(0, np.int32),
            sampling=SlotSampling(
                temperature_B=each(0, np.float32),
                top_k_B=each(0, np.int32),
                top_p_B=each(1, np.float32),
                min_p_B=each(0, np.float32),
                repetition_penalty_B=each(1, np.float32),
                presence_penalty_B=each(0, np.float32),
                frequency_penalty_B=each(0, np.float32),
                seed_B=each(0, np.uint32),
                sample_B=each(0, np.uint32),
                prompt_lengths_B=each(0, np.int32),
                earliest_stops_B=each(0, np.int32),
                banned_BJ=np.full((slots, MAX_BANNED_IDS), NOTHING, np.int32),
                stops_BE=np.full((slots, MAX_STOP_IDS), NOTHING, np.int32),
                logprobs_B=each(False, bool),
            ),
        )
        self._idle = SlotSampling(*(array[0].copy() for array in self.texts.sampling))

    def start(self, slot: int, request: Request, sample: int, *, stop_ids: tuple[int, ...]) -> None:
        """Puts a prompt into a slot."""
        asked, prompt = request.sampling, request.prompt_ids
        self.texts.tokens_BC[slot, : len(prompt)] = prompt
        self.texts.lengths_B[slot] = len(prompt)
        self.texts.limits_B[slot] = len(prompt) + asked.max_new_tokens
        self._set(
            slot,
            SlotSampling(
                temperature_B=max(asked.temperature, _LEAST_DIVISOR) if asked.temperature else 0,
                top_k_B=asked.top_k,
                top_p_B=max(asked.top_p, _LEAST_SHARE),
                min_p_B=asked.min_p,
                repetition_penalty_B=max(asked.repetition_penalty, _LEAST_DIVISOR),
                presence_penalty_B=asked.presence_penalty,
                frequency_penalty_B=asked.frequency_penalty,
                seed_B=asked.seed,
                sample_B=sample,
                prompt_lengths_B=len(prompt),
                earliest_stops_B=len(prompt) + asked.min_new_tokens,
                banned_BJ=_padded(asked.banned_ids, MAX_BANNED_IDS),
                stops_BE=_padded(stop_ids, MAX_STOP_IDS),
                logprobs_B=asked.logprobs is not None,
            ),
        )

    def extend(self, slot: int, ids: np.ndarray) -> None:
        """Appends what a burst has given."""
        length = self.texts.lengths_B[slot]
        self.texts.tokens_BC[slot, length : length + len(ids)] = ids
        self.texts.lengths_B[slot] += len(ids)

    def free(self, slot: int) -> None:
        """Nothing more is done in this slot."""
        self.texts.lengths_B[slot] = self.texts.limits_B[slot] = 0
        self._set(slot, self._idle)

    def _set(self, slot: int, sampling: SlotSampling) -> None:
        for array, value in zip(self.texts.sampling, sampling, strict=True):
            array[slot] = value


def _padded(ids: tuple[int, ...], size: int) -> np.ndarray:
    return np.array([*ids, *[NOTHING] * (size - len(ids))], np.int32)


def buckets(capacity: int) -> list[int]:
    """The lengths of rows that are compiled: powers of two from 32 on, from 256 on also those between, to the capacity.

    A row is padded by less than half, and long ones, whose padding costs most, by less than a third.
    """
    sizes = [32, 64, 128]
    size = 256
    while sizes[-1] < capacity:
        sizes += [size, size + size // 2]
        size *= 2
    return [*(length for length in sizes if length < capacity), capacity]
