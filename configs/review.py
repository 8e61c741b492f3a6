"""A page on which people accept, edit or reject, at http://127.0.0.1:8002; cleaned data in the workdir when it ends.

    pip install -r requirements-serve.txt
    python run.py --config configs/review.py --config.review.input=runs/expert/aligned.jsonl.gz --workdir runs/review
    python run.py --config configs/review.py:chats --config.review.input=FILES --workdir runs/review

The first is for rewrites, the second for conversations and pairs (docs/native_alignment.md, docs/alignment.md).
"""

from ml_collections import ConfigDict

from allam_jax import recipe_inputs
from allam_jax.settings import Section, setting
from configs import base
from configs.rewrite import INSTRUCTIONS


class Inputs(Section):
    """What counts beside the decisions of this workdir."""

    decisions: str = setting("", "decisions.jsonl of other workdirs, separated by commas")


INPUTS = {"rewrite": Inputs(), "chats": Inputs()}


def get_config(arg: str = "rewrite") -> ConfigDict:
    """Needs review.input."""
    kind, given = recipe_inputs.read(INPUTS, arg)
    config = base.get_config("review")
    config.review.guidelines = str(INSTRUCTIONS / f"{kind}.toml")
    for number, path in enumerate(filter(None, given.decisions.split(","))):
        config.review.decisions[f"other_{number}"] = path
    return config
