"""Task `generate`: continues prompts with a model."""

from pathlib import Path
from typing import Any

from allam_jax import files
from allam_jax.config import require
from allam_jax.generation.decode import generate
from allam_jax.settings import Settings
from allam_jax.tasks.setup import open_mesh, open_model


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Continues `config.generate.prompts` with the model at `init.weights`; writes `continuations.json`."""
    options = config.generate
    prompts = list(require(options.prompts, key="generate.prompts", hint='for example ("The Prophet said",)'))
    mesh = open_mesh(config)
    loaded, tokenizer, _ = open_model(config, mesh=mesh)
    continuations = generate(
        loaded.params,
        config=loaded.config,
        options=config.compute,
        prompts=tokenizer.encode_batch(prompts, bos=tokenizer.bos_id is not None),
        settings=options,
        eos_id=tokenizer.eos_id,
        seed=config.seed,
        mesh=mesh,
    )
    result = {
        "continuations": [
            {"prompt": prompt, "continuation": tokenizer.decode(ids, skip_special=True)}
            for prompt, ids in zip(prompts, continuations, strict=True)
        ]
    }
    files.write_json(workdir / "continuations.json", result)
    return result
