"""Task `review`: people accept, edit or reject rewrites, pairs or conversations in a browser; cleaned data come out.

WORKDIR/decisions.jsonl    every decision, as it was made; only appended to
WORKDIR/clean.jsonl        accepted and edited rows in the form in which they came, with `review`: who said what
WORKDIR/left_out.jsonl     the other rows, with the reason
WORKDIR/review.md          counts, agreement, conflicts; the numbers are in review.json
"""

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from allam_jax.alignment.review_decisions import (
    ACCEPTED,
    CONFLICT,
    EDITED,
    OUTCOMES,
    Decision,
    Outcome,
    Review,
    agreements,
)
from allam_jax.alignment.review_items import ReviewItem, read_items
from allam_jax.config import require
from allam_jax.errors import UserError
from allam_jax.files import json_text, write_json, write_text
from allam_jax.report.markdown import plain, quote, section, table, write_report
from allam_jax.rewriting.instructions import read_guidelines
from allam_jax.settings import Settings

DECISIONS, CLEAN, LEFT_OUT = "decisions.jsonl", "clean.jsonl", "left_out.jsonl"
_CONFLICTS = 20  # that the report shows
_SHOWN = 600  # characters of a text


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Serves the page until SIGTERM or Ctrl-C, then applies the decisions; returns counts."""
    options = config.review
    items = read_items(require(options.input, key="review.input", hint="give rewrites, pairs or conversations"))
    given = require(
        options.guidelines, key="review.guidelines", hint="give a file, such as configs/instructions/rewrite.toml"
    )
    guidelines = read_guidelines(given)
    review = Review(
        items,
        workdir / DECISIONS,
        others=[Path(path) for path in options.decisions.values()],
        reviewers=options.reviewers,
        arbiter=options.arbiter,
        rules=guidelines.names(),
        guidelines=f"{guidelines.name} {guidelines.version}",
    )
    try:
        if options.serve:
            try:
                from allam_jax.alignment.review_server import make_app
                from allam_jax.generation.page_server import serve_page
            except ImportError as error:
                raise UserError(f"task review: needs {error.name}; pip install -r requirements-serve.txt") from None
            serve_page(make_app(review, guidelines, options), host=options.host, port=options.port, section="review")
    finally:
        review.close()

    decisions, outcomes = review.decisions(), review.outcomes()
    taken = {ACCEPTED, EDITED}
    _write_rows(workdir / CLEAN, [found for found in outcomes if found[1].said in taken])
    _write_rows(workdir / LEFT_OUT, [found for found in outcomes if found[1].said not in taken])
    every = [decision for of_item in decisions.values() for decision in of_item.values()]
    counts = collections.Counter(outcome.said for _, outcome in outcomes)
    result = {
        "items": len(items),
        **{said: counts[said] for said in OUTCOMES},
        "decisions": len(every),
        "reviewers": _by_reviewer(every),
        "flags": {rule: sum(rule in decision.flags for decision in every) for rule in guidelines.names()},
        "agreement": agreements(decisions.values(), rules=guidelines.names()),
    }
    write_json(workdir / "review.json", result)
    conflicts = [found for found in outcomes if found[1].said == CONFLICT]
    _write_report(workdir / "review.md", result, conflicts[:_CONFLICTS], title=options.title)
    return {key: result[key] for key in ("items", *OUTCOMES, "decisions")}


def _by_reviewer(decisions: Sequence[Decision]) -> dict[str, dict[str, int]]:
    found = collections.defaultdict[str, collections.Counter[str]](collections.Counter)
    for decision in decisions:
        found[decision.reviewer][decision.verdict] += 1
    return {name: dict(counts) for name, counts in sorted(found.items())}


def _write_rows(path: Path, rows: Sequence[tuple[ReviewItem, Outcome]]) -> None:
    lines = []
    for item, outcome in rows:
        record = item.with_texts(outcome.texts) if outcome.texts else dict(item.record)
        said = [
            {name: value for name, value in dataclasses.asdict(decision).items() if name not in ("item", "texts")}
            for decision in outcome.decisions
        ]
        record["review"] = {"item": item.id, "outcome": outcome.said, "decisions": said}
        lines.append(json_text(record) + "\n")
    write_text(path, "".join(lines))


def _write_report(
    path: Path, found: dict[str, Any], conflicts: Sequence[tuple[ReviewItem, Outcome]], *, title: str
) -> None:
    shown = [
        block
        for item, outcome in conflicts
        for block in (
            ", ".join(f"{plain(decision.reviewer)}: {decision.verdict}" for decision in outcome.decisions),
            *(quote(text[:_SHOWN]) for text in (*(passage.text for passage in item.left), *item.texts)),
        )
    ]
    reviewers = [{"reviewer": name, **counts} for name, counts in found["reviewers"].items()]
    flagged = [{"guideline": rule, "decisions that flag it": count} for rule, count in found["flags"].items()]
    sections = [
        section("Items", table([{said: found[said] for said in ("items", *OUTCOMES)}])),
        section("Reviewers", table(reviewers, ["reviewer", "accept", "edit", "reject"]) if reviewers else "None yet."),
        section("Guidelines", table(flagged)),
        section("Agreement", table(found["agreement"]) if found["agreement"] else "No two decided on one item."),
        section("Conflicts", *(shown or ["None."])),
    ]
    write_report(path, title=title, sections=sections)
