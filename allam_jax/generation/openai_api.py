"""OpenAI's API as plain values: bodies of requests -> `Asked`. What is answered: `openai_answers.py`.

A key that is neither served nor known to change nothing (`user`, `store`) is refused, and null counts as absent. Beside
OpenAI's keys, `top_k`, `min_p`, `repetition_penalty`, `min_tokens`, `stop_token_ids` and `chat_template_kwargs` have
the meaning that other open servers give them.
"""

import dataclasses
import re
import secrets
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from allam_jax.errors import UserError, nearest
from allam_jax.generation.requests import LARGEST_SEED, Sampling
from allam_jax.tokenizer.chat_template import ChatTemplate, Message, with_text_content
from allam_jax.tokenizer.tokenizer import Tokenizer

_SERVED = {"model", "prompt", "messages", "stream", "stream_options", "n", "best_of", "max_tokens", "min_tokens"}
_SERVED |= {"max_completion_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop"}
_SERVED |= {"presence_penalty", "frequency_penalty", "stop_token_ids", "logprobs", "top_logprobs", "echo"}
_SERVED |= {"response_format", "chat_template_kwargs"}
_CHANGE_NOTHING = {"user", "metadata", "store", "service_tier", "safety_identifier", "parallel_tool_calls"}
_CHANGE_NOTHING |= {"prompt_cache_key", "prompt_cache_retention"}
# Values of other keys that ask for what is done anyway.
_NOTHING: tuple[Any, ...] = (None, [], {}, "")
_DONE_ANYWAY = {"tool_choice": ("none", "auto"), "modalities": (["text"],), "add_generation_prompt": (True,)}
_DONE_ANYWAY |= {"continue_final_message": (False,), "ignore_eos": (False,), "skip_special_tokens": (True,)}
_MOST_STOPS = 64
_LONGEST_KEY = 60  # characters that are shown
# Fields of Sampling that have another name in the API.
_KEYS = {"min_new_tokens": "min_tokens", "samples": "n", "stop_texts": "stop", "stop_ids": "stop_token_ids"}


class BadRequest(Exception):
    """A body that cannot be served. `param` is the key."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.param, self.status, self.code = param, status, code

    def body(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclasses.dataclass(frozen=True)
class Model:
    """What is served: its name, its tokenizer, its template if it has one, and the limits of a request."""

    name: str
    tokenizer: Tokenizer
    template: ChatTemplate | None
    context: int  # tokens of prompt and answer
    max_new_tokens: int
    max_samples: int  # answers to all prompts of a request
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))


@dataclasses.dataclass(frozen=True)
class Asked:
    """A checked request."""

    id: str
    chat: bool
    prompts: Sequence[tuple[int, ...]]
    texts: Sequence[str]  # of the prompts, where they are echoed
    sampling: Sampling
    stream: bool
    stream_usage: bool


def read_request(body: Any, *, chat: bool, model: Model) -> Asked:
    """Checks the body of a request to `/v1/completions` or, for `chat`, to `/v1/chat/completions`; BadRequest."""
    if not isinstance(body, dict):
        raise BadRequest("expected a JSON object")
    fields = _Fields(body)
    if fields.text("model", model.name) != model.name:
        raise BadRequest(f"no model {body['model']!r} here; {model.name!r} is served", param="model", status=404)
    for key in body.keys() - _SERVED - _CHANGE_NOTHING:
        if body[key] not in (*_NOTHING, *_DONE_ANYWAY.get(key, ())):
            named = " ".join(key.split())[:_LONGEST_KEY]
            raise BadRequest(f"{named} is not served here; {nearest(named, sorted(_SERVED))}", param=named)
    if fields.object("response_format").get("type", "text") != "text":
        raise BadRequest("only response_format text is served here", param="response_format")
    samples = fields.whole("n", 1)
    if fields.whole("best_of", samples) != samples:
        raise BadRequest("only best_of = n is served here", param="best_of")
    prompts, texts = _chat_prompt(fields, model=model) if chat else _prompts(fields, model=model)
    if samples * len(prompts) > model.max_samples:
        raise BadRequest(
            f"n = {samples} for each of {len(prompts)} prompts: at most {model.max_samples} answers here", param="n"
        )
    sampling = _sampling(fields, chat=chat, samples=samples, longest=max(map(len, prompts)), model=model)
    return Asked(
        id=f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
        chat=chat,
        prompts=prompts,
        texts=texts,
        sampling=sampling,
        stream=fields.flag("stream"),
        stream_usage=bool(fields.object("stream_options").get("include_usage")),
    )


def _sampling(fields: "_Fields", *, chat: bool, samples: int, longest: int, model: Model) -> Sampling:
    room = model.context - longest
    if room < 0 or (room == 0 and chat):
        raise BadRequest(
            f"the prompt has {longest:,} tokens, and prompt and answer together at most {model.context:,}",
            param="messages" if chat else "prompt",
            code="context_length_exceeded",
        )
    default = min(room, model.max_new_tokens) if chat else min(16, room)
    key = "max_tokens" if fields.body.get("max_tokens") is not None else "max_completion_tokens"
    asked = fields.whole(key, default)
    if asked > room:
        raise BadRequest(
            f"{key} = {asked:,} and the prompt of {longest:,} tokens exceed the context of {model.context:,}",
            param=key,
            code="context_length_exceeded",
        )
    if asked > model.max_new_tokens:
        raise BadRequest(f"{key} = {asked:,}: at most {model.max_new_tokens:,} here", param=key)
    if chat:
        top = fields.whole("top_logprobs", 0)
        logprobs = top if fields.flag("logprobs") else None
    else:
        logprobs = fields.whole("logprobs", None)
    try:
        return Sampling(
            max_new_tokens=asked,
            min_new_tokens=fields.whole("min_tokens", 0),
            temperature=fields.number("temperature", 1.0),
            top_k=max(0, fields.whole("top_k", 0)),  # -1 also means all
            top_p=fields.number("top_p", 1.0),
            min_p=fields.number("min_p", 0.0),
            repetition_penalty=fields.number("repetition_penalty", 1.0),
            presence_penalty=fields.number("presence_penalty", 0.0),
            frequency_penalty=fields.number("frequency_penalty", 0.0),
            seed=fields.whole("seed", secrets.randbits(32)) % (LARGEST_SEED + 1),
            samples=samples,
            stop_ids=tuple(fields.ids("stop_token_ids")),
            stop_texts=fields.texts("stop"),
            logprobs=logprobs,
            echo=not chat and fields.flag("echo"),
        )
    except UserError as error:
        keys = _KEYS | {"max_new_tokens": key if key in fields.body else "max_tokens"}
        keys |= {"logprobs": "top_logprobs"} if chat else {}
        said = re.sub(r"\w+", lambda word: keys.get(word[0], word[0]), str(error))
        raise BadRequest(said, param=said.partition(" ")[0]) from None


def _prompts(fields: "_Fields", *, model: Model) -> tuple[list[tuple[int, ...]], list[str]]:
    given = fields.body.get("prompt")
    if isinstance(given, str) or (isinstance(given, list) and given and not isinstance(given[0], str | list)):
        given = [given]
    if not isinstance(given, list) or not given:
        raise BadRequest("prompt: expected a text, a list of texts, ids, or a list of lists of ids", param="prompt")
    if len(given) > model.max_samples:
        raise BadRequest(f"{len(given)} prompts: at most {model.max_samples}", param="prompt")
    tokenizer = model.tokenizer
    prompts, texts = [], []
    for one in given:
        if isinstance(one, str):
            ids = tokenizer.encode(one, bos=tokenizer.bos_id is not None)
            texts.append(one)
        else:
            ids = _ids(one, vocab_size=tokenizer.vocab_size, param="prompt")
            texts.append(tokenizer.decode(ids, skip_special=True))
        if not ids:
            raise BadRequest("prompt: no tokens", param="prompt")
        prompts.append(tuple(ids))
    return prompts, texts


def _chat_prompt(fields: "_Fields", *, model: Model) -> tuple[list[tuple[int, ...]], list[str]]:
    if model.template is None:
        raise BadRequest(f"{model.name} has no chat template; use /v1/completions, or set serve.template")
    messages = fields.body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages: expected a list with at least one message", param="messages")
    messages = [_message(message, number) for number, message in enumerate(messages)]
    variables = fields.object("chat_template_kwargs")
    try:
        ids = model.template.prompt_ids(messages, variables=variables)
    except UserError as error:
        said = str(error).replace(f"{model.template.name}: ", "the chat template ", 1)  # not where it lies here
        unknown = variables.keys() - model.template.variables
        raise BadRequest(said, param="chat_template_kwargs" if unknown else "messages") from None
    return [tuple(ids)], [""]


def _message(message: Any, number: int) -> Message:
    """A message whose content is one text."""
    where = f"messages[{number}]"
    if not isinstance(message, dict):
        raise BadRequest(f"{where}: expected an object with role and content", param="messages")
    try:
        message = with_text_content(message)
    except UserError as error:
        raise BadRequest(f"{where}: {error}", param="messages") from None
    if not isinstance(message.get("content"), str):
        raise BadRequest(f"{where}: expected a text as content", param="messages")
    return message


def _ids(value: Any, *, vocab_size: int, param: str) -> list[int]:
    if not isinstance(value, list) or not all(type(one) is int for one in value):
        raise BadRequest(f"{param}: expected whole numbers", param=param)
    if value and not 0 <= min(value) <= max(value) < vocab_size:
        raise BadRequest(f"{param}: ids from {min(value)} to {max(value)}, but there are {vocab_size}", param=param)
    return value


class _Fields:
    """Values of a body with their types checked; null counts as absent."""

    def __init__(self, body: Mapping[str, Any]):
        self.body = body

    def whole(self, key: str, default: Any) -> Any:
        """A whole number."""
        value = self.body.get(key)
        if value is None:
            return default
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or abs(value) >= 1 << 63:
            raise BadRequest(f"{key} = {value!r:.40}: expected a whole number", param=key)
        return value

    def number(self, key: str, default: float) -> float:
        """A number."""
        value = self.body.get(key)
        if value is None:
            return default
        if type(value) not in (int, float) or abs(value) > 1e30:
            raise BadRequest(f"{key} = {value!r:.40}: expected a number", param=key)
        return float(value)

    def flag(self, key: str) -> bool:
        """A truth value."""
        value = self.body.get(key)
        if not isinstance(value, bool | None):
            raise BadRequest(f"{key} = {value!r:.40}: expected true or false", param=key)
        return bool(value)

    def text(self, key: str, default: str) -> str:
        """A text."""
        value = self.body.get(key)
        if not isinstance(value, str | None):
            raise BadRequest(f"{key} = {value!r:.40}: expected a text", param=key)
        return default if value is None else value

    def object(self, key: str) -> Mapping[str, Any]:
        """An object."""
        value = self.body.get(key)
        if not isinstance(value, dict | None):
            raise BadRequest(f"{key} = {value!r:.40}: expected an object", param=key)
        return value or {}

    def texts(self, key: str) -> tuple[str, ...]:
        """A text or a list of texts."""
        value = self.body.get(key)
        found = [value] if isinstance(value, str) else value or []
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found) or len(found) > _MOST_STOPS:
            raise BadRequest(f"{key}: expected a text or up to {_MOST_STOPS} texts", param=key)
        return tuple(one for one in found if one)

    def ids(self, key: str) -> list[int]:
        """A list of ids."""
        return _ids(self.body.get(key) or [], vocab_size=1 << 31, param=key)
