"""Task `preferences`: pairs for task `dpo` from conversations and answers of a model; goes on where it was killed.

The workdir holds answers/ and errors/ (`over_rows`), pairs.jsonl, and report.json with what was left out and why.
"""

import collections
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from allam_jax.alignment.answer_grid import GridBackend, asked_of, grid_of, pairs_of
from allam_jax.alignment.chat_files import chat_files, chat_records
from allam_jax.config import require
from allam_jax.errors import UserError
from allam_jax.files import write_json, write_json_lines
from allam_jax.generation.over_rows import Backend, over_rows, read_answers
from allam_jax.generation.requests import Sampling
from allam_jax.parallel.distributed import barrier, broadcast, is_main_process
from allam_jax.settings import Settings
from allam_jax.tasks.answering import content_of, open_answerer
from allam_jax.tasks.inputs_of_task import inputs_of_settings


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Answers the prompts of `preferences.input` and writes `workdir/pairs.jsonl`; returns what the report says."""
    options = config.preferences
    # ---- answers ----
    files = chat_files(require(options.input, key="preferences.input", hint="give conversations"))
    records = [record for file in files for record in chat_records(file)]
    grid = grid_of(options, seed=config.seed)
    answered = over_rows(
        itertools.starmap(asked_of, enumerate(records)),
        total=len(records),
        backend=_backend(config, grid),
        directory=workdir,
        identity={"input": content_of(inputs_of_settings(config)["preferences.input"])},
        shard_rows=options.shard_rows,
        max_error_share=options.max_error_share,
        writes=is_main_process(),
        agree=broadcast,
    )
    barrier("answered")

    # ---- pairs ----
    model = options.endpoint.model or config.init.weights
    points = [{"model": model, "temperature": at.temperature, "top_p": at.top_p, "seed": at.seed} for at in grid]
    left_out = collections.Counter[str]()
    pairs = [
        pair
        for row in read_answers(workdir)
        for pair in pairs_of(row, settings=options, points=points, left_out=left_out)
    ]
    if not pairs:
        raise UserError(f"preferences: no answer can be a rejected side ({dict(left_out.most_common(3))})")
    report = answered | {
        "pairs": len(pairs),
        "prompts_without_pair": answered["answered"] - len({pair["row"] for pair in pairs}),
        "left_out": dict(left_out.most_common()),
    }
    if is_main_process():
        write_json_lines(workdir / "pairs.jsonl", pairs)
        write_json(workdir / "report.json", report)
    return report


def _backend(config: Settings, grid: Sequence[Sampling]) -> Backend:
    """One backend a point of the grid, all with the same model."""
    answerer = open_answerer(config, section="preferences", messages=True)
    return GridBackend([answerer.backend(at) for at in grid])
