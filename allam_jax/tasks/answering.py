"""What answers the prompts of a task: the model at `init.weights`, or the endpoint that its section names."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from allam_jax.checksums import hash_json
from allam_jax.errors import UserError
from allam_jax.generation.endpoint import EndpointBackend
from allam_jax.generation.engine import with_capacity
from allam_jax.generation.engine_backend import EngineBackend
from allam_jax.generation.over_rows import Backend
from allam_jax.generation.requests import Sampling
from allam_jax.generation.rows import Prompt
from allam_jax.inputs import InputFiles
from allam_jax.settings import Settings, as_dict
from allam_jax.tasks.inputs_of_task import inputs_of_settings
from allam_jax.tasks.setup import open_text_model
from allam_jax.tokenizer.chat_template import ChatTemplate, with_text_content
from allam_jax.tokenizer.ready_templates import READY
from allam_jax.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Answerer:
    """What answers with one model.

    Attributes:
        backend: a way of sampling -> what answers so.
        tokenizer: None for an endpoint.
        encode: the ids of a prompt; None for an endpoint.
        capacity: tokens of a prompt with its answer; 0 for an endpoint.
    """

    backend: Callable[[Sampling], Backend]
    tokenizer: Tokenizer | None = None
    encode: Callable[[Prompt], list[int]] | None = None
    capacity: int = 0


def open_answerer(
    config: Settings, *, section: str, prompts: Sequence[Prompt] = (), messages: bool = False
) -> Answerer:
    """Opens the model, or names the server, that `config.SECTION` asks for.

    Args:
        config: of a task that reads a model and an engine.
        section: has `template`, `endpoint` and `max_new_tokens`.
        prompts: all that will come, for the size of the cache; empty if that is not known.
        messages: prompts will be messages, for which the model needs a chat template.

    Raises:
        UserError: what is asked for is not there, or has no template.
    """
    options = getattr(config, section)
    if options.endpoint.url:
        if options.template:
            raise UserError(f"config.{section}.template: the endpoint has a template of its own; leave it empty")
        return Answerer(lambda at: EndpointBackend(options.endpoint, sampling=at, section=section))
    model = open_text_model(config, template=options.template)
    if messages and model.template is None:
        raise UserError(f"config.{section}.template: the tokenizer has none; set it to {', '.join(READY)} or a file")
    encode = functools.partial(_encode, tokenizer=model.tokenizer, template=model.template, section=section)
    settings = config.engine
    if prompts:
        longest = max(len(encode(prompt)) for prompt in prompts) + options.max_new_tokens
        settings = with_capacity(settings, longest, context=model.weights.config.max_position)
    identity = {
        "weights": content_of(inputs_of_settings(config)["init.weights"]),
        "tokenizer": model.tokenizer.fingerprint,
        "template": model.template and hash_json(model.template.source),
        "compute": as_dict(config.compute),
    }
    engine = model.engine(settings)
    return Answerer(
        lambda at: EngineBackend(engine, encode=encode, sampling=at, identity=identity),
        tokenizer=model.tokenizer,
        encode=encode,
        capacity=engine.capacity,
    )


def content_of(found: InputFiles) -> str:
    """A hash of the content of files and of their names."""
    return hash_json({name: hash_ for name, (_, _, hash_) in found.record().items()})


def _encode(prompt: Prompt, *, tokenizer: Tokenizer, template: ChatTemplate | None, section: str) -> list[int]:
    if isinstance(prompt.asked, str):
        return tokenizer.encode(prompt.asked, bos=tokenizer.bos_id is not None)
    if template is None:
        raise UserError(
            f"messages, but the tokenizer has no chat template: set {section}.template to {', '.join(READY)} or a file"
        )
    return template.prompt_ids([with_text_content(message) for message in prompt.asked])
