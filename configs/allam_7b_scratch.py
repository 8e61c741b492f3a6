"""ALLaM 7B from scratch: 4T tokens of English, then 1.2T mixed with the recipe of continued pre-training.

    python run.py --config configs/allam_7b_scratch.py:english --config.tokenizer=DIR
    python run.py --config configs/allam_7b_scratch.py:mixed --config.init.weights=runs/allam_7b_scratch
    python run.py --config configs/allam_7b_scratch.py:english --config.task=plan

The tokenizer is bilingual from the start, so nothing is expanded (paper, section 2.3). English ends at the 3e-5 at
which the mixture goes on, with the moments that it has: once a learning rate has gone down, raising it forgets.

Plans: a fast layout that fits, found by `--config.plan.search=true`, with the step compiled; predictions, no run.
Mesh: data x fsdp x tensor.

| GPUs | mesh | remat | accumulation | GiB | s a step | tokens/s/GPU | MFU | days, 4T | days, 1.2T | MWh in all |
|---|---|---|---|---|---|---|---|---|---|---|
| 128 A100 | 4 x 32 x 1 | dots | 2 | 56.4 | 8.15 | 4,022 | 56.3% | 89.9 | 27.0 | 274 |
| 1,024 A100 | 32 x 32 x 1 | dots | 1 | 16.6 | 1.21 | 3,396 | 47.5% | 13.3 | 4.0 | 324 |
| 128 H100 | 8 x 16 x 1 | dots | 2 | 60.4 | 2.66 | 12,331 | 54.4% | 29.3 | 8.8 | 140 |
"""

from ml_collections import ConfigDict

from allam_jax.errors import UserError
from allam_jax.model.llama_config import preset
from configs import allam


def get_config(phase: str = "english") -> ConfigDict:
    if phase == "english":
        config = allam.pretraining(preset("llama2_7b"), tokens=4e12, sources={"english": 1.0})
        config.schedule.update(name="cosine", peak_lr=3e-4, warmup_steps=2000, final_fraction=0.1)
    elif phase == "mixed":
        config = allam.pretraining(preset("llama2_7b"), tokens=1.2e12, sources=allam.MIXED)
        config.init.update(weights="runs/allam_7b_scratch", optimizer=True)
        config.schedule.update(name="constant", peak_lr=3e-5)
    else:
        raise UserError(f"--config configs/allam_7b_scratch.py:{phase}: expected english or mixed")
    config.mesh.update(data=-1, fsdp=64, tensor=1)
    config.train.update(accumulation=2, z_loss=1e-5)
    config.plan.nodes = 16
    return config
