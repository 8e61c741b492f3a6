"""The seed of an alignment worker: documents for annotation, and the annotated pairs that it is trained on.

    python run.py --config configs/seed.py --config.seed_pool.inputs.web=runs/corpus/web --workdir runs/seed
    python run.py --config configs/seed.py:pairs --config.seed_pairs.input=runs/review/clean.jsonl --workdir runs/pairs

Between them an expert model rewrites the documents (configs/rewrite.py) and people review what it wrote
(configs/review.py); docs/native_alignment.md has all commands.
"""

from ml_collections import ConfigDict

from allam_jax.errors import UserError
from configs import base
from configs.rewrite import INSTRUCTIONS


def get_config(kind: str = "pool") -> ConfigDict:
    """Needs seed_pool.inputs, or seed_pairs.input."""
    if kind == "pool":
        return base.get_config("seed")
    if kind != "pairs":
        raise UserError(f"--config configs/seed.py:{kind}: expected pool or pairs")
    config = base.get_config("seed_pairs")
    config.seed_pairs.instruction = str(INSTRUCTIONS / "rewrite.toml")
    return config
