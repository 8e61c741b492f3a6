"""Task `evaluate`: bits per byte of held-out text by language."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from allam_jax import files
from allam_jax.config import require
from allam_jax.tasks.setup import held_out_scorer, open_mesh, open_model


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Evaluates the model at `init.weights` on every one of `eval.sources`; writes `evaluation.json`."""
    require(config.eval.sources, key="eval.sources", hint="name at least one held-out dataset")
    mesh = open_mesh(config)
    loaded, tokenizer, _ = open_model(config, mesh=mesh)
    result = held_out_scorer(config, model=loaded.config, tokenizer=tokenizer, mesh=mesh)(loaded.params)
    files.write_json(workdir / "evaluation.json", result)
    return result
