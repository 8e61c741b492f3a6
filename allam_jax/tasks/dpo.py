"""Task `dpo`: preference optimisation on pairs of answers; resumes at any step.

The workdir holds samples/ (tokens and masks) and reference/ (log-probabilities) beside what task `train` writes.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from allam_jax.alignment.packed_samples import Column, PackedRows, items_of
from allam_jax.alignment.preference_loss import REFERENCE, Preference
from allam_jax.alignment.preference_scores import SUITE, preference_scores, preference_watcher, tell_length_bias
from allam_jax.alignment.reference_cache import cached_reference, live_reference, reference_values
from allam_jax.alignment.sample_cache import pairs
from allam_jax.alignment.watched_answers import answer_watcher
from allam_jax.config import require
from allam_jax.model.llama import Params
from allam_jax.parallel.distributed import broadcast, is_main_process
from allam_jax.settings import Settings, as_dict
from allam_jax.tasks.inputs_of_task import inputs_of_settings
from allam_jax.tasks.open_samples import (
    as_context,
    make_samples,
    open_template,
    open_watched,
    packed_loader,
    steps_of,
)
from allam_jax.tasks.setup import open_evaluations
from allam_jax.tasks.train import train_on
from allam_jax.tokenizer.generation_config import learned_conversation
from allam_jax.training.load import load_model
from allam_jax.training.loop import Evaluation
from allam_jax.training.material import Material
from allam_jax.training.objective import Prepare, unchanged
from allam_jax.training.origin import Origin
from allam_jax.training.run_description import RunDescription

REFERENCE_FOLDER = "reference"


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Optimises, or goes on, in `workdir`; returns the final loss, speed and evaluations."""
    require(config.init.weights, key="init.weights", hint="give the model to start from, which is the reference too")
    return train_on(config, workdir, material_of=_pairs)


def _pairs(config: Settings, workdir: Path, origin: Origin, mesh: Mesh) -> Material:
    template = open_template(config, origin)
    samples = make_samples(config, workdir, origin, template=template, maker=pairs, kind="dpo")
    packed = functools.partial(
        PackedRows, samples=samples, seq_len=config.data.seq_len, packed=config.conversations.packed
    )
    trained, held_out = (packed(items=items_of(samples, held_out=which, together=2)) for which in (False, True))
    most_pairs = max(rows.fitted().most_items for rows in (trained, held_out) if len(rows.items))
    objective = Preference(
        model=origin.model,
        options=config.compute,
        settings=config.dpo,
        most_pairs=most_pairs,
        num_chunks=config.train.loss_chunks,
    )
    tell_length_bias(trained)

    # ---- the reference ----
    columns: dict[str, Column] = {}
    prepare: Prepare = unchanged
    if objective.has_reference and config.dpo.reference == "cached":
        every = packed(items=items_of(samples, together=2))
        compute = functools.partial(_reference_values, config, origin, objective=objective, rows=every, mesh=mesh)
        columns[REFERENCE] = cached_reference(
            workdir / REFERENCE_FOLDER,
            identity=broadcast(_identity(config) if is_main_process() else None),  # hashes all weights
            samples=samples,
            compute=compute,
        )
    elif objective.has_reference:
        prepare = live_reference(_weights(config, mesh), objective=objective, mesh=mesh)
    trained, held_out = (dataclasses.replace(rows, columns=columns) for rows in (trained, held_out))

    # ---- what is trained on and scored ----
    def evaluations() -> list[Evaluation]:
        found = open_evaluations(config, model=origin.model, tokenizer=origin.tokenizer, mesh=mesh)
        if len(held_out.items):
            scores = preference_scores(
                held_out, objective=objective, prepare=prepare, mesh=mesh, batch_size=config.eval.batch_size
            )
            found.append(Evaluation(suite=SUITE, every=config.eval.every, scores=scores))
        return found + open_watched(config, origin, held_out, template=template, mesh=mesh)

    loader = packed_loader(config, trained, mesh=mesh)
    return Material(
        open_loader=functools.partial(as_context, loader),
        open_evaluations=evaluations,
        steps=steps_of(config, loader),
        num_sources=len(samples.sources),
        objective=functools.partial(_as_computed_in, objective=objective),
        prepare=prepare,
        watchers=[preference_watcher(config.dpo), answer_watcher()],
        beside_tokenizer=learned_conversation(template, tokenizer=origin.tokenizer, directory=origin.tokenizer_dir),
    )


def _as_computed_in(run: RunDescription, *, objective: Preference) -> Preference:
    """The objective for a run that is laid out or computed otherwise."""
    return dataclasses.replace(objective, model=run.model, options=run.options, num_chunks=run.loss_chunks)


def _weights(config: Settings, mesh: Mesh) -> Params:
    """The reference's own copy: the first step overwrites that of the run."""
    return load_model(Path(config.init.weights), mesh=mesh, param_dtype=config.param_dtype).params


def _reference_values(
    config: Settings, origin: Origin, *, objective: Preference, rows: PackedRows, mesh: Mesh
) -> np.ndarray:
    params = origin.params if origin.params is not None else _weights(config, mesh)
    micro_batch = config.data.batch_size // config.train.accumulation
    return reference_values(params, objective=objective, rows=rows, mesh=mesh, batch_size=micro_batch)


def _identity(config: Settings) -> dict[str, Any]:
    """What decides the reference's log-probabilities beside the samples."""
    record = inputs_of_settings(config)["init.weights"].record()
    return {
        "weights": {name: hash_ for name, (_, _, hash_) in record.items()},
        "compute": as_dict(config.compute),
        "param_dtype": config.param_dtype,
    }
