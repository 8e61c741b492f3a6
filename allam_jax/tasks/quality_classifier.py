"""Task `quality_classifier`: trains the classifier that scores documents by their quality, on document shards."""

import itertools
from pathlib import Path
from typing import Any

from absl import logging

from allam_jax.corpus.fasttext_classifier import train_classifier
from allam_jax.settings import Settings
from allam_jax.tasks.texts import open_texts, read_texts


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Trains on `config.quality.positives` and `negatives`; returns counts and the quality on held-out documents."""
    kinds = ("positives", "negatives")
    for kind in kinds:  # both before the reading of the first
        open_texts(getattr(config.quality, kind), key=f"quality.{kind}")
    positives, negatives = (
        itertools.chain(*read_texts(getattr(config.quality, kind), key=f"quality.{kind}").values()) for kind in kinds
    )
    facts = train_classifier(positives, negatives, directory=workdir, settings=config.quality, seed=config.seed)
    logging.info("quality: held-out accuracy %.3f, AUC %.3f", facts["accuracy"], facts["auc"])
    return {key: facts[key] for key in ("trained_on", "held_out", "accuracy", "auc", "mean_score")}
