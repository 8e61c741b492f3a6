"""Preference optimisation, as the ALLaM paper does it: DPO, 512 pairs a step, 9e-7 down to 5e-7, one epoch.

    python run.py --config configs/dpo.py --config.init.weights=DIR --config.conversations.sources.pairs.path=FILES
    python run.py --config configs/dpo.py:tiny

Both sides of a pair are segments of one row of 4,096 tokens: 64 rows hold about 512 pairs of 500 tokens, and the log
says how many they are. `--config.conversations.packed=False --config.data.batch_size=512` gives exactly 512. The paper
does not give its beta; 0.1 is that of the DPO paper.

`tiny` goes on from configs/sft.py:tiny with 60 pairs about capitals (configs/chats), in half a minute more.
"""

from ml_collections import ConfigDict

from allam_jax.errors import UserError
from configs import base, sft


def get_config(size: str = "paper") -> ConfigDict:
    if size == "tiny":
        return base.longer(sft.get_config("tiny"), dpo=small())
    if size != "paper":
        raise UserError(f"--config configs/dpo.py:{size}: expected tiny, or no argument")
    config = base.get_config("dpo")
    config.conversations.sources.pairs = base.conversations(path="chats/pairs")
    sft.at_paper_scale(config)
    config.data.batch_size = 64
    config.conversations.update(epochs=1.0, too_long="skip")
    config.schedule.update(name="cosine", peak_lr=9e-7, warmup_steps=10, final_fraction=5 / 9)
    config.dpo.beta = 0.1
    return config


def small() -> ConfigDict:
    """A stage of seconds behind those of configs/sft.py:tiny."""
    config = base.get_config("dpo")
    config.init.weights = "@sft"
    config.conversations.sources.pairs = base.conversations(path=str(sft.CHATS / "pairs.jsonl"))
    config.conversations.update(epochs=4.0, held_out_share=0.1, too_long="skip")
    config.data.update(seq_len=128, batch_size=8)
    config.schedule.update(name="cosine", peak_lr=2e-5, warmup_steps=5, final_fraction=0.1)
    config.eval.every = 20
    config.checkpoint.update(every=0, keep_last=1)
    config.metrics.tensorboard = False
    return config
