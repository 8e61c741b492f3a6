"""Task `probe`: what a model that learns a second language knows, keeps and can do, in English and Arabic.

Capitals of countries with and without worked examples, copying of words, retrieval of translated verses by the hidden
states of every layer, continuations of fixed prompts, and words per second.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allam_jax import files
from allam_jax.evaluation.capitals import capital_questions, capital_scores
from allam_jax.evaluation.continuations import TextEncoder
from allam_jax.evaluation.copying import copying_scores
from allam_jax.evaluation.likelihood import Likelihood, Pair
from allam_jax.evaluation.sentence_retrieval import aligned_verses, retrieval_accuracies
from allam_jax.evaluation.sentence_states import layer_states
from allam_jax.evaluation.text_speed import continuations, reading
from allam_jax.generation.engine import with_capacity
from allam_jax.generation.settings import EngineSettings
from allam_jax.parallel.distributed import is_main_process
from allam_jax.settings import Settings
from allam_jax.tasks.setup import TextModel, open_text_model


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Asks the model at `init.weights`; writes and returns `probe.json`."""
    options = config.probe
    model = open_text_model(config, template="")
    weights, encoder = model.weights, TextEncoder(model.tokenizer, template=None)
    likelihood = Likelihood(
        weights.params, config=weights.config, options=config.compute, settings=config.likelihood, mesh=model.mesh
    )

    def score(texts: list[tuple[str, str]]) -> list[tuple[float, bool]]:
        pairs = [encoder.pair(context, continuation) for context, continuation in texts]
        found = likelihood([Pair(tuple(context), tuple(continuation)) for context, continuation in pairs])
        return [(score.logprob, score.greedy) for score in found]

    asked = capital_questions(seed=config.seed, untaught=options.untaught)
    capitals: dict[str, dict[str, Any]] = {}
    for language, questions in asked.items():
        most = max(options.shots)  # the examples are asked nowhere, so that all numbers of them are compared on one set
        examples, rest = questions[:most], questions[most:][: options.countries or None]
        capitals[language] = {
            str(shots): capital_scores(rest, language=language, examples=examples[:shots], score=score)
            for shots in options.shots
        }

    verses = aligned_verses(options.verses, seed=config.seed)
    copying, reads = {}, {}
    for language, texts in verses.items():
        words = [word for text in texts for word in text.split() if word.isalpha() and len(word) > 2]
        asked_of = {"lists": options.lists, "length": options.list_words, "seed": config.seed}
        copying[language] = copying_scores(words, score=score, **asked_of)
        reads[language] = reading(texts[: options.read_verses], likelihood=likelihood, encoder=encoder)
    result = {
        "capitals": capitals,
        "copying": copying,
        "verses": reads,
        "retrieval": retrieval_accuracies(*(_states(model, texts) for texts in verses.values())),
        **_written(model, encoder, prompts=options.prompts, tokens=options.max_new_tokens),
    }
    per_word = reads["ar"]["tokens_per_word"]
    result["written_arabic_words_per_second"] = result["written_tokens_per_second"] / per_word
    if is_main_process():
        files.write_json(workdir / "probe.json", result)
    return result


def _states(model: TextModel, texts: Sequence[str]) -> np.ndarray:
    """[L + 1, N, D] of some texts."""
    ids = [model.tokenizer.encode(text) for text in texts]
    return layer_states(model.weights.params, ids, config=model.weights.config, options=model.options)


def _written(model: TextModel, encoder: TextEncoder, *, prompts: Sequence[str], tokens: int) -> dict[str, Any]:
    """Continuations, by an engine that writes one text at a time."""
    longest = max(len(encoder.context(prompt)) for prompt in prompts) + tokens
    settings = with_capacity(EngineSettings(slots=1), longest, context=model.weights.config.max_position)
    engine = model.engine(settings)
    return continuations(prompts, engine=engine, tokenizer=model.tokenizer, encoder=encoder, tokens=tokens)
