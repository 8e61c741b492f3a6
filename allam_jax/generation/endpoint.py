"""A backend of `over_rows` that asks a server with OpenAI's API.

Rows are asked in threads, as many at a time as the config allows. What may pass is asked again after a pause that
doubles, or that the server states (`Retry-After`). What no pause mends in one row is an error of that row. What would
be the same for all rows (no such server, a refused key) ends the run. The key comes from the environment and is never
written.
"""

import collections
import concurrent.futures
import email.utils
import itertools
import os
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from allam_jax.errors import UserError
from allam_jax.generation.over_rows import Choice, RowAnswer
from allam_jax.generation.requests import Sampling
from allam_jax.generation.rows import Prompt
from allam_jax.generation.settings import EndpointSettings

_AGAIN = frozenset({408, 409, 425, 429, *range(500, 600)})
_FOR_ALL_ROWS = {401: "refuses the key", 403: "refuses the key", 404: "has no such model or address"}
_LOOK_AHEAD = 4  # rows under way or waiting for an earlier one, for each thread
_SHOWN = 200  # characters of an answer that is shown in an error
_LONGEST_PAUSE = 60.0  # seconds, where the server states none
_LONGEST_STATED = 3600.0


class EndpointBackend:
    """Asks `settings.url`. UserError if it is no URL, or the key is not in the environment."""

    def __init__(self, settings: EndpointSettings, *, sampling: Sampling):
        import httpx  # here, because most tasks need it not

        self._settings, self._sampling = settings, sampling
        self._key = os.environ.get(settings.key_variable, "") if settings.key_variable else ""
        if settings.key_variable and not self._key:
            raise UserError(
                f"the environment has no {settings.key_variable}, where the endpoint's key is expected; set it, or set "
                "generate.endpoint.key_variable to the name of another variable (empty for no key)"
            )
        if not settings.url.startswith(("http://", "https://")):
            raise UserError(f"generate.endpoint.url = {settings.url!r}: expected http://... or https://..., up to /v1")
        self._client = httpx.Client(
            base_url=settings.url,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(settings.timeout, connect=min(settings.timeout, 10.0)),
            limits=httpx.Limits(max_connections=settings.concurrency),
        )
        self._stop = threading.Event()
        self._pace = _Pace(settings.requests_per_minute, stop=self._stop)

    def describe(self) -> dict[str, Any]:
        """The server, the model and how it is asked."""
        return {"endpoint": self._settings.url, "model": self._settings.model, "sampling": self._body("")}

    def answers(self, prompts: Iterable[Prompt]) -> Iterator[RowAnswer]:
        """See `over_rows.Backend`."""
        waiting: collections.deque[concurrent.futures.Future[RowAnswer]] = collections.deque()
        pool = concurrent.futures.ThreadPoolExecutor(self._settings.concurrency, thread_name_prefix="endpoint")
        prompts = iter(prompts)
        try:
            while True:
                room = _LOOK_AHEAD * self._settings.concurrency - len(waiting)
                waiting.extend(pool.submit(self._answer, prompt) for prompt in itertools.islice(prompts, room))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            self._stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            self._client.close()

    def _answer(self, prompt: Prompt) -> RowAnswer:
        """One row, asked until there is an answer or no hope."""
        import httpx

        path = "completions" if isinstance(prompt.asked, str) else "chat/completions"
        problem = ""
        for attempt in range(self._settings.attempts):
            self._pace.wait()
            stated = None
            try:
                response = self._client.post(path, json=self._body(prompt.asked))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                problem = f"{self._settings.url}: does not answer ({self._shown(error)})"
                if attempt + 1 == self._settings.attempts:
                    raise UserError(f"{problem}; start it, and run the same command again to go on") from None
            except httpx.HTTPError as error:
                problem = f"no answer: {self._shown(error) or type(error).__name__}"
            else:
                if response.is_success:
                    if answer := _read(response):
                        return answer
                    problem = f"no completion: {self._shown(response.text)}"
                else:
                    problem = f"status {response.status_code}: {self._shown(response.text)}"
                    if said := _FOR_ALL_ROWS.get(response.status_code):
                        raise UserError(f"{self._settings.url}: {said} ({problem})")
                    if response.status_code not in _AGAIN:
                        return RowAnswer(error=problem)
                    stated = _retry_after(response.headers.get("Retry-After", ""))
            if attempt + 1 < self._settings.attempts and not self._pace.pause(attempt, stated):
                break
        return RowAnswer(error=problem)

    def _body(self, asked: Any) -> dict[str, Any]:
        sampling = self._sampling
        body = {
            "model": self._settings.model,
            "prompt" if isinstance(asked, str) else "messages": asked,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
        }
        further = {
            "top_p": (sampling.top_p, 1.0),
            "n": (sampling.samples, 1),
            "seed": (sampling.seed, 0),
            "stop": (list(sampling.stop_texts), []),
            "presence_penalty": (sampling.presence_penalty, 0.0),
            "frequency_penalty": (sampling.frequency_penalty, 0.0),
            "top_k": (sampling.top_k, 0),  # from here on not in OpenAI's API, but in that of other servers
            "min_p": (sampling.min_p, 0.0),
            "repetition_penalty": (sampling.repetition_penalty, 1.0),
        }
        return body | {name: value for name, (value, default) in further.items() if value != default}

    def _shown(self, what: object) -> str:
        """A foreign text as part of one line, without the key."""
        text = str(what)[: 10 * _SHOWN]
        text = " ".join((text.replace(self._key, "***") if self._key else text).split())
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class _Pace:
    """When the next request may be sent: at most so many a minute, and none while the server has asked for a pause."""

    def __init__(self, per_minute: float, *, stop: threading.Event):
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._lock, self._stop, self._next, self._quiet_until = threading.Lock(), stop, 0.0, 0.0

    def wait(self) -> None:
        """Returns when a request may be sent."""
        with self._lock:
            at = max(time.monotonic(), self._next, self._quiet_until)
            self._next = at + self._gap
        self._stop.wait(max(0.0, at - time.monotonic()))

    def pause(self, attempt: int, stated: float | None) -> bool:
        """Waits before another attempt; a pause that the server states is kept by all threads. False at the end."""
        if stated is not None:
            with self._lock:
                self._quiet_until = max(self._quiet_until, time.monotonic() + stated)
        # Spread, so that rows that were refused together do not come back together.
        seconds = min(_LONGEST_PAUSE, 2.0**attempt) * random.uniform(0.5, 1.0)
        return not self._stop.wait(stated if stated is not None else seconds)


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


def _read(response: Any) -> RowAnswer | None:
    """The choices of an answer of either path; None if it is none."""
    try:
        body = response.json()
        choices = [_choice(item) for item in sorted(body["choices"], key=lambda item: item.get("index", 0))]
        usage = body.get("usage") or {}
        tokens = int(usage.get("completion_tokens") or 0)
        # The server counts the tokens of all choices together.
        shares = [tokens // len(choices) + (i < tokens % len(choices)) for i in range(len(choices))]
        counted = tuple(Choice(text, reason, share) for (text, reason), share in zip(choices, shares, strict=True))
        return RowAnswer(counted, int(usage.get("prompt_tokens") or 0)) if counted else None
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError):
        return None


def _choice(item: Mapping[str, Any]) -> tuple[str, str]:
    text = item["text"] if "text" in item else item["message"]["content"]
    if not isinstance(text, str | None):
        raise TypeError(text)
    return _characters(text or ""), _characters(str(item.get("finish_reason") or ""))


def _characters(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs, which a server leaves that cuts an answer between them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
