"""ALLaM 13B, continued from Llama-2 13B with the merged vocabulary: 1.2T tokens, 55 % English, constant 3e-5.

    python run.py --config configs/allam_13b.py --config.task=plan
    python run.py --config configs/allam_13b.py --config.init.weights=DIR     # DIR: what the expand task wrote

Plans: the fastest layout that fits, by `--config.plan.search=true` with the step compiled; predictions, no run. Mesh:
data x fsdp x tensor.

| GPUs | mesh | remat | accumulation | GiB | s a step | tokens/s/GPU | MFU | days, 1.2T | MWh in all |
|---|---|---|---|---|---|---|---|---|---|
| 128 A100 | 4 x 32 x 1 | dots | 4 | 47.5 | 15.85 | 2,067 | 55.1% | 52.5 | 123 |
| 1,024 A100 | 32 x 32 x 1 | dots | 1 | 26.1 | 2.11 | 1,939 | 51.6% | 7.0 | 131 |
| 128 H100 | 4 x 32 x 1 | dots | 4 | 47.2 | 5.53 | 5,922 | 49.8% | 18.3 | 67 |
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
