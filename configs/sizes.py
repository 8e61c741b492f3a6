"""A Llama continued on what a group has: one card, one node, eight nodes.

    python run.py --config configs/sizes.py:1b_24gb --config.task=plan
    python run.py --config configs/sizes.py:1b_24gb --config.init.weights=DIR     # DIR: what the expand task wrote

Plans, with the step compiled; predictions, no run:

| argument | model | GPUs | mesh | remat | accumulation | GiB | s a step | tokens/s/GPU | MFU | days |
|---|---|---|---|---|---|---|---|---|---|---|
| `1b_24gb` | TinyLlama 1.1B | 1 RTX 4090 | 1 x 1 x 1 | full | 64 | 19.9 | 27.8 | 9,423 | 39.7% | 2.5 for 2B tokens |
| `7b_8h100` | Llama-2 7B | 8 H100 | 1 x 8 x 1 | dots | 64 | 43.3 | 43.6 | 12,032 | 53.1% | 2.4 for 20B tokens |
| `7b_64h100` | Llama-2 7B | 64 H100 | 4 x 16 x 1 | dots | 4 | 60.4 | 5.29 | 12,396 | 54.7% | 0.3 for 20B tokens |

The card holds 1.2 billion parameters in float32 with their moments, the first of them in bfloat16, and the sum of the
gradients: 17.7 GiB, before any activation. A vocabulary of 48,000 instead of 64,000 makes the room for two rows.
docs/clusters.md has job scripts.
"""

from ml_collections import ConfigDict

from allam_jax.errors import UserError
from allam_jax.model.llama_config import preset
from configs import allam

_NODES = {"7b_8h100": 1, "7b_64h100": 8}


def get_config(size: str = "1b_24gb") -> ConfigDict:
    if size == "1b_24gb":
        return _one_card()
    if size not in _NODES:
        raise UserError(f"--config configs/sizes.py:{size}: expected 1b_24gb, {' or '.join(_NODES)}")
    config = allam.continued(preset("llama2_7b"), tokens=20e9, weights="runs/expand_7b/weights")
    nodes = _NODES[size]
    config.plan.update(gpu="h100", nodes=nodes, gpus_per_node=8)
    config.mesh.update(data=-1, fsdp=8 if nodes == 1 else 16, tensor=1)
    config.train.accumulation = 64 if nodes == 1 else 4
    return config


def _one_card() -> ConfigDict:
    rows, length, tokens = 128, 2048, 2e9
    config = allam.continued(preset("tinyllama_1b"), tokens=tokens, weights="runs/expand_1b/weights")
    config.model.update(vocab_size=48_000, max_position=length)
    config.compute.remat = "full"
    config.data.update(seq_len=length, batch_size=rows)
    config.train.update(steps=round(tokens / (rows * length)), accumulation=64, loss_chunks=8)
    config.optimizer.first_moment_dtype = "bfloat16"
    config.eval.update(every=500, batch_size=8)
    config.checkpoint.update(every=250, keep_last=2, keep_every=2000)
    config.mesh.update(data=1, fsdp=1, tensor=1)
    config.plan.update(gpu="rtx4090", nodes=1, gpus_per_node=1)
    return config
