"""Task `generate`: continues prompts with a model."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from allam_jax import files
from allam_jax.config import require
from allam_jax.generation.decode import generate
from allam_jax.settings import Settings
from allam_jax.tasks.setup import open_mesh, open_model
from allam_jax.tokenizer.tokenizer import Tokenizer


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Continues `config.generate.prompts` with the model at `init.weights`; writes `continuations.json`."""
    options = config.generate
    prompts = list(require(options.prompts, key="generate.prompts", hint='for example ("The Prophet said",)'))
    mesh = open_mesh(config)
    loaded, tokenizer, _ = open_model(config, mesh=mesh)
    prompt_ids = tokenizer.encode_batch(prompts, bos=tokenizer.bos_id is not None)
    continuations = generate(
        loaded.params,
        config=loaded.config,
        options=config.compute,
        prompts=prompt_ids,
        settings=options,
        eos_id=tokenizer.eos_id,
        seed=config.seed,
        mesh=mesh,
    )
    result = {
        "continuations": [
            {"prompt": prompt, "continuation": continuation_of(tokenizer, before, ids)}
            for prompt, before, ids in zip(prompts, prompt_ids, continuations, strict=True)
        ]
    }
    files.write_json(workdir / "continuations.json", result)
    return result


def continuation_of(tokenizer: Tokenizer, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
    """The text that the ids add to the prompt. Decoded alone, they would lose a space in front."""
    before, whole = (tokenizer.decode(some, skip_special=True) for some in (prompt_ids, [*prompt_ids, *ids]))
    return whole[len(os.path.commonprefix([before, whole])) :]
