"""Deltas of the engine -> bodies of answers as OpenAI's API has them, whole or in chunks."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from allam_jax.generation.openai_api import Asked, Model
from allam_jax.generation.requests import Delta, TokenLogprob
from allam_jax.generation.streaming import Detokenizer
from allam_jax.tokenizer.tokenizer import Tokenizer


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
