"""Task `train`: pre-training, continued pre-training and branches of a run; resumes at any step.

The workdir holds config.json, model.json, tokenizer/, metrics.jsonl, tensorboard/, checkpoints/ and report.md.
"""

import functools
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from allam_jax.settings import Settings
from allam_jax.tasks.setup import open_evaluations, open_loader
from allam_jax.tasks.training_run import Material, train
from allam_jax.training.origin import Origin


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Trains, or goes on training, in `workdir`; returns the final loss, speed and evaluations."""
    return train(config, workdir, material_of=_documents)


def _documents(config: Settings, workdir: Path, origin: Origin, mesh: Mesh) -> Material:
    return Material(
        open_loader=functools.partial(open_loader, config, tokenizer=origin.tokenizer, mesh=mesh),
        open_evaluations=functools.partial(
            open_evaluations, config, model=origin.model, tokenizer=origin.tokenizer, mesh=mesh
        ),
    )
