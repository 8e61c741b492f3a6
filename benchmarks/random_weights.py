"""A model of random weights that both sides of a benchmark load."""

from pathlib import Path
from typing import Any


def write_weights(directory: Path, **shape: Any) -> None:
    """Writes random weights as a Hugging Face directory; `shape` are keys of transformers' LlamaConfig."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(directory)
