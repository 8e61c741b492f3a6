"""Task `generate`: continues prompts with a model."""

from pathlib import Path
from typing import Any

from allam_jax import files
from allam_jax.config import require
from allam_jax.generation.engine import Engine, with_capacity
from allam_jax.generation.requests import LARGEST_SEED, Request, Sampling
from allam_jax.settings import Settings
from allam_jax.tasks.setup import open_mesh, open_model


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Continues `config.generate.prompts` with the model at `init.weights`; writes `continuations.json`."""
    options = config.generate
    prompts = list(require(options.prompts, key="generate.prompts", hint='for example ("The Prophet said",)'))
    mesh = open_mesh(config)
    loaded, tokenizer, _ = open_model(config, mesh=mesh)
    prompt_ids = tokenizer.encode_batch(prompts, bos=tokenizer.bos_id is not None)
    longest = max(map(len, prompt_ids)) + options.max_new_tokens
    engine = Engine(
        loaded.params,
        config=loaded.config,
        options=config.compute,
        settings=with_capacity(config.engine, longest, context=loaded.config.max_position),
        tokenizer=tokenizer,
        eos_ids=() if tokenizer.eos_id is None else (tokenizer.eos_id,),
        mesh=mesh,
    )
    requests = [
        Request(
            f"{number}",
            tuple(ids),
            Sampling(
                max_new_tokens=options.max_new_tokens,
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                seed=(config.seed + number) % (LARGEST_SEED + 1),  # equal prompts get different samples
            ),
        )
        for number, ids in enumerate(prompt_ids, start=1)
    ]
    completions = engine.complete(requests)
    result = {
        "continuations": [
            {"prompt": prompt, "continuation": completion.text}
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
    }
    files.write_json(workdir / "continuations.json", result)
    return result
