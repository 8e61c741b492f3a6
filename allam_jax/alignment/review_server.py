"""The server of the review page: items with their guidelines, and decisions on them."""

from pathlib import Path

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from allam_jax.alignment.review_decisions import Review
from allam_jax.alignment.settings import ReviewSettings
from allam_jax.generation.page_server import Page, Refused, object_of, page_app, person_of
from allam_jax.rewriting.instructions import Guidelines

_PAGE = Path(__file__).with_name("review_page.html")
_LARGEST_DECISION = 1 << 26  # bytes: an edited document comes back whole


def make_app(review: Review, guidelines: Guidelines, settings: ReviewSettings) -> Starlette:
    """The application: `GET /`, `/settings` and `/item?reviewer=NAME&at=PLACE`, and `POST /decision`."""

    async def described(request: Request) -> Response:
        return JSONResponse({"title": settings.title, "guidelines": guidelines.rules, "rules": guidelines.names()})

    async def item(request: Request) -> Response:
        reviewer, at = person_of(request.query_params.get("reviewer")), request.query_params.get("at", "")
        if at and not (at.isascii() and at.isdecimal() and len(at) < 10):
            raise Refused("at: expected the number of a place")
        return JSONResponse(await anyio.to_thread.run_sync(review.view, reviewer, int(at) if at else None))

    async def decision(request: Request) -> Response:
        said = await object_of(request, most=_LARGEST_DECISION)
        reviewer = person_of(said.get("reviewer"))
        try:
            await anyio.to_thread.run_sync(lambda: review.decide(said, reviewer=reviewer))
        except KeyError as error:
            raise Refused(f"no item {error}") from None
        except ValueError as error:
            raise Refused(str(error)) from None
        except OSError as error:
            return JSONResponse({"error": f"the decision cannot be written ({error})"}, status_code=503)
        return JSONResponse({"written": True})

    routes = [
        Route("/settings", described),
        Route("/item", item),
        Route("/decision", decision, methods=["POST"]),
    ]
    return page_app(Page(_PAGE), routes, host=settings.host)
