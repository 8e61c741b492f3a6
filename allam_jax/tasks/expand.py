"""Task `expand`: gives a model the vocabulary of a larger tokenizer, and reports what that changed at step 0."""

import itertools
from pathlib import Path
from typing import Any

from absl import logging

from allam_jax import files
from allam_jax.config import require
from allam_jax.data.aligned_rows import aligned_rows
from allam_jax.errors import UserError
from allam_jax.evaluation.step0 import step0_report
from allam_jax.model.expansion import expand
from allam_jax.model.settings import DISTILLATION
from allam_jax.settings import Settings
from allam_jax.tasks.setup import open_held_out, open_mesh
from allam_jax.tasks.texts import read_texts
from allam_jax.tokenizer.provenance import expansion_plan
from allam_jax.tokenizer.tokenizer import Tokenizer
from allam_jax.training.load import load_model
from allam_jax.training.token_distillation import distill_tokens
from allam_jax.weights.directory import save_weights

WEIGHTS_FOLDER = "weights"


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Expands the model at `init.weights` to `config.tokenizer`; writes `weights/` and `step0.json`."""
    mesh = open_mesh(config)
    path = Path(require(config.init.weights, key="init.weights", hint="give the path of the base model"))
    loaded = load_model(path, mesh=mesh)
    if loaded.tokenizer_dir is None:
        raise UserError(f"{path}: no tokenizer beside the weights; the base's own is needed to expand them")
    base = Tokenizer.load(loaded.tokenizer_dir)
    merged_dir = Path(require(config.tokenizer, key="tokenizer", hint="give the merged tokenizer's directory"))
    merged = Tokenizer.load(merged_dir)
    plan = expansion_plan(base, merged)
    params, model = expand(
        loaded.params,
        config=loaded.config,
        plan=plan,
        settings=config.expand,
        seed=config.seed,
    )
    if config.expand.method == DISTILLATION:
        settings = config.expand.distillation
        texts = read_texts(settings.sources, key="expand.distillation.sources")
        params = distill_tokens(
            base=(loaded.params, loaded.config),
            expanded=(params, model),
            plan=plan,
            rows=aligned_rows(
                base,
                merged,
                itertools.chain.from_iterable(texts.values()),
                seq_len=settings.seq_len,
                most=settings.steps * settings.batch_size,
            ),
            settings=settings,
            options=config.compute,
            seed=config.seed,
        )
    save_weights(
        workdir / WEIGHTS_FOLDER,
        params=params,
        config=model,
        tokenizer_dir=merged_dir,
        metadata={"parent": str(path), "method": config.expand.method, "tokenizer": merged.fingerprint},
    )
    counts = {"kept": len(plan.kept), "new": len(plan.new), "special": len(plan.special)}
    logging.info("expanded %d to %d tokens: %s", loaded.config.vocab_size, model.vocab_size, counts)
    report = step0_report(
        base=(loaded.params, loaded.config),
        expanded=(params, model),
        plan=plan,
        base_rows=open_held_out(config, tokenizer=base, seq_len=model.max_position),
        expanded_rows=open_held_out(config, tokenizer=merged, seq_len=model.max_position),
        options=config.compute,
        mesh=mesh,
        batch_size=config.eval.batch_size,
        num_chunks=config.eval.loss_chunks,
    )
    files.write_json(workdir / "step0.json", report)
    return {"vocab_size": model.vocab_size, **counts, "step0": report}
