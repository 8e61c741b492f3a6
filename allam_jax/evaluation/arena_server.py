"""The server of the arena: a page that shows a pair of answers, and takes votes. It never tells whose they are."""

from pathlib import Path
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from allam_jax.evaluation.settings import ArenaSettings
from allam_jax.evaluation.votes import Assignment
from allam_jax.generation.page_server import Page, Refused, object_of, page_app, person_of

_PAGE = Path(__file__).with_name("arena_page.html")
_LARGEST_VOTE = 4096  # bytes


def make_app(assignment: Assignment, settings: ArenaSettings) -> Starlette:
    """The application: `GET /`, `GET /settings`, `GET /next?rater=NAME` and `POST /vote`."""

    async def described(request: Request) -> Response:
        return JSONResponse({"title": settings.title, "direction": settings.direction})

    async def next_pair(request: Request) -> Response:
        rater = person_of(request.query_params.get("rater"))
        return JSONResponse(await anyio.to_thread.run_sync(_next, assignment, rater))

    async def vote(request: Request) -> Response:
        body = await object_of(request, most=_LARGEST_VOTE)
        rater, pair, said = person_of(body.get("rater")), str(body.get("pair")), str(body.get("said"))
        try:
            added = await anyio.to_thread.run_sync(assignment.vote, rater, pair, said)
        except KeyError:
            raise Refused(f"no pair {pair!r}") from None
        except ValueError as error:
            raise Refused(str(error)) from None
        except OSError as error:
            return JSONResponse({"error": f"the vote cannot be written ({error})"}, status_code=503)
        return JSONResponse({"added": added})

    routes = [
        Route("/settings", described),
        Route("/next", next_pair),
        Route("/vote", vote, methods=["POST"]),
    ]
    return page_app(Page(_PAGE), routes, host=settings.host)


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
