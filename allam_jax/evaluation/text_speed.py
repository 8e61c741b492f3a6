"""Words per second: what a vocabulary that fits a language is worth when a model reads and writes it."""

import math
import time
from collections.abc import Sequence
from typing import Any

from allam_jax.evaluation.continuations import TextEncoder
from allam_jax.evaluation.likelihood import Likelihood, Pair
from allam_jax.generation.engine import Engine
from allam_jax.generation.requests import Request, Sampling
from allam_jax.tokenizer.tokenizer import Tokenizer


def reading(texts: Sequence[str], *, likelihood: Likelihood, encoder: TextEncoder) -> dict[str, float]:
    """Bits per byte of the texts behind their first words; tokens per word, and words read in a second.

    The time is that of a second reading, for which everything is compiled.
    """
    parts = [(text.split()[0], text[len(text.split()[0]) :]) for text in map(str.strip, texts)]
    pairs = [Pair(*map(tuple, encoder.pair(*part))) for part in parts]
    scores = likelihood(pairs)
    started = time.perf_counter()
    likelihood(pairs)
    seconds = time.perf_counter() - started
    words = sum(len(rest.split()) for _, rest in parts)
    return {
        "bits_per_byte": -sum(score.logprob for score in scores) / math.log(2) / sum(len(t.encode()) for _, t in parts),
        "tokens_per_word": sum(len(pair.continuation) for pair in pairs) / words,
        "read_words_per_second": words / seconds,
    }


def continuations(
    prompts: Sequence[str], *, engine: Engine, tokenizer: Tokenizer, encoder: TextEncoder, tokens: int
) -> dict[str, Any]:
    """The likeliest continuations of prompts, one at a time, and the tokens written in a second."""
    sampling = Sampling(max_new_tokens=tokens, min_new_tokens=tokens, temperature=0.0)
    texts, seconds = [], math.inf
    for number, prompt in enumerate(prompts):
        started = time.perf_counter()
        (completion,) = engine.complete([Request(str(number), tuple(encoder.context(prompt)), sampling)])
        texts.append({"prompt": prompt, "continuation": tokenizer.decode(completion.ids)})
        seconds = min(seconds, time.perf_counter() - started)  # the first ones also compile
    return {"continuations": texts, "written_tokens_per_second": tokens / seconds}
