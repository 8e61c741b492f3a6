"""A page on which people accept, edit or reject, at http://127.0.0.1:8002; cleaned data in the workdir when it ends.

    pip install -r requirements-serve.txt
    python run.py --config configs/review.py --config.review.input=runs/expert/aligned.jsonl.gz --workdir runs/review
    python run.py --config configs/review.py:chats --config.review.input=FILES --workdir runs/review

The first is for rewrites, the second for conversations and pairs (docs/native_alignment.md, docs/alignment.md).
"""

from ml_collections import ConfigDict

from allam_jax.errors import UserError
from configs import base
from configs.rewrite import INSTRUCTIONS


def get_config(kind: str = "rewrite") -> ConfigDict:
    """Needs review.input."""
    if kind not in ("rewrite", "chats"):
        raise UserError(f"--config configs/review.py:{kind}: expected chats, or no argument")
    config = base.get_config("review")
    config.review.guidelines = str(INSTRUCTIONS / f"{kind}.toml")
    return config
