"""Task `sft`: supervised fine-tuning on conversations; resumes at any step.

Text of `replay.sources` is learned beside them. The workdir holds samples/ (tokens and masks) beside what task
`train` writes.
"""

import functools
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from allam_jax.alignment.packed_samples import PackedRows, items_of
from allam_jax.alignment.reply_losses import SUITE, reply_losses
from allam_jax.alignment.sample_cache import conversations
from allam_jax.alignment.watched_answers import answer_watcher
from allam_jax.settings import Settings
from allam_jax.tasks.open_samples import (
    as_context,
    languages_of,
    make_samples,
    open_template,
    open_watched,
    packed_loader,
    steps_of,
)
from allam_jax.tasks.setup import open_evaluations
from allam_jax.tasks.train import train_on
from allam_jax.tokenizer.generation_config import learned_conversation
from allam_jax.training.loop import Evaluation
from allam_jax.training.material import Material
from allam_jax.training.origin import Origin


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Fine-tunes, or goes on, in `workdir`; returns the final loss, speed and evaluations."""
    return train_on(config, workdir, material_of=_conversations)


def _conversations(config: Settings, workdir: Path, origin: Origin, mesh: Mesh) -> Material:
    options = config.conversations
    maker = functools.partial(conversations, learned=config.sft.learned)
    template = open_template(config, origin)
    samples = make_samples(
        config,
        workdir,
        origin,
        template=template,
        maker=maker,
        kind=f"sft {config.sft.learned}",
        replay=config.replay,
    )
    packed = functools.partial(PackedRows, samples=samples, seq_len=config.data.seq_len, packed=options.packed)
    loader = packed_loader(
        config, packed(items=items_of(samples, held_out=False), by_sample=config.sft.average == "sample"), mesh=mesh
    )

    def evaluations() -> list[Evaluation]:
        found = open_evaluations(config, model=origin.model, tokenizer=origin.tokenizer, mesh=mesh)
        held_out = packed(items=items_of(samples, held_out=True))
        if len(held_out.items):
            scores = reply_losses(
                held_out,
                languages=languages_of(config),
                config=origin.model,
                options=config.compute,
                mesh=mesh,
                batch_size=config.eval.batch_size,
                num_chunks=config.eval.loss_chunks,
            )
            found.append(Evaluation(suite=SUITE, every=config.eval.every, scores=scores))
        return found + open_watched(config, origin, held_out, template=template, mesh=mesh)

    return Material(
        open_loader=functools.partial(as_context, loader),
        open_evaluations=evaluations,
        steps=steps_of(config, loader),
        num_sources=len(samples.sources),
        watchers=[answer_watcher()],
        beside_tokenizer=learned_conversation(template, tokenizer=origin.tokenizer, directory=origin.tokenizer_dir),
    )
