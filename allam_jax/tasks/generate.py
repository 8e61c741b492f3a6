"""Task `generate`: continues prompts, or answers messages, with a model or an endpoint."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from allam_jax import files
from allam_jax.errors import UserError
from allam_jax.generation.over_rows import STATE_FILE, Backend, over_rows
from allam_jax.generation.requests import sampling_of
from allam_jax.generation.rows import Prompt, PromptRows
from allam_jax.parallel.distributed import broadcast, is_main_process
from allam_jax.settings import Settings
from allam_jax.tasks.answering import content_of, open_answerer
from allam_jax.tasks.inputs_of_task import inputs_of_settings

CONTINUATIONS = "continuations.json"


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Answers `generate.prompts` (writes `continuations.json`), or every row of `generate.input` (writes shards)."""
    options = config.generate
    if options.prompts and options.input:
        raise UserError("config.generate.input and config.generate.prompts: give one of them; prompts=() for none")
    if not options.prompts and not options.input:
        raise UserError('config.generate.prompts: give some, for example ("The Prophet said",), or generate.input')
    other = workdir / (CONTINUATIONS if options.input else STATE_FILE)
    if other.exists():
        given = "prompts" if options.input else "input"
        raise UserError(f"--workdir {workdir}: holds the answers to another run's generate.{given}; give another one")
    if options.input:
        return _over_input(config, workdir)
    prompts = [_asked(Prompt(number, text), as_chat=options.as_chat) for number, text in enumerate(options.prompts)]
    continuations = []
    for text, answer in zip(options.prompts, backend_of(config, prompts).answers(prompts), strict=True):
        if answer.error:
            raise UserError(f"prompt {text[:40]!r}: {answer.error}")
        texts = [choice.text for choice in answer.choices]
        continuations.append({"prompt": text, "continuation": texts[0]} | ({"samples": texts} if texts[1:] else {}))
    result = {"continuations": continuations}
    if is_main_process():
        files.write_json(workdir / CONTINUATIONS, result)
    return result


def _over_input(config: Settings, workdir: Path) -> dict[str, Any]:
    options = config.generate
    rows = PromptRows(options.input, split=options.split, field=options.field, keep=options.keep)
    read = inputs_of_settings(config)["generate.input"]
    asked = {"field": options.field, "keep": list(options.keep), "as_chat": options.as_chat, "split": options.split}
    total = broadcast(len(rows) if is_main_process() else 0)
    if not total:
        raise UserError(f"config.generate.input: {options.input}: holds no rows")
    return over_rows(
        map(functools.partial(_asked, as_chat=options.as_chat), rows),
        total=total,
        backend=backend_of(config, ()),
        directory=workdir,
        identity={"input": content_of(read), "rows": asked},
        shard_rows=options.shard_rows,
        max_error_share=options.max_error_share,
        writes=is_main_process(),
        agree=broadcast,
    )


def _asked(prompt: Prompt, *, as_chat: bool) -> Prompt:
    """The prompt, as the message of a user where the config says so."""
    if not as_chat or prompt.problem or not isinstance(prompt.asked, str):
        return prompt
    return dataclasses.replace(prompt, asked=[{"role": "user", "content": prompt.asked}])


def backend_of(config: Settings, prompts: Sequence[Prompt]) -> Backend:
    """What answers. For the cache, `prompts` are all that will come; empty if that is not known."""
    options = config.generate
    sampling = sampling_of(options, seed=config.seed, samples=options.samples, logprobs=0 if options.logprobs else None)
    return open_answerer(config, section="generate", prompts=prompts).backend(sampling)
