"""The HTTP server: OpenAI's API, a page to chat with the model, health and metrics, over an `EngineThread`.

An answer is given up as soon as its client leaves. A slow reader holds no slot: its deltas wait in memory, of which
max_new_tokens bounds the size.
"""

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from allam_jax.errors import UserError
from allam_jax.generation.engine_thread import EngineThread, QueueFull
from allam_jax.generation.openai_answers import Writer
from allam_jax.generation.openai_api import Asked, BadRequest, Model, read_request
from allam_jax.generation.page_server import Page
from allam_jax.generation.requests import Delta, Request
from allam_jax.generation.server_gate import LEFT, Gate, Metrics, event_of, json_response
from allam_jax.generation.settings import ServeSettings

_PAGE = Path(__file__).with_name("chat_page.html")
_THROWN_AWAY = 1 << 27  # bytes of a body that is too large that are read before it is refused


def make_app(engine: EngineThread, *, model: Model, settings: ServeSettings, key: str = "") -> Starlette:
    """The application. With a `key`, `/v1` asks for it as a bearer token, and any path that is not there."""
    # More answers than may wait could never be queued.
    model = dataclasses.replace(model, max_samples=min(model.max_samples, settings.max_queue))
    server = _Server(engine, model=model, settings=settings)
    routes = [
        Route("/v1/models", server.models),
        Route("/v1/models/{name:path}", server.models),
        Route("/v1/completions", server.completions, methods=["POST"]),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/health", server.health),
        Route("/metrics", server.metrics.page),
        Route("/", Page(_PAGE).show),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Gate, host=settings.host, key=key, metrics=server.metrics)],
        exception_handlers={BadRequest: _refused, HTTPException: _not_routed, Exception: _failed},
    )


class _Server:
    """The endpoints."""

    def __init__(self, engine: EngineThread, *, model: Model, settings: ServeSettings):
        self.engine, self.model, self.settings = engine, model, settings
        self.metrics = Metrics(engine)

    async def models(self, request: HttpRequest) -> Response:
        """`GET /v1/models`, and one by its name."""
        card = {"id": self.model.name, "object": "model", "created": self.model.created, "owned_by": "allam_jax"}
        card["max_model_len"] = self.model.context
        if "name" not in request.path_params:
            return json_response({"object": "list", "data": [card]})
        if request.path_params["name"] != self.model.name:
            raise BadRequest(f"no model {request.path_params['name']!r} here", status=404)
        return json_response(card)

    async def health(self, request: HttpRequest) -> Response:
        """`GET /health`: 200 as long as the engine works."""
        failed = self.engine.failed is not None
        return json_response({"status": "failed" if failed else "ok"}, status=503 if failed else 200)

    async def completions(self, request: HttpRequest) -> Response:
        """`POST /v1/completions`."""
        return await self._answer(request, chat=False)

    async def chat(self, request: HttpRequest) -> Response:
        """`POST /v1/chat/completions`."""
        return await self._answer(request, chat=True)

    async def _answer(self, request: HttpRequest, *, chat: bool) -> Response:
        body = await _body(request, most=self.settings.max_body_bytes, seconds=self.settings.body_seconds)
        asked = await anyio.to_thread.run_sync(_parsed, body, chat, self.model)
        answer = _Answer(asked, self.engine, self.metrics)
        writer = Writer(asked, model=self.model)
        answer.submit()
        if asked.stream:
            return _Stream(answer, writer)
        leaving = asyncio.ensure_future(_left(request))
        collecting = asyncio.ensure_future(answer.collect())
        try:
            await asyncio.wait({leaving, collecting}, return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                return Response(status_code=LEFT)  # nobody reads it
            return json_response(writer.whole(collecting.result()))
        finally:
            leaving.cancel()
            collecting.cancel()
            answer.give_up()


class _Answer:
    """The deltas of all prompts of a request, as they come from the engine's thread."""

    def __init__(self, asked: Asked, engine: EngineThread, metrics: "Metrics"):
        self.asked, self._engine, self._metrics = asked, engine, metrics
        self._names = {f"{asked.id}/{number}": number for number in range(len(asked.prompts))}
        self._under_way = dict.fromkeys(self._names, asked.sampling.samples)
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Sequence[Delta] | Exception] = asyncio.Queue()
        self._begun = time.monotonic()

    def submit(self) -> None:
        """Queues the prompts; BadRequest if the engine refuses them or there is no room."""
        try:
            for name, number in self._names.items():
                self._engine.submit(Request(name, self.asked.prompts[number], self.asked.sampling), self._hear)
        except UserError as error:
            self.give_up()
            raise BadRequest(str(error)) from None
        except QueueFull:
            self.give_up()
            raise BadRequest("too many requests wait; try again later", status=429, code="queue_full") from None
        except RuntimeError as error:
            raise BadRequest(str(error), status=503) from None
        self._metrics.prompt_tokens.inc(sum(map(len, self.asked.prompts)))

    def give_up(self) -> None:
        """Ends what is still under way."""
        for name in self._under_way:
            self._engine.cancel(name)
        self._under_way = {}

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """Index of a choice and what it got, until all have ended; BadRequest if the engine fails."""
        first = True
        while self._under_way:
            event = await self._events.get()
            if isinstance(event, Exception):
                self.give_up()
                raise BadRequest(f"the engine has failed: {event}", status=500)
            if first:
                self._metrics.first.observe(time.monotonic() - self._begun)
                first = False
            for delta in event:
                self._metrics.answer_tokens.inc(len(delta.ids))
                if delta.finish_reason is not None:
                    self._under_way[delta.name] -= 1
                    if not self._under_way[delta.name]:
                        del self._under_way[delta.name]
                yield self._names[delta.name] * self.asked.sampling.samples + delta.sample, delta
        self._metrics.whole.observe(time.monotonic() - self._begun)

    async def collect(self) -> dict[int, list[Delta]]:
        """Index of a choice -> all of its deltas."""
        found: dict[int, list[Delta]] = {}
        async for index, delta in self.deltas():
            found.setdefault(index, []).append(delta)
        return found

    def _hear(self, event: Sequence[Delta] | Exception) -> None:
        """Called in the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


class _Stream(StreamingResponse):
    """Server-sent events; ends the answer however it is left."""

    def __init__(self, answer: _Answer, writer: Writer):
        super().__init__(_events(answer, writer), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.give_up()


async def _events(answer: _Answer, writer: Writer) -> AsyncIterator[str]:
    seen: set[int] = set()
    for chunk in writer.opening():
        yield event_of(chunk)
    try:
        async for index, delta in answer.deltas():
            if delta.text or delta.finish_reason is not None or delta.logprobs or index not in seen:
                yield event_of(writer.chunk(index, delta, first=index not in seen))
                seen.add(index)
            else:  # text that is held back: its ids count
                writer.completion_tokens += len(delta.ids)
    except BadRequest as error:  # the status is out already
        yield event_of(error.body())
    for chunk in writer.closing():
        yield event_of(chunk)
    yield "data: [DONE]\n\n"


def _parsed(body: bytes, chat: bool, model: Model) -> Asked:
    """A request of the bytes of its body; tokenises, so it runs in a thread."""
    try:
        value = json.loads(body)
        json.dumps(
            value, ensure_ascii=False
        ).encode()  # not with half of a surrogate pair, which answers could not quote
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is no JSON ({error})".replace("\n", " ")[:300]) from None
    return read_request(value, chat=chat, model=model)


async def _body(request: HttpRequest, *, most: int, seconds: float) -> bytes:
    """The body of a request.

    Raises:
        BadRequest: it is larger than `most` bytes, or takes longer. Most of a body that is too large is read all the
            same: a client that is still sending would not see the answer.
        ClientDisconnect: the client has left.
    """
    parts, size = [], 0
    stated = request.headers.get("content-length", "0")
    too_large = BadRequest(f"the body is larger than {most:,} bytes", status=413)
    if stated.isdigit() and int(stated) > _THROWN_AWAY:
        raise too_large
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size <= most:
                    parts.append(part)
                elif size > _THROWN_AWAY:
                    raise too_large
    except TimeoutError:
        raise BadRequest(f"the body was not there after {seconds:g} s", status=408) from None
    if size > most:
        raise too_large
    return b"".join(parts)


async def _left(request: HttpRequest) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refused(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, BadRequest)
    headers = {"Retry-After": "1"} if error.status == 429 else {}
    if error.status in (408, 413):
        headers["Connection"] = "close"
    return json_response(error.body(), status=error.status, headers=headers)


async def _failed(request: HttpRequest, error: Exception) -> Response:
    return json_response(BadRequest("internal error", status=500).body(), status=500)  # the log has the rest


async def _not_routed(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {404: f"no {request.url.path} here", 405: f"{request.method} is not for {request.url.path}"}
    refusal = BadRequest(said.get(error.status_code, str(error.detail)), status=error.status_code)
    return json_response(refusal.body(), status=error.status_code, headers=error.headers)
