"""ALLaM 34B: a large constant learning rate, and for each release a short decay on the best data.

    python run.py --config configs/allam_34b.py --config.tokenizer=DIR
    python run.py --config configs/allam_34b.py:release --workdir runs/release     # from one of its checkpoints
    python run.py --config configs/allam_34b.py --config.task=plan

The talk: train at a constant rate; for a release, branch off, decay (WSD), then go back to the checkpoint before the
decay and on at the constant rate. The branch leaves the main run untouched. The talk gives neither the rate nor the
tokens: 1.5e-4 is Llama-2's for 34B and 70B, 4T the English phase of the 7B, 42B tokens of decay about 1 % of it.

Plans: a fast layout that fits, found by `--config.plan.search=true`, with the step compiled; predictions, no run.
Mesh: data x fsdp x tensor.

| GPUs | mesh | remat | accumulation | GiB | s a step | tokens/s/GPU | MFU | days, 4T | days, 42B release | MWh in all |
|---|---|---|---|---|---|---|---|---|---|---|
| 128 A100 | 1 x 64 x 2 | dots | 4 | 67.7 | 38.97 | 841 | 57.2% | 430.2 | 4.5 | 1,017 |
| 512 A100 | 4 x 128 x 1 | dots | 1 | 65.9 | 9.39 | 872 | 59.3% | 103.7 | 1.1 | 980 |
| 1,024 A100 | 16 x 64 x 1 | dots | 1 | 39.3 | 5.20 | 787 | 53.5% | 57.4 | 0.6 | 1,086 |
| 256 H100 | 1 x 256 x 1 | dots | 2 | 64.6 | 6.96 | 2,355 | 50.5% | 76.8 | 0.8 | 570 |
"""

from ml_collections import ConfigDict

from allam_jax.errors import UserError
from allam_jax.model.llama_config import preset
from configs import allam

RELEASE_STEP = 480_000  # of the main run, whose checkpoint the release starts from: 2T tokens
DECAY_STEPS = 10_000


def get_config(phase: str = "constant") -> ConfigDict:
    config = allam.pretraining(preset("allam_34b"), tokens=4e12, sources=allam.MIXED)
    config.train.z_loss = 1e-5
    if phase == "constant":
        config.schedule.update(name="constant", peak_lr=1.5e-4, warmup_steps=2000)
    elif phase == "release":
        checkpoint = f"runs/allam_34b/checkpoints/{RELEASE_STEP}"
        config.init.update(weights=checkpoint, optimizer=True, step=True)
        config.schedule.update(
            name="wsd", peak_lr=1.5e-4, warmup_steps=2000, decay_start=RELEASE_STEP, decay_steps=DECAY_STEPS
        )
        config.train.steps = RELEASE_STEP + DECAY_STEPS
        config.plan.tokens = DECAY_STEPS * allam.BATCH * allam.SEQ_LEN
    else:
        raise UserError(f"--config configs/allam_34b.py:{phase}: expected constant or release")
    config.mesh.update(data=-1, fsdp=128, tensor=1)
    config.plan.nodes = 64
    return config
