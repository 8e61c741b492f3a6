"""Task `export`: bare weights for others to use: a Hugging Face directory, an Orbax weights directory, a GGUF file."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from allam_jax.config import require
from allam_jax.errors import UserError
from allam_jax.model.llama import Params
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.settings import Settings
from allam_jax.tasks.setup import open_mesh, open_model
from allam_jax.tokenizer.chat_template import stored_template
from allam_jax.tokenizer.generation_config import complete_generation
from allam_jax.tokenizer.sentencepiece_model import SentencePieceModel
from allam_jax.tokenizer.tokenizer import Tokenizer
from allam_jax.weights.directory import save_weights
from allam_jax.weights.gguf_export import export_gguf
from allam_jax.weights.huggingface import export_huggingface
from allam_jax.weights.settings import FORMATS


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Exports the model at `init.weights`, with its tokenizer, into a folder of `workdir` for each format."""
    require(config.export.formats, key="export.formats", hint="choose some of huggingface, orbax and gguf")
    if config.init.weights and Path(config.init.weights).resolve().parent == workdir.resolve():
        raise UserError(f"config.init.weights = {config.init.weights!r}: lies where is written; use another --workdir")
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
    """Writes a model into a folder of `workdir` for each of `config.export.formats`; returns the directories.

    `params` are arrays, or a `StreamedArray` for each. The tokenizer's fingerprint is added to the metadata.
    """
    options = config.export
    paths = {name: str(workdir / name) for name in FORMATS if name in options.formats}
    generation = complete_generation(tokenizer, tokenizer_dir)
    if "gguf" in paths:  # first, because it may be refused
        export_gguf(
            workdir / "gguf",
            params=params,
            config=architecture,
            tokenizer=tokenizer,
            kind=options.gguf_type,
            generation=generation,
            template=stored_template(tokenizer_dir),
        )
    if "huggingface" in paths:
        pad_id = generation.get("pad_token_id")
        if architecture.model_type == "qwen2" and isinstance(tokenizer.model, SentencePieceModel):
            logging.warning(
                "transformers 5 takes the tokenizer of every qwen2 model for Qwen's, with other ids than this one's; "
                "load it with PreTrainedTokenizerFast instead of AutoTokenizer"
            )
        export_huggingface(
            workdir / "huggingface",
            params=params,
            config=architecture,
            tokenizer_dir=tokenizer_dir,
            dtype=options.dtype or None,
            max_shard_bytes=int(options.max_shard_gb * 1e9),
            generation=generation,
            pad_token="" if pad_id is None else tokenizer.id_to_piece(pad_id),
        )
    if "orbax" in paths:
        if options.dtype:
            params = jax.tree.map(lambda p: p.astype(jnp.dtype(options.dtype)), params)
        save_weights(
            workdir / "orbax",
            params=params,
            config=architecture,
            tokenizer_dir=tokenizer_dir,
            metadata=metadata | {"tokenizer": tokenizer.fingerprint},
        )
    logging.info("exported to %s", ", ".join(paths.values()))
    return paths
