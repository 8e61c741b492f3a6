"""ALLaM 7B, continued from Llama-2 7B with the merged vocabulary: 1.2T tokens, 55 % English, constant 3e-5.

    python run.py --config configs/allam_7b.py --config.task=plan
    python run.py --config configs/allam_7b.py --config.init.weights=DIR     # DIR: what the expand task wrote

Plans: a fast layout that fits, found by `--config.plan.search=true`, with the step compiled; predictions, no run.
Mesh: data x fsdp x tensor.

| GPUs | mesh | remat | accumulation | GiB | s a step | tokens/s/GPU | MFU | days, 1.2T | MWh in all |
|---|---|---|---|---|---|---|---|---|---|
| 128 A100 | 4 x 32 x 1 | dots | 2 | 56.4 | 8.15 | 4,022 | 56.3% | 27.0 | 63 |
| 1,024 A100 | 32 x 32 x 1 | dots | 1 | 16.6 | 1.21 | 3,396 | 47.5% | 4.0 | 75 |
| 128 H100 | 8 x 16 x 1 | dots | 2 | 60.4 | 2.66 | 12,331 | 54.4% | 8.8 | 32 |
"""

from ml_collections import ConfigDict

from allam_jax.model.llama_config import preset
from configs import allam


def get_config() -> ConfigDict:
    config = allam.continued(preset("llama2_7b"), tokens=1.2e12, weights="runs/expand_7b/weights")
    config.mesh.update(data=-1, fsdp=64, tensor=1)
    config.train.accumulation = 2
    config.plan.nodes = 16
    return config
