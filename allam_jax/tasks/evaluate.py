"""Task `evaluate`: bits per byte of held-out text by language."""

from pathlib import Path
from typing import Any

from allam_jax import files
from allam_jax.config import require
from allam_jax.settings import Settings
from allam_jax.tasks.setup import held_out_scorer, open_mesh, open_model


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Evaluates the model at `init.weights` on every one of `eval.sources`; writes `evaluation.json`."""
    require(config.eval.sources, key="eval.sources", hint="name at least one held-out dataset")
    mesh = open_mesh(config)
    loaded, tokenizer, _ = open_model(config, mesh=mesh)
    seq_len = loaded.config.max_position
    score = held_out_scorer(config, model=loaded.config, tokenizer=tokenizer, mesh=mesh, seq_len=seq_len)
    result = score(loaded.params)
    files.write_json(workdir / "evaluation.json", result)
    return result
