"""Task `seed`: the pool of documents that people or an expert model rewrite, so that a worker can learn from them.

WORKDIR/NAME/        the pool, a dataset like any other: task `rewrite` takes it with an expert's endpoint
WORKDIR/pool.md      how many documents each stratum has and gives; the numbers are in pool.json
"""

from pathlib import Path
from typing import Any

from allam_jax.config import require
from allam_jax.corpus.shards import check_name, write_dataset
from allam_jax.data.documents import DocumentSource
from allam_jax.errors import UserError
from allam_jax.files import child, write_json
from allam_jax.report.markdown import section, table, write_report
from allam_jax.rewriting.seed_pool import SeedPool
from allam_jax.settings import Settings


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Draws the pool from `seed_pool.inputs`; returns how many documents there are and were drawn."""
    options = config.seed_pool
    inputs = require(options.inputs, key="seed_pool.inputs", hint="name at least one deduplicated dataset")
    check_name(options.name)
    sources = {name: DocumentSource(path, split=options.split) for name, path in inputs.items()}
    pool = SeedPool(sources, options, seed=config.seed)
    strata: list[dict[str, Any]] = [
        {"domain": domain, "language": language, "available": count, "drawn": pool.drawn[domain, language]}
        for (domain, language), count in pool.available.items()
    ]
    if not strata:
        raise UserError("config.seed_pool.inputs: no document has between least_bytes and most_bytes; change these")
    write_dataset(
        pool.documents(),
        directory=child(workdir, options.name, what="config.seed_pool.name"),
        name=options.name,
        validation_share=0.0,
        metadata={"origin": "seed pool", "made_of": {name: source.fingerprint for name, source in sources.items()}},
    )
    result = {key: sum(stratum[key] for stratum in strata) for key in ("available", "drawn")}
    write_json(workdir / "pool.json", {**result, "strata": strata})
    write_report(workdir / "pool.md", title="Seed pool", sections=[section("Strata", table(strata))])
    return {**result, "strata": len(strata)}
