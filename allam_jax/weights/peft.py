"""Writes low-rank adapters as PEFT reads them: `adapter_config.json` and `adapter_model.safetensors`.

PEFT stores A as [rank, inputs] and B as [outputs, rank], one pair a layer, with heads folded into inputs or outputs.
Embeddings and heads that were trained too are stored whole, as `modules_to_save`.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from allam_jax.checksums import write_list
from allam_jax.files import atomic_path, write_json
from allam_jax.model.llama import LORA, Params
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.model.settings import LORA_TARGETS, LoraSettings
from allam_jax.weights import safetensors_io
from allam_jax.weights.huggingface import pieces_of
from allam_jax.weights.safetensors_io import TensorToWrite

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_WHOLE = {("embedding", "table"): "embed_tokens", ("head", "kernel"): "lm_head"}


def export_adapter(
    directory: Path,
    *,
    params: Params,
    config: LlamaConfig,
    settings: LoraSettings,
    base: str,
) -> None:
    """Writes the adapters of `params` into `directory`, atomically; for one process that holds all arrays.

    Args:
        directory: what is written.
        params: the adapters, and the embedding and the head where they were trained too.
        config: the architecture.
        settings: of the adapters.
        base: path or name of the model that they belong to, for `base_model_name_or_path`.
    """
    pieces, adapters, tensors = pieces_of(config), params[LORA]["layers"], list[TensorToWrite]()
    modules = []
    for room, of_room in adapters.items():
        for name in (target for target in LORA_TARGETS if target in of_room):
            a, b = (np.asarray(of_room[name][which], np.float32) for which in ("a", "b"))
            rank = a.shape[-1]
            modules.append(pieces["layers", room, name][0].name.split(".")[-2])
            for piece in pieces["layers", room, name]:
                own = f"{_PREFIX}{piece.name.removesuffix('.weight')}"
                tensors.append(_tensor(f"{own}.lora_A.weight", a[piece.layer].reshape(-1, rank).T))
                tensors.append(_tensor(f"{own}.lora_B.weight", b[piece.layer].reshape(rank, -1).T))
    tables = {path: module for path, module in _WHOLE.items() if path[0] in params}
    for room, name in tables:
        (piece,) = pieces[room, name]
        table = np.asarray(params[room][name], np.float32)
        rows = table if piece.mapping.to_ours == (0, 1) else table.T
        tensors.append(_tensor(f"{_PREFIX}{piece.name}", rows[: config.vocab_size]))
    with atomic_path(directory) as temporary:
        temporary.mkdir()
        safetensors_io.write_directory(temporary, tensors, max_shard_bytes=1 << 62)
        os.replace(temporary / safetensors_io.SINGLE_FILE, temporary / WEIGHTS_FILE)
        values = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": settings.rank,
            "lora_alpha": settings.alpha,
            "use_rslora": settings.rank_stabilised,
            "target_modules": modules,
            "modules_to_save": list(tables.values()) or None,
            "lora_dropout": 0.0,
            "bias": "none",
            "inference_mode": True,
        }
        write_json(temporary / CONFIG_FILE, values)
        write_list(temporary)


def _tensor(name: str, values: np.ndarray) -> TensorToWrite:
    def blocks() -> Iterator[np.ndarray]:
        yield np.ascontiguousarray(values)

    return TensorToWrite(name=name, dtype=values.dtype, shape=values.shape, blocks=blocks)
