"""Supervised fine-tuning on conversations, as the ALLaM paper does it: 3 epochs at 5e-6, turn augmentation.

    python run.py --config configs/sft.py --config.init.weights=DIR --config.conversations.sources.arabic.path=FILES \
        --config.conversations.sources.english.path=FILES
    python run.py --config configs/sft.py:worker --config.init.weights=DIR \
        --config.conversations.sources.pairs.path=runs/pairs/training.jsonl
    python run.py --config configs/sft.py:tiny

`worker` trains an alignment worker on the pairs of configs/seed.py:pairs, in the same setting.
The paper's batch is 1,024 samples. Here samples share rows of 4,096 tokens: 128 rows hold about so many of 500 tokens,
and the log says how many they are. `--config.conversations.packed=False --config.data.batch_size=1024` gives exactly
1,024, most of each row being padding.

`tiny` trains the model of configs/tiny.py and fine-tunes it on 120 conversations about capitals (configs/chats): three
to five minutes on two cores, 3.3 MB of downloads.
"""

from pathlib import Path

from ml_collections import ConfigDict

from allam_jax.errors import UserError
from configs import base, tiny

CHATS = Path(__file__).parent / "chats"
LANGUAGES = {"arabic": "ar", "english": "en"}


def get_config(size: str = "paper") -> ConfigDict:
    if size == "tiny":
        return base.longer(tiny.get_config(), sft=small())
    if size not in ("paper", "worker"):
        raise UserError(f"--config configs/sft.py:{size}: expected worker, tiny, or no argument")
    config = base.get_config("sft")
    if size == "worker":
        config.conversations.sources.pairs = base.conversations(path="pairs/training.jsonl")
    else:
        for name, language in LANGUAGES.items():
            config.conversations.sources[name] = base.conversations(path=f"chats/{name}", language=language)
    at_paper_scale(config)
    config.data.batch_size = 128
    config.conversations.epochs = 3.0
    config.schedule.update(name="cosine", peak_lr=5e-6, warmup_steps=100, final_fraction=0.1)
    return config


def at_paper_scale(config: ConfigDict) -> None:
    """Mixed precision, long rows and few checkpoints, on any number of GPUs."""
    config.data.seq_len = 4096
    config.compute.update(compute_dtype="bfloat16", remat="dots")
    config.mesh.update(data=1, fsdp=-1, tensor=1)
    config.optimizer.weight_decay = 0.0
    config.train.loss_chunks = 8
    config.eval.update(every=200, batch_size=64)
    config.checkpoint.update(every=200, keep_last=2)
    config.watch.update(prompts=64, every=200, max_new_tokens=512)


def small() -> ConfigDict:
    """A stage of seconds behind those of configs/tiny.py."""
    config = base.get_config("sft")
    config.init.weights = "@continued"
    for name, language in LANGUAGES.items():
        config.conversations.sources[name] = base.conversations(path=str(CHATS / f"{name}.jsonl"), language=language)
    config.conversations.update(epochs=20.0, held_out_share=0.1)
    config.data.update(seq_len=128, batch_size=8)
    config.schedule.update(name="cosine", peak_lr=1e-3, warmup_steps=10, final_fraction=0.1)
    config.eval.every = 40
    config.checkpoint.update(every=0, keep_last=1)
    config.metrics.tensorboard = False
    return config
