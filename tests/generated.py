"""Continuations of prompts, as most tests want them: ids in, ids out."""

from collections.abc import Sequence

from allam_jax.generation.engine import Engine
from allam_jax.generation.requests import Request, Sampling
from allam_jax.generation.settings import EngineSettings


def generate(
    params,
    *,
    config,
    options,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_id: int | None = None,
    mesh=None,
    slots: int = 4,
    burst: int = 4,
    packed: bool = False,
    **sampling,
) -> list[list[int]]:
    """The new ids of each prompt, without `eos_id`."""
    engine = Engine(
        params,
        config=config,
        options=options,
        settings=EngineSettings(slots=slots, burst=burst, packed=packed),
        eos_ids=() if eos_id is None else (eos_id,),
        mesh=mesh,
    )
    asked = Sampling(max_new_tokens=max_new_tokens, **({"temperature": 0.0} | sampling))
    requests = [Request(str(number), tuple(prompt), asked) for number, prompt in enumerate(prompts)]
    return [list(completion.ids) for completion in engine.complete(requests)]
