"""Task `tokenize`: every source of `data.sources` becomes a token cache, `workdir/NAME`, that `path` may name instead.

The task is optional: training from documents gives the same batches, but runs the tokenizer in every epoch and run.
"""

from pathlib import Path
from typing import Any

from absl import logging

from allam_jax.config import require
from allam_jax.data.token_writer import write_tokens
from allam_jax.files import child
from allam_jax.settings import Settings
from allam_jax.training.origin import open_tokenizer


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Tokenises what is not there yet; returns documents, tokens and tokens of an epoch (`targets`) by source."""
    tokenizer, _ = open_tokenizer(config)
    require(config.data.sources, key="data.sources", hint="name at least one source")
    result = {}
    for name, source in config.data.sources.items():
        manifest = write_tokens(
            require(source.path, key=f"data.sources.{name}.path", hint="give a dataset directory"),
            split=source.split,
            tokenizer=tokenizer,
            directory=child(workdir, name, what="config.data.sources"),
        )
        result[name] = {key: manifest[key] for key in ("documents", "tokens", "targets")}
        logging.info("tokens of %s: %s", name, result[name])
    return result
