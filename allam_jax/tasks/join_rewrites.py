"""Task `join_rewrites`: the parts of one `rewrite` or `translate`, joined to what one machine would have written."""

from pathlib import Path
from typing import Any

from allam_jax.config import require
from allam_jax.files import write_json
from allam_jax.rewriting.rewrite_parts import join_parts, read_parts
from allam_jax.settings import Settings


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Writes what task `rewrite` writes, but for the answers, which stay with the parts; returns its counts."""
    directory = require(config.join_rewrites.input, key="join_rewrites.input", hint="give the folder of the parts")
    report = join_parts(read_parts(Path(directory)), workdir)
    result = report.summary()
    report.write_examples(workdir / "failed.md")
    write_json(workdir / "report.json", result)
    return result
