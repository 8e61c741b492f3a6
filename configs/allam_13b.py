"""ALLaM 13B, continued from Llama-2 13B with the merged vocabulary: 1.2T tokens, 55 % English, constant 3e-5.

    python run.py --config configs/allam_13b.py --config.task=plan
    python run.py --config configs/allam_13b.py --config.init.weights=DIR     # DIR: what the expand task wrote

Plans: a fast layout that fits, found by `--config.plan.search=true`, with the step compiled; predictions, no run.
Mesh: data x fsdp x tensor.

| GPUs | mesh | remat | accumulation | GiB | s a step | tokens/s/GPU | MFU | days, 1.2T | MWh in all |
|---|---|---|---|---|---|---|---|---|---|
| 128 A100 | 4 x 32 x 1 | dots | 4 | 47.5 | 15.62 | 2,098 | 55.9% | 51.7 | 121 |
| 1,024 A100 | 32 x 32 x 1 | dots | 1 | 26.1 | 2.18 | 1,877 | 50.0% | 7.2 | 135 |
| 128 H100 | 4 x 32 x 1 | dots | 4 | 47.2 | 5.28 | 6,202 | 52.1% | 17.5 | 64 |
"""

from ml_collections import ConfigDict

from allam_jax.model.llama_config import preset
from configs import allam


def get_config() -> ConfigDict:
    config = allam.continued(preset("llama2_13b"), tokens=1.2e12, weights="runs/expand_13b/weights")
    config.mesh.update(data=-1, fsdp=64, tensor=1)
    config.train.accumulation = 4
    config.plan.nodes = 16
    return config
