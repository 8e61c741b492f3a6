"""Pages that a person opens in a browser, and how they are served: the chat with a model, the arena, the review.

A page is one file with one style and one script. A browser runs these and nothing that comes in with the data, because
the headers name their hashes. Scripts of pages that take answers of people begin with `page_client.js`.
"""

import base64
import contextlib
import hashlib
import json
import math
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import regex
import uvicorn
from absl import logging
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from allam_jax.errors import UserError
from allam_jax.files import json_text
from allam_jax.interrupts import StopRequest

_KEEP_ALIVE = 75  # seconds; longer than clients keep idle connections, or a request would meet one that is being closed
_CLIENT = Path(__file__).with_name("page_client.js")
_SHARED = "// page_client.js\n"  # a line of a page's script, in whose place that file comes
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_PERSON = regex.compile(r"[\w\p{M}.@ -]{1,64}")  # vowel marks are no \w


class Refused(Exception):
    """A request that cannot be served as it is: the line that its sender gets."""


class Page:
    """A page as a browser gets it."""

    def __init__(self, path: Path):
        """Reads the page. Its script and its style are the only ones that the browser will run."""
        self._text = path.read_text(encoding="utf-8").replace(_SHARED, _CLIENT.read_text(encoding="utf-8"))
        self._headers = _page_headers(self._text)

    async def show(self, request: Request) -> Response:
        """`GET /`."""
        return Response(self._text, media_type="text/html", headers=self._headers)


def page_app(page: Page, routes: Sequence[Route], *, host: str) -> Starlette:
    """The application of a page for people: the page at `/`, and its routes; a `Refused` becomes status 400.

    A page elsewhere whose name has been made to mean this machine is not served if `host`, at which the application
    listens, is this machine alone.
    """
    hosts = list(_LOOPBACK) if host in (*_LOOPBACK, "::1") else ["*"]
    return Starlette(
        routes=[Route("/", page.show), *routes],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
        exception_handlers={Refused: _refused},
    )


def person_of(name: Any) -> str:
    """The name of a person that a page sends; Refused for what is none."""
    if not isinstance(name, str) or not _PERSON.fullmatch(name):
        raise Refused("a name has up to 64 letters, digits, spaces and . _ @ -")
    return name


async def object_of(request: Request, *, most: int) -> dict[str, Any]:
    """The JSON object in a request's body; Refused if it is none, or larger than `most` bytes."""
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise Refused("expected application/json")  # which no page of another site can send
    stated = request.headers.get("content-length", "")
    if not stated.isdigit() or int(stated) > most:
        raise Refused(f"expected at most {most:,} bytes")
    try:
        body = json.loads(await request.body())
        json_text(body).encode()
    except (ValueError, RecursionError):  # also half of a surrogate pair, which no file could hold
        raise Refused("expected JSON") from None
    if not isinstance(body, dict):
        raise Refused("expected a JSON object")
    return body


def serve_page(app: Starlette, *, host: str, port: int, section: str, drain_seconds: float = 5.0) -> None:
    """Serves until SIGTERM or Ctrl-C at the address that a section of the config states; logs the address."""
    with bind(host, port, section=section) as sock:
        logging.info("%s: open %s in a browser", section, listen(sock))
        serve(app, sock=sock, drain_seconds=drain_seconds)


def bind(host: str, port: int, *, section: str) -> socket.socket:
    """A socket at the address that a section of the config states; UserError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # also right after a server that was killed
    try:
        sock.bind((host, port))
    except OSError as error:  # a name that cannot be resolved is one too
        sock.close()
        said = (error.strerror or str(error)).lower()
        raise UserError(
            f"{section}.host = {host!r}, {section}.port = {port}: {said}; choose another address or port"
        ) from None
    return sock


def listen(sock: socket.socket) -> str:
    """The address of a socket that is bound. From here on whoever comes waits for the server to take requests."""
    sock.listen()
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def make_server(app: Starlette, *, drain_seconds: float) -> uvicorn.Server:
    """The server of an application. Set `should_exit`, and it ends when its answers have ended."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(drain_seconds),
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[assignment, method-assign]  # they are ours
    return server


def serve(app: Starlette, *, sock: socket.socket, drain_seconds: float) -> None:
    """Answers until SIGTERM, SIGHUP or Ctrl-C; then takes no more requests, and waits for those under way."""
    server = make_server(app, drain_seconds=drain_seconds)
    with _Draining(server):
        server.run(sockets=[sock])


def _page_headers(page: str) -> dict[str, str]:
    """Headers with which a browser runs a page's own script and style, and nothing that comes into it."""
    policy = ["default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; img-src data:"]
    for kind, tag in (("script", "script"), ("style", "style")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        policy.append(f"{kind}-src 'sha256-{digest}'")
    other = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return {"Content-Security-Policy": "; ".join(policy), **other}


class _Draining(StopRequest):
    """Signals that end the server when its answers have ended, or at once when they come again."""

    def __init__(self, server: uvicorn.Server):
        line = "no more requests are taken; waiting for the answers under way (again: leave at once)"
        super().__init__(notices=dict.fromkeys(("SIGINT", "SIGTERM", "SIGHUP"), line))
        self._server = server

    def noted(self, name: str) -> None:
        if self._server.should_exit:
            self._server.force_exit = True
            self._notices = dict.fromkeys(self._notices, "leaving; the answers under way are cut off")
        self._server.should_exit = True


async def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=400)
