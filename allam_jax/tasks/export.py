"""Task `export`: bare weights for others to use, as a Hugging Face directory and as an Orbax weights directory."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from allam_jax.config import require
from allam_jax.model.llama import Params
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.settings import Settings
from allam_jax.tasks.setup import open_mesh, open_model
from allam_jax.tokenizer.tokenizer import Tokenizer
from allam_jax.weights.directory import save_weights
from allam_jax.weights.huggingface import export_huggingface


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Exports the model at `init.weights`, with its tokenizer, into `workdir/huggingface` and `workdir/orbax`."""
    require(config.export.formats, key="export.formats", hint="choose huggingface, orbax or both")
    loaded, tokenizer, tokenizer_dir = open_model(config, mesh=open_mesh(config))
    metadata = {key: loaded.metadata.get(key) for key in ("step", "parent", "code_revision", "tokens_by_source")}
    return write_formats(
        config,
        workdir,
        params=loaded.params,
        architecture=loaded.config,
        tokenizer=tokenizer,
        tokenizer_dir=tokenizer_dir,
        metadata=metadata | {"source": config.init.weights},
    )


def write_formats(
    config: Settings,
    workdir: Path,
    *,
    params: Params,
    architecture: LlamaConfig,
    tokenizer: Tokenizer,
    tokenizer_dir: Path,
    metadata: dict[str, Any],
) -> dict[str, str]:
    """Writes a model in each of `config.export.formats`; returns the directory of each.

    Args:
        config: its section `export` says how.
        workdir: what it writes is `huggingface` and `orbax` in there.
        params: arrays, or a `StreamedArray` for each.
        architecture: of the parameters.
        tokenizer: of the model.
        tokenizer_dir: whose files go along.
        metadata: of the weights directory; the tokenizer's fingerprint is added.
    """
    options = config.export
    paths = {}
    if "huggingface" in options.formats:
        special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
        export_huggingface(
            workdir / "huggingface",
            params=params,
            config=architecture,
            tokenizer_dir=tokenizer_dir,
            dtype=options.dtype or None,
            max_shard_bytes=int(options.max_shard_gb * 1e9),
            generation={name: value for name, value in special.items() if value is not None},
        )
        paths["huggingface"] = str(workdir / "huggingface")
    if "orbax" in options.formats:
        if options.dtype:
            params = jax.tree.map(lambda p: p.astype(jnp.dtype(options.dtype)), params)
        save_weights(
            workdir / "orbax",
            params=params,
            config=architecture,
            tokenizer_dir=tokenizer_dir,
            metadata=metadata | {"tokenizer": tokenizer.fingerprint},
        )
        paths["orbax"] = str(workdir / "orbax")
    logging.info("exported to %s", ", ".join(paths.values()))
    return paths
