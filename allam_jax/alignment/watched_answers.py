"""Answers to a fixed set of prompts while a model is tuned: preference optimisation may make it repeat itself.

The ALLaM paper saw such "repeat generations". Losses do not show them.
"""

from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from allam_jax.alignment.packed_samples import PackedRows
from allam_jax.alignment.settings import WatchSettings
from allam_jax.alignment.text_measures import repeated_share
from allam_jax.corpus.words import bare_words
from allam_jax.evaluation.metric_keys import metric_key
from allam_jax.generation.engine import Engine
from allam_jax.generation.requests import Request, Sampling
from allam_jax.model.llama import Params
from allam_jax.training.loop import Watcher
from allam_jax.training.metrics import Row

SUITE, _NAME = "answers", "watched"
_RISES = {"repetition": 0.1, "cut": 0.3, "empty": 0.1}  # over the first values; larger ones are told


def prompts_of(rows: PackedRows, settings: WatchSettings, *, room: int) -> list[list[int]]:
    """The ids before the first learned reply of some items, spread over all of them.

    Those that leave no room for an answer in `room` tokens are left out.
    """
    found: dict[tuple[int, ...], None] = {}
    for number in rows.items[:, 0].tolist():
        sample = rows.samples[number]
        prompt = tuple(sample.ids[: int(np.argmax(sample.turns > 0))].tolist())
        if 0 < len(prompt) <= room - settings.max_new_tokens:
            found[prompt] = None
    prompts = [list(prompt) for prompt in found]
    places = np.linspace(0, len(prompts) - 1, min(settings.prompts, len(prompts))).round().astype(int)
    return [prompts[place] for place in places]


def watched_answers(
    prompts: Sequence[Sequence[int]], *, settings: WatchSettings, open_engine: Callable[[Params], Engine]
) -> Callable[[Params], dict[str, dict[str, float]]]:
    """Returns `scores(params)`, the means over the answers.

    `repetition`: the share of 4-grams of words that repeat an earlier one (Welleck et al. 2019, 1908.04319); `words`;
    `cut`: the share without an end within `max_new_tokens`; `empty`: that without words.
    """
    sampling = Sampling(max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, seed=0)
    requests = [Request(str(number), tuple(prompt), sampling) for number, prompt in enumerate(prompts)]

    def scores(params: Params) -> dict[str, dict[str, float]]:
        found = []
        for answer in open_engine(params).complete(requests):
            words = bare_words(answer.text)
            is_cut = answer.finish_reason == "length"
            found.append((repeated_share(words), len(words), is_cut, not words))
        means = np.mean(np.array(found, np.float64), axis=0).tolist()
        return {_NAME: dict(zip(("repetition", "words", "cut", "empty"), means, strict=True))}

    return scores


def answer_watcher() -> Watcher:
    """Warns, once each, where answers repeat themselves, do not end or are empty more often than at the beginning."""
    first: dict[str, float] = {}
    told: set[str] = set()

    def watch(row: Row) -> None:
        for name, rise in _RISES.items():
            value = row.get(metric_key(SUITE, _NAME, name))
            if value is None:
                continue
            if value > first.setdefault(name, value) + rise and name not in told:
                told.add(name)
                logging.warning(
                    "step %d: %s of the watched answers is %.2f, and was %.2f: the model is getting worse at writing; "
                    "take an earlier checkpoint, lower the learning rate, or raise dpo.beta",
                    *(row["step"], name, value, first[name]),
                )

    return watch
