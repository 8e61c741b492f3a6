"""ALLaM 70B, continued from Llama-2 70B with the merged vocabulary: 600B tokens, 55 % English, constant 3e-5.

    python run.py --config configs/allam_70b.py --config.task=plan
    python run.py --config configs/allam_70b.py --config.init.weights=DIR     # DIR: what the expand task wrote

Plans: a fast layout that fits, found by `--config.plan.search=true`, with the step compiled; predictions, no run.
Mesh: data x fsdp x tensor.

| GPUs | mesh | remat | accumulation | GiB | s a step | tokens/s/GPU | MFU | days, 600B | MWh in all |
|---|---|---|---|---|---|---|---|---|---|
| 128 A100 | 1 x 64 x 2 | dots | 8 | 69.6 | 84.32 | 389 | 53.6% | 139.6 | 327 |
| 1,024 A100 | 8 x 128 x 1 | dots | 1 | 67.3 | 10.43 | 393 | 54.1% | 17.3 | 323 |
| 512 H100 | 4 x 64 x 2 | dots | 2 | 69.4 | 7.80 | 1,050 | 45.6% | 12.9 | 190 |
"""

from ml_collections import ConfigDict

from allam_jax.model.llama_config import preset
from configs import allam


def get_config() -> ConfigDict:
    config = allam.continued(preset("llama2_70b"), tokens=600e9, weights="runs/expand_70b/weights")
    config.mesh.update(data=-1, fsdp=128, tensor=1)
    config.plan.nodes = 128
    return config
