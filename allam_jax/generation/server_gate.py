"""What every request of the server passes: who may ask, the counts for Prometheus, and the end of what is cut off."""

import asyncio
import contextlib
import hmac
import re
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from allam_jax.files import json_text
from allam_jax.generation.engine_thread import EngineThread
from allam_jax.generation.openai_api import BadRequest

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_LOOPBACK_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d*)?", re.IGNORECASE)  # as the header names it
_OPEN = frozenset({"/", "/health", "/metrics"})  # what needs no key
LEFT = 499  # status of a request whose client has left, in metrics
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Gate:
    """Checks who asks, before any endpoint; counts every request by its status."""

    def __init__(self, app: ASGIApp, *, host: str, key: str, metrics: "Metrics"):
        """`host` is where the server listens; `key` is asked for unless it is empty."""
        self._app, self._host, self._key, self._metrics = app, host, key, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, streams = LEFT, False

        async def note(message: Any) -> None:
            nonlocal status, streams
            if message["type"] == "http.response.start":
                status = message["status"]
                streams = Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream")
            await send(message)

        request = HttpRequest(scope)
        refusal = self._refusal(request)
        app = self._app if refusal is None else json_response(refusal.body(), status=refusal.status)
        try:
            await app(scope, receive, note)
        except asyncio.CancelledError:  # the server ends, and waits no longer
            if status == LEFT or streams:
                await _cut_off(note, streams=streams)
        finally:
            self._metrics.requests.labels(_known(scope["path"]), str(status)).inc()

    def _refusal(self, request: HttpRequest) -> BadRequest | None:
        headers = request.headers
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._host in _LOOPBACK and not _LOOPBACK_HOST.fullmatch(host):
            # A page elsewhere whose name has been made to mean this machine.
            return BadRequest(f"host {host!r}: expected localhost", status=403)
        if origin and origin.partition("://")[2] != host:
            return BadRequest("pages of other sites may not ask", status=403)
        scheme, _, given = headers.get("authorization", "").partition(" ")
        known = scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key.encode())
        # The path that is routed: `request.url` is made of the Host header too.
        if self._key and request.scope["path"] not in _OPEN and not known:
            return BadRequest("the key is missing or wrong; send it as `Authorization: Bearer KEY`", status=401)
        return None


class Metrics:
    """What Prometheus reads."""

    def __init__(self, engine: EngineThread):
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("allam_requests", "Requests by their status", ["path", "status"], registry=registry)
        self.prompt_tokens = Counter("allam_prompt_tokens", "Tokens of prompts", registry=registry)
        self.answer_tokens = Counter("allam_answer_tokens", "Tokens of answers", registry=registry)
        self.first = Histogram(
            "allam_first_token_seconds", "Until the first tokens", registry=registry, buckets=_SECONDS
        )
        self.whole = Histogram("allam_answer_seconds", "Until the end", registry=registry, buckets=_SECONDS)
        for name, what, value in (
            ("allam_waiting_samples", "Samples that wait for a slot", lambda: engine.waiting),
            ("allam_free_slots", "Slots that no sample occupies", lambda: engine.free_slots),
        ):
            gauge = Gauge(name, what, registry=registry)
            gauge.set_function(value)

    async def page(self, request: HttpRequest) -> Response:
        """`GET /metrics`."""
        return Response(generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _cut_off(send: Send, *, streams: bool) -> None:
    """Says that the server ends: with a status, or as the last event of a stream."""
    body = BadRequest("the server is shutting down", status=503).body()
    with contextlib.suppress(asyncio.CancelledError):  # a client that reads no more
        if streams:
            await send({"type": "http.response.body", "body": event_of(body).encode(), "more_body": False})
            return
        response = json_response(body, status=503, headers={"Connection": "close"})
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": False})


def json_response(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A value as the body of a response."""
    return Response(json_text(value), status, headers, media_type="application/json")


def event_of(value: Mapping[str, Any]) -> str:
    """A value as a server-sent event."""
    return f"data: {json_text(value)}\n\n"


def _known(path: str) -> str:
    """The path for metrics, of which there must not be endlessly many."""
    return (
        path if path in ("/v1/models", "/v1/completions", "/v1/chat/completions", "/health", "/metrics", "/") else "-"
    )
