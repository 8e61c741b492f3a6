"""The part of task `sft_quality` that needs a model: how much rows differ in meaning, and which say nearly the same.

It writes alike.jsonl and meanings.png into the workdir.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from allam_jax.alignment.chat_quality import Row
from allam_jax.alignment.semantic_diversity import Meanings
from allam_jax.errors import UserError
from allam_jax.evaluation.sentence_states import last_states
from allam_jax.files import write_json_lines
from allam_jax.parallel.mesh import make_mesh
from allam_jax.report.markdown import figure, section, table
from allam_jax.report.style import COLOURS, STYLE, save_figure, subplots
from allam_jax.settings import Settings
from allam_jax.tasks.setup import open_model

_CLUSTERS_SHOWN, _PAIRS_SHOWN, _LONGEST_SHOWN = 10, 20, 200


def meanings_of_rows(
    rows: Sequence[Row], config: Settings, workdir: Path
) -> tuple[Mapping[str, Mapping[str, Any]], str]:
    """For each source what `Meanings.summary` says, and the section of the report.

    UserError where fewer than two rows can be read.
    """
    options = config.chat_quality
    read = [row for row in rows if row.examined.text]
    if len(read) < 2:
        raise UserError("config.init.weights: there are no two rows whose meanings could be compared; leave it empty")
    draw = random.Random(config.seed)
    chosen = [read[place] for place in sorted(draw.sample(range(len(read)), min(options.embedded, len(read))))]
    meanings = Meanings.of(_embeddings(chosen, config), clusters=options.clusters, seed=config.seed)
    alike = meanings.alike(least=options.alike)
    write_json_lines(
        workdir / "alike.jsonl",
        ({"cosine": cosine, "rows": [_named(chosen[one]), _named(chosen[two])]} for one, two, cosine in alike),
    )
    places: dict[str, list[int]] = {}
    for place, row in enumerate(chosen):
        places.setdefault(row.source, []).append(place)
    found = {name: meanings.summary(own, least=options.alike) for name, own in places.items()}

    _draw(meanings, places, workdir / "meanings.png")
    facts = [{"source": name, **own} for name, own in found.items()]
    pairs = [
        {"cosine": cosine, "one": _shown(chosen[one]), "other": _shown(chosen[two])}
        for one, two, cosine in alike[:_PAIRS_SHOWN]
    ]
    clusters = list(_of_clusters(chosen, meanings, samples=options.samples, draw=draw))
    caption = "Cosine of each row with its nearest neighbour, and sizes of the clusters."
    block = section(
        "Meanings",
        "By the mean hidden states of the model. Effective clusters: of how many clusters of equal size the rows are.",
        table(facts, {key: key.replace("_", " ") for key in facts[0]}),
        figure(workdir / "meanings.png", caption=caption, report=workdir / "report.md"),
        section(f"Rows that say nearly the same ({len(alike):,}, the nearest first)", table(pairs), level=3),
        section("Rows of the largest clusters", table(clusters), level=3),
    )
    return found, block


def _embeddings(rows: Sequence[Row], config: Settings) -> np.ndarray:
    """[N, D], computed on one device of this process: the task runs in the first one alone."""
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, devices=jax.local_devices()[:1])
    loaded, tokenizer, _ = open_model(config, mesh=mesh)
    texts = tokenizer.encode_batch([row.examined.text for row in rows])
    return last_states(loaded.params, texts, config=loaded.config, options=config.compute)


def _named(row: Row) -> dict[str, Any]:
    return {"source": row.source, "row": row.number, "text": row.examined.text}


def _shown(row: Row) -> str:
    return f"{row.source} {row.number}: {' '.join(row.examined.text.split())[:_LONGEST_SHOWN]}"


def _of_clusters(rows: Sequence[Row], meanings: Meanings, *, samples: int, draw: random.Random):
    """Rows of the largest clusters, drawn at random."""
    for cluster in range(min(_CLUSTERS_SHOWN, int(meanings.cluster_N.max()) + 1)):
        own = np.flatnonzero(meanings.cluster_N == cluster).tolist()
        for place in sorted(draw.sample(own, min(samples, len(own)))):
            yield {"cluster": cluster + 1, "its rows": len(own), "row": _shown(rows[place])}


def _draw(meanings: Meanings, places: Mapping[str, Sequence[int]], path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context(STYLE):
        drawn, axes = subplots(rows=1, columns=2, size=(8.0, 3.2), heights=(1,))
        nearness, sizes = axes[0]
        for number, (source, own) in enumerate(places.items()):
            colour = COLOURS[number % len(COLOURS)]
            nearness.hist(meanings.cosine_N[own], bins=30, histtype="step", label=source, color=colour)
        nearness.set_xlabel("Cosine with the nearest row")
        nearness.set_ylabel("Rows")
        nearness.legend(frameon=False)
        counts = np.bincount(meanings.cluster_N)
        sizes.bar(np.arange(1, len(counts) + 1), counts, color=COLOURS[0])
        sizes.set_xlabel("Cluster")
        sizes.set_ylabel("Rows")
        save_figure(drawn, path)
