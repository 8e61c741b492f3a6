"""OpenAI's API as plain values: bodies of requests -> `Asked`, deltas of the engine -> bodies of answers.

A key that is neither served nor known to change nothing (`user`, `store`) is refused, and null counts as absent. Beside
OpenAI's keys, `top_k`, `min_p`, `repetition_penalty`, `min_tokens`, `stop_token_ids` and `chat_template_kwargs` have
the meaning that other open servers give them.
"""

import dataclasses
import re
import secrets
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from allam_jax.errors import UserError, nearest
from allam_jax.generation.requests import LARGEST_SEED, Delta, Sampling, TokenLogprob
from allam_jax.generation.streaming import Detokenizer
from allam_jax.tokenizer.chat_template import ChatTemplate
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


def _message(message: Any, number: int) -> dict[str, Any]:
    """A message whose content is one text."""
    where = f"messages[{number}]"
    if not isinstance(message, dict):
        raise BadRequest(f"{where}: expected an object with role and content", param="messages")
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        texts = [text for text in parts if isinstance(text, str)]
        if len(texts) != len(content):
            raise BadRequest(f"{where}: only parts of type text are served here", param="messages")
        content = "".join(texts)
    if not isinstance(content, str):
        raise BadRequest(f"{where}: expected a text as content", param="messages")
    return {**message, "content": content}


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


class Writer:
    """The bodies of the answers to one request."""

    def __init__(self, asked: Asked, *, model: Model):
        self._asked, self._model = asked, model
        self._head = {
            "id": asked.id,
            "object": "chat.completion" if asked.chat else "text_completion",
            "created": int(time.time()),
            "model": model.name,
        }
        self._offsets: dict[int, _Offsets] = {}  # of each choice
        self.completion_tokens = 0

    @property
    def usage(self) -> dict[str, int]:
        """Tokens so far; the prompt counts once however many answers it has."""
        prompt = sum(map(len, self._asked.prompts))
        tokens = {"prompt_tokens": prompt, "completion_tokens": self.completion_tokens}
        return tokens | {"total_tokens": prompt + self.completion_tokens}

    def whole(self, deltas: Mapping[int, Sequence[Delta]]) -> dict[str, Any]:
        """The body of an answer that is not streamed, from the deltas of each choice."""
        choices = []
        for index in sorted(deltas):
            parts = [self._choice(index, delta, first=number == 0) for number, delta in enumerate(deltas[index])]
            choices.append(self._joined(index, parts))
        return {**self._head, "choices": choices, "usage": self.usage}

    def opening(self) -> list[dict[str, Any]]:
        """The first chunks of a stream: whose turn it is."""
        if not self._asked.chat:
            return []
        count = len(self._asked.prompts) * self._asked.sampling.samples
        return [self._chunk([self._part(i, {"role": "assistant", "content": ""}, None, None)]) for i in range(count)]

    def chunk(self, index: int, delta: Delta, *, first: bool) -> dict[str, Any]:
        """One chunk of a stream."""
        return self._chunk([self._choice(index, delta, first=first)])

    def closing(self) -> list[dict[str, Any]]:
        """The last chunks of a stream."""
        return [{**self._chunk([]), "usage": self.usage}] if self._asked.stream_usage else []

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._asked.chat else "text_completion"
        usage = {"usage": None} if self._asked.stream_usage else {}
        return {**self._head, "object": kind, "choices": choices, **usage}

    def _choice(self, index: int, delta: Delta, *, first: bool) -> dict[str, Any]:
        self.completion_tokens += len(delta.ids)
        asked = self._asked
        if asked.chat:
            tokens = [self._token(one) for one in delta.logprobs]
            listed = {"content": tokens, "refusal": None} if asked.sampling.logprobs is not None else None
            return self._part(index, {"content": delta.text} if delta.text else {}, listed, delta.finish_reason)
        echoed = first and asked.sampling.echo
        number = index // asked.sampling.samples
        text = (asked.texts[number] if echoed else "") + delta.text
        shown: list[tuple[int, TokenLogprob | None]] = [(one.token_id, one) for one in delta.logprobs]
        if echoed:
            shown = [*zip(asked.prompts[number], delta.prompt_logprobs, strict=True), *shown]
        logprobs = self._legacy_logprobs(index, shown) if asked.sampling.logprobs is not None else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": _reason(delta.finish_reason)}

    def _part(self, index: int, delta: dict[str, str], logprobs: Any, reason: str | None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": _reason(reason)}

    def _joined(self, index: int, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One choice from its parts."""
        last, logprobs = parts[-1], parts[-1]["logprobs"]
        if logprobs is not None:
            keys = [key for key, value in logprobs.items() if isinstance(value, list)]
            logprobs |= {key: [one for part in parts for one in part["logprobs"][key]] for key in keys}
        choice = {"index": index, "logprobs": logprobs, "finish_reason": last["finish_reason"]}
        if not self._asked.chat:
            text = "".join(part["text"] for part in parts)
            if logprobs is not None:  # tokens of a stop text lie behind the text's end
                logprobs["text_offset"] = [min(at, len(text)) for at in logprobs["text_offset"]]
            return choice | {"text": text}
        content = "".join(part["delta"].get("content", "") for part in parts)
        return choice | {"message": {"role": "assistant", "content": content, "refusal": None}}

    def _token(self, one: TokenLogprob) -> dict[str, Any]:
        top = [self._named(index, logprob) for index, logprob in one.top]
        return {**self._named(one.token_id, one.logprob), "top_logprobs": top}

    def _named(self, index: int, logprob: float) -> dict[str, Any]:
        content = self._bytes(index)
        return {"token": _shown(content), "logprob": logprob, "bytes": list(content)}

    def _bytes(self, index: int) -> bytes:
        """Of a token. A model may have more rows than its tokenizer has ids; those stand for no text."""
        tokenizer = self._model.tokenizer
        return tokenizer.token_bytes(index) if index < tokenizer.vocab_size else b""

    def _legacy_logprobs(self, index: int, shown: Sequence[tuple[int, TokenLogprob | None]]) -> dict[str, list[Any]]:
        string: Callable[[int], str] = lambda token: _shown(self._bytes(token))  # noqa: E731
        if index not in self._offsets:
            number = index // self._asked.sampling.samples
            echoed = self._asked.texts[number] if self._asked.sampling.echo else None
            self._offsets[index] = _Offsets(self._model.tokenizer, self._asked.prompts[number], echoed=echoed)
        tokens = [string(token) for token, _ in shown]
        places = [self._offsets[index].of_next(*one) for one in zip((i for i, _ in shown), tokens, strict=True)]
        return {
            "tokens": tokens,
            "token_logprobs": [one and one.logprob for _, one in shown],
            # Of two ids with the same string the likelier one stays.
            "top_logprobs": [one and {string(i): value for i, value in reversed(one.top)} for _, one in shown],
            "text_offset": places,
        }


class _Offsets:
    """Where in the text of a choice its tokens begin: behind the characters that the tokens before make up."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], *, echoed: str | None):
        self._tokenizer, self._prompt, self._echoed = tokenizer, prompt, echoed
        self._detokenizer = Detokenizer(tokenizer, () if echoed is not None else prompt)
        self._number = self._at = 0

    def of_next(self, token: int, string: str) -> int:
        """The place of the next token, which is this one; of the prompt too, where that is echoed."""
        if self._echoed is not None and self._number == len(self._prompt):
            # A tokenizer that changes texts gives others than the prompt: the answer begins behind it all the same.
            self._detokenizer, self._at = Detokenizer(self._tokenizer, self._prompt), len(self._echoed)
        text = self._detokenizer.push(token)
        before = len(text.removesuffix(string)) if text.endswith(string) else 0  # halves of a character that stay such
        at, self._at = self._at + before, self._at + len(text)
        if self._echoed is not None and self._number < len(self._prompt):
            self._at = min(self._at, len(self._echoed))
        self._number += 1
        return at


def _reason(reason: str | None) -> str | None:
    """The API knows no word for an answer that the server has given up."""
    return "length" if reason == "cancelled" else reason


def _shown(content: bytes) -> str:
    """The string of a token; one that is no text by itself is written as OpenAI's API does."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
