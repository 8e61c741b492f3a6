"""Task `quality_classifier`: trains the classifier that scores documents by their quality, on document shards."""

from pathlib import Path
from typing import Any

from absl import logging

from allam_jax.corpus.fasttext_classifier import FastTextOptions, train_classifier
from allam_jax.settings import Settings
from allam_jax.tasks.texts import read_texts


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Trains on `config.quality.positives` and `negatives`; returns counts and the quality on held-out documents."""
    options = config.quality
    kinds = {
        kind: [text for texts in read_texts(getattr(options, kind), key=f"quality.{kind}").values() for text in texts]
        for kind in ("positives", "negatives")
    }
    facts = train_classifier(
        kinds["positives"],
        kinds["negatives"],
        directory=workdir,
        held_out=options.held_out,
        seed=config.seed,
        options=FastTextOptions(
            epochs=options.epochs,
            learning_rate=options.learning_rate,
            word_ngrams=options.word_ngrams,
            dim=options.dim,
            buckets=options.buckets,
        ),
    )
    logging.info("quality: held-out accuracy %.3f, AUC %.3f", facts["accuracy"], facts["auc"])
    return {key: facts[key] for key in ("trained_on", "held_out", "accuracy", "auc", "mean_score")}
