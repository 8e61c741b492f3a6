"""Task `seed_pairs`: annotated pairs -> the conversations that an alignment worker is trained on by task `sft`.

WORKDIR/training.jsonl    the chosen pairs as conversations, each with its provenance
WORKDIR/seed_pairs.json   how many there were and were chosen, and their perplexities
"""

from pathlib import Path
from typing import Any

import numpy as np

from allam_jax.config import require
from allam_jax.files import json_text, write_json, write_text
from allam_jax.parallel.distributed import is_main_process
from allam_jax.rewriting.instructions import read_instruction
from allam_jax.rewriting.seed_pairs import PERPLEXITY, SeedPair, chosen, read_seed_pairs
from allam_jax.rewriting.settings import RANDOM
from allam_jax.settings import Settings
from allam_jax.tasks.setup import scores_of_texts

TRAINING = "training.jsonl"
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Chooses among the pairs of `seed_pairs.input`; returns counts, and quantiles of perplexities if they decided."""
    options = config.seed_pairs
    pairs = read_seed_pairs(require(options.input, key="seed_pairs.input", hint="give annotated pairs"))
    path = require(
        options.instruction, key="seed_pairs.instruction", hint="give a file, such as configs/instructions/rewrite.toml"
    )
    instruction = read_instruction(path)
    values = _perplexities(config, pairs) if options.choice != RANDOM else []
    taken = chosen(pairs, values, choice=options.choice, most=options.pairs, seed=config.seed)
    result: dict[str, Any] = {"pairs": len(pairs), "chosen": len(taken)}
    if values:
        result[PERPLEXITY] = {
            "all": _quantiles(values),
            "chosen": _quantiles([values[number] for number in taken]),
        }
    if is_main_process():
        lines = []
        for number in taken:
            conversation = pairs[number].conversation(instruction)
            if values:
                conversation["provenance"][PERPLEXITY] = values[number]
            lines.append(json_text(conversation) + "\n")
        write_text(workdir / TRAINING, "".join(lines))
        write_json(workdir / "seed_pairs.json", result)
    return result


def _perplexities(config: Settings, pairs: list[SeedPair]) -> list[float]:
    """Of the rewrites, by the model at `init.weights`."""
    return [score.perplexity for score in scores_of_texts(config, [pair.rewrite for pair in pairs])]


def _quantiles(values: list[float]) -> list[float]:
    return [float(value) for value in np.quantile(values, _QUANTILES)]
