"""Task `evaluate`: bits per byte of held-out text by language."""

from pathlib import Path
from typing import Any

from allam_jax import files
from allam_jax.config import require
from allam_jax.evaluation.bits_per_byte import make_evaluator
from allam_jax.settings import Settings
from allam_jax.tasks.setup import open_held_out, open_mesh, open_model


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Evaluates the model at `init.weights` on every one of `eval.sources`; writes `evaluation.json`."""
    require(config.eval.sources, key="eval.sources", hint="name at least one held-out dataset")
    mesh = open_mesh(config)
    loaded, tokenizer, _ = open_model(config, mesh=mesh)
    evaluate = make_evaluator(
        config=loaded.config,
        options=config.compute,
        mesh=mesh,
        batch_size=config.eval.batch_size,
        num_chunks=config.eval.loss_chunks,
    )
    held_out = open_held_out(config, tokenizer=tokenizer, seq_len=loaded.config.max_position)
    result = {name: evaluate(loaded.params, rows) for name, rows in held_out.items()}
    files.write_json(workdir / "evaluation.json", result)
    return result
