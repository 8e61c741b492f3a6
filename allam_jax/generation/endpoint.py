"""Backends of `over_rows` that ask a server with OpenAI's API; `EndpointBackend` asks it for completions.

Rows are asked in an event loop, as many at a time as the config allows. What may pass is asked again after a pause that
doubles, or that the server states (`Retry-After`). What no pause mends in one row is an error of that row. What would
be the same for all rows (no such server, a refused key) ends the run. The key comes from the environment and is never
written.
"""

import abc
import asyncio
import collections
import concurrent.futures
import dataclasses
import email.utils
import itertools
import json
import math
import os
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import anyio.from_thread

from allam_jax.errors import UserError
from allam_jax.files import json_text
from allam_jax.generation.over_rows import Choice, RowAnswer
from allam_jax.generation.requests import Sampling
from allam_jax.generation.rows import Prompt
from allam_jax.generation.settings import EndpointSettings

_AGAIN = frozenset({408, 409, 425, 429, *range(500, 600)})
_FOR_ALL_ROWS = {401: "refuses the key", 403: "refuses the key", 404: "has no such model or address"}
_LOOK_AHEAD = 4  # rows under way or waiting for an earlier one, for each of those that may be under way
_SHOWN = 200  # characters of an answer that is shown in an error
_LONGEST_PAUSE = 60.0  # seconds, where the server states none
_LONGEST_STATED = 3600.0
_LARGEST_ANSWER = 1 << 26  # bytes
_LARGEST_COUNT = 1 << 53
_MOST_STOPS = 4  # of OpenAI's API, which refuses more; answers are cut at the others here


class UnfitAnswer(Exception):
    """Why an answer of a server is not what was asked for."""


class RowsOverHttp(abc.ABC):
    """Asks `settings.url`; what and how, a subclass says. UserError if it is no URL, or the environment has no key.

    `section` of the config holds the settings, for errors.
    """

    def __init__(self, settings: EndpointSettings, *, section: str):
        import httpx  # here, because most tasks need it not

        self._settings = settings
        self._key = os.environ.get(settings.key_variable, "").strip() if settings.key_variable else ""
        if settings.key_variable and not self._key:
            raise UserError(
                f"the environment has no {settings.key_variable}, where the endpoint's key is expected; set it, or set "
                f"{section}.endpoint.key_variable to the name of another variable (empty for no key)"
            )
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(f"{settings.key_variable} in the environment: a key is one line of ASCII characters")
        try:
            valid = httpx.URL(settings.url).scheme in ("http", "https") and httpx.URL(settings.url).host
        except httpx.InvalidURL:
            valid = False
        if not valid:
            raise UserError(f"{section}.endpoint.url = {settings.url!r}: expected http://... or https://..., up to /v1")

    @abc.abstractmethod
    def request(self, asked: Any) -> tuple[str, dict[str, Any]]:
        """Path behind the url, and body, of the request for a prompt."""

    @abc.abstractmethod
    def read(self, content: bytes) -> RowAnswer:
        """What an answer with a status of success says; UnfitAnswer where it says nothing of what was asked."""

    def describe(self) -> dict[str, Any]:
        """See `over_rows.Backend`."""
        return {"endpoint": self._settings.url, "model": self._settings.model}

    def answers(self, prompts: Iterable[Prompt]) -> Iterator[RowAnswer]:
        """See `over_rows.Backend`."""
        waiting: collections.deque[concurrent.futures.Future[RowAnswer]] = collections.deque()
        prompts = iter(prompts)
        # The loop runs in a thread of its own: there may be another one here, as in a notebook.
        with anyio.from_thread.start_blocking_portal() as portal:
            connection = _Connection(self._settings, key=self._key)
            with portal.wrap_async_context_manager(connection.client):  # what is under way at its end is given up
                while True:
                    some = itertools.islice(prompts, _LOOK_AHEAD * self._settings.concurrency - len(waiting))
                    waiting.extend(portal.start_task_soon(self._in_turn, prompt, connection) for prompt in some)
                    if not waiting:
                        return
                    yield waiting.popleft().result()

    async def _in_turn(self, prompt: Prompt, connection: "_Connection") -> RowAnswer:
        async with connection.places:
            return await self._answer(prompt, connection)

    async def _answer(self, prompt: Prompt, connection: "_Connection") -> RowAnswer:
        """One row, asked until there is an answer or no hope."""
        import httpx

        path, body = self.request(prompt.asked)
        problem = ""
        for attempt in range(self._settings.attempts):
            await connection.pace.wait()
            stated = None
            try:
                status, headers, content = await connection.post(path, body)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                problem = f"{self._settings.url}: does not answer ({self._shown(error)})"
                if attempt + 1 == self._settings.attempts:
                    raise UserError(f"{problem}; start it, and run the same command again to go on") from None
            except TimeoutError:
                problem = f"no answer: it was not whole after {self._settings.timeout:g} s"
            except httpx.HTTPError as error:
                problem = f"no answer: {self._shown(error) or type(error).__name__}"
            else:
                shown = self._shown(content[: 10 * _SHOWN].decode(errors="replace"))
                if 200 <= status < 300:
                    try:
                        return self.read(content)
                    except UnfitAnswer as error:
                        problem = f"{error}: {shown}"
                else:
                    problem = f"status {status}: {shown}"
                    if said := _FOR_ALL_ROWS.get(status):
                        raise UserError(f"{self._settings.url}: {said} ({problem})")
                    if status not in _AGAIN:
                        return RowAnswer(error=problem)
                    stated = _retry_after(headers.get("Retry-After", ""))
            if attempt + 1 < self._settings.attempts:
                await connection.pace.pause(attempt, stated)
        return RowAnswer(error=problem)

    def _shown(self, what: object) -> str:
        """A foreign text as part of one line, without the key."""
        text = str(what)[: 10 * _SHOWN]
        text = " ".join((text.replace(self._key, "***") if self._key else text).split())
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class EndpointBackend(RowsOverHttp):
    """Asks for completions: a text is gone on from, messages are answered."""

    def __init__(self, settings: EndpointSettings, *, sampling: Sampling, section: str = "generate"):
        super().__init__(settings, section=section)
        self._sampling = sampling

    def describe(self) -> dict[str, Any]:
        """The server, the model and how it is asked."""
        stops = list(self._sampling.stop_texts)
        return super().describe() | {"sampling": self._body("") | ({"stop": stops} if stops else {})}

    def request(self, asked: Any) -> tuple[str, dict[str, Any]]:
        """See `RowsOverHttp`."""
        return "completions" if isinstance(asked, str) else "chat/completions", self._body(asked)

    def read(self, content: bytes) -> RowAnswer:
        """See `RowsOverHttp`."""
        return _read(content, sampling=self._sampling)

    def _body(self, asked: Any) -> dict[str, Any]:
        sampling = self._sampling
        body = {
            "model": self._settings.model,
            "prompt" if isinstance(asked, str) else "messages": asked,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "seed": sampling.seed,
        }
        if sampling.logprobs is not None:  # of the chosen tokens, however each path spells it
            body["logprobs"] = 1 if isinstance(asked, str) else True
        further = {
            "top_p": (sampling.top_p, 1.0),
            "n": (sampling.samples, 1),
            "stop": (list(sampling.stop_texts[:_MOST_STOPS]), []),
            "presence_penalty": (sampling.presence_penalty, 0.0),
            "frequency_penalty": (sampling.frequency_penalty, 0.0),
            "top_k": (sampling.top_k, 0),  # from here on not in OpenAI's API, but in that of other servers
            "min_p": (sampling.min_p, 0.0),
            "repetition_penalty": (sampling.repetition_penalty, 1.0),
        }
        return body | {name: value for name, (value, default) in further.items() if value != default}


class _Connection:
    """What the rows under way share: the client, places for so many of them, and their pace."""

    def __init__(self, settings: EndpointSettings, *, key: str):
        import httpx  # here, because most tasks need it not

        self._seconds = settings.timeout
        self.places, self.pace = asyncio.Semaphore(settings.concurrency), _Pace(settings.requests_per_minute)
        self.client = httpx.AsyncClient(
            base_url=settings.url,
            headers={"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=httpx.Timeout(None, connect=min(settings.timeout / 2, 10.0)),
            limits=httpx.Limits(max_connections=settings.concurrency),
        )

    async def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and content of the answer. TimeoutError if it is not whole in time, or httpx's HTTPError."""
        content, sent = bytearray(), json_text(body).encode()
        async with asyncio.timeout(self._seconds), self.client.stream("POST", path, content=sent) as response:
            async for part in response.aiter_bytes():
                content += part
                if len(content) > _LARGEST_ANSWER:
                    break
        return response.status_code, response.headers, bytes(content[:_LARGEST_ANSWER])


class _Pace:
    """When the next request may be sent: at most so many a minute, and none while the server has asked for a pause."""

    def __init__(self, per_minute: float):
        self._gap, self._next, self._quiet_until = 60.0 / per_minute if per_minute else 0.0, 0.0, 0.0

    async def wait(self) -> None:
        """Returns when a request may be sent."""
        now = time.monotonic()
        at = max(now, self._next, self._quiet_until)
        self._next = at + self._gap
        await asyncio.sleep(at - now)

    async def pause(self, attempt: int, stated: float | None) -> None:
        """Waits before another attempt; a pause that the server states is kept by all rows."""
        if stated is not None:
            self._quiet_until = max(self._quiet_until, time.monotonic() + stated)
        # Spread, so that rows that were refused together do not come back together.
        seconds = min(_LONGEST_PAUSE, 2.0**attempt) * random.uniform(0.5, 1.0)
        await asyncio.sleep(seconds if stated is None else stated)


def _retry_after(value: str) -> float | None:
    """Seconds of a `Retry-After` header, which states them or a date (RFC 9110, 10.2.3); None without one."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), _LONGEST_STATED)


def _read(content: bytes, *, sampling: Sampling) -> RowAnswer:
    """The choices of an answer of either path; UnfitAnswer if they are not those that were asked for."""
    try:
        body = json.loads(content)
        items = sorted(body["choices"], key=lambda item: _count(item.get("index")))
        usage = body.get("usage") or {}
        prompt_tokens, tokens = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
        # The server counts the tokens of all choices together.
        shares = [tokens // len(items) + (i < tokens % len(items)) for i in range(len(items))]
        choices = [_choice(item, tokens=share) for item, share in zip(items, shares, strict=True)]
        choices = [_before(choice, sampling.stop_texts) for choice in choices]
        logprobs = [_logprobs(item) for item in items] if sampling.logprobs is not None else []
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UnfitAnswer("no completion") from None
    if len(choices) != sampling.samples:
        raise UnfitAnswer(f"{len(choices)} answers instead of the {sampling.samples} asked for as n")
    for i, found in enumerate(logprobs):
        if found is None and choices[i].text:
            raise UnfitAnswer("no log-probabilities, which generate.logprobs asks for")
        if found is not None:
            choices[i] = dataclasses.replace(choices[i], logprobs=found, tokens=len(found))
    return RowAnswer(choices, prompt_tokens)


def _choice(item: Mapping[str, Any], *, tokens: int) -> Choice:
    text = item["text"] if "text" in item else item["message"]["content"]
    reason = item.get("finish_reason")
    if not isinstance(text, str | None) or not isinstance(reason, str | None):
        raise TypeError
    return Choice(_characters(text or ""), _characters(reason or ""), tokens)


def _before(choice: Choice, stops: Sequence[str]) -> Choice:
    """The choice up to the first of the texts: a server knows the first few of them, and some ignore all."""
    places = [choice.text.find(stop) for stop in stops]
    end = min((place for place in places if place >= 0), default=-1)
    return dataclasses.replace(choice, text=choice.text[:end], finish_reason="stop") if end >= 0 else choice


def _logprobs(item: Mapping[str, Any]) -> list[float] | None:
    """Of the tokens of a choice; None where it has none."""
    given = item.get("logprobs")
    if given is None:
        return None
    found = given["token_logprobs"] if "text" in item else [token["logprob"] for token in given["content"] or []]
    if not all(type(one) in (int, float) and math.isfinite(one) for one in found or []):
        raise TypeError
    return list(map(float, found or [])) or None


def _count(value: Any) -> int:
    """A number of things; 0 where none is stated."""
    if value is None:
        return 0
    if type(value) not in (int, float) or not 0 <= value <= _LARGEST_COUNT or value != int(value):
        raise TypeError
    return int(value)


def _characters(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs, which a server leaves that cuts an answer between them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
