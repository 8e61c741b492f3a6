"""The server of the arena: a page that shows a pair of answers, and takes votes. It never tells whose they are."""

from pathlib import Path
from typing import Any

import anyio
import regex
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from allam_jax.evaluation.settings import ArenaSettings
from allam_jax.evaluation.votes import Assignment
from allam_jax.generation.server import page_headers

_PAGE = Path(__file__).with_name("arena_page.html")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_RATER = regex.compile(r"[\w\p{M}.@ -]{1,64}")  # vowel marks are no \w
_LARGEST_VOTE = 4096  # bytes


def make_app(assignment: Assignment, settings: ArenaSettings) -> Starlette:
    """The application: `GET /`, `GET /settings`, `GET /next?rater=NAME` and `POST /vote`."""
    page = _PAGE.read_text(encoding="utf-8")
    headers = page_headers(page)

    async def show(request: Request) -> Response:
        return Response(page, media_type="text/html", headers=headers)

    async def described(request: Request) -> Response:
        return JSONResponse({"title": settings.title, "direction": settings.direction})

    async def next_pair(request: Request) -> Response:
        rater = request.query_params.get("rater", "")
        if not _RATER.fullmatch(rater):
            return _refused("a rater's name has up to 64 letters, digits, spaces and . _ @ -")
        return JSONResponse(await anyio.to_thread.run_sync(_next, assignment, rater))

    async def vote(request: Request) -> Response:
        if request.headers.get("content-type", "").split(";")[0] != "application/json":
            return _refused("expected application/json")  # which no page of another site can send
        if int(request.headers.get("content-length") or _LARGEST_VOTE + 1) > _LARGEST_VOTE:
            return _refused(f"expected at most {_LARGEST_VOTE} bytes")
        try:
            body = await request.json()
            rater, pair, said = (str(body[name]) for name in ("rater", "pair", "said"))
        except (ValueError, KeyError, TypeError):
            return _refused("expected an object with rater, pair and said")
        if not _RATER.fullmatch(rater):
            return _refused("no name of a rater")
        try:
            added = await anyio.to_thread.run_sync(assignment.vote, rater, pair, said)
        except KeyError:
            return _refused(f"no pair {pair!r}")
        except ValueError as error:
            return _refused(str(error))
        except OSError as error:
            return JSONResponse({"error": f"the vote cannot be written ({error})"}, status_code=503)
        return JSONResponse({"added": added})

    routes = [
        Route("/", show),
        Route("/settings", described),
        Route("/next", next_pair),
        Route("/vote", vote, methods=["POST"]),
    ]
    # A page elsewhere whose name has been made to mean this machine is not served.
    hosts = list(_LOOPBACK) if settings.host in (*_LOOPBACK, "::1") else ["*"]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)])


def _next(assignment: Assignment, rater: str) -> dict[str, Any]:
    pair = assignment.next(rater)
    progress = assignment.progress(rater)
    if pair is None:
        return {"pair": None, "progress": progress}
    answers = {"a": pair.answer_a, "b": pair.answer_b}
    left = assignment.left(rater, pair.id)
    shown = {
        "id": pair.id,
        "question": pair.question,
        "left": answers[left],
        "right": answers["b" if left == "a" else "a"],
    }
    return {"pair": shown, "progress": progress}


def _refused(why: str) -> Response:
    return JSONResponse({"error": why}, status_code=400)
