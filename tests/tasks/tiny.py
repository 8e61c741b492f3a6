"""A run of seconds, for tests: `--config tests/tasks/tiny.py:ROOT`, where ROOT holds what conftest.py has written.

Everything that has a state is on: dropout, accumulation, two sources, a WSD schedule, evaluation on the way.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(root: str) -> ConfigDict:
    config = base.get_config("train")
    config.tokenizer = f"{root}/tokenizer"
    config.model.update(
        dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64, vocab_multiple=32, max_position=32
    )
    config.compute.dropout_residual = 0.1
    config.compute.dropout_embedding = 0.1
    config.data.sources.en = base.mixture(path=f"{root}/corpus/en", weight=2.0)
    config.data.sources.ar = base.mixture(path=f"{root}/corpus/ar")
    config.data.update(seq_len=32, batch_size=8)
    config.eval.sources.en = base.mixture(path=f"{root}/corpus/en", split="validation")
    config.eval.update(every=5, batch_size=4)
    config.train.update(steps=40, accumulation=2, z_loss=1e-5, loss_chunks=2)
    config.schedule.update(name="wsd", peak_lr=3e-3, warmup_steps=3, decay_start=28, decay_steps=12)
    config.guard.min_history = 8
    config.checkpoint.update(every=4, keep_last=2, keep_every=8)
    config.metrics.tensorboard = False
    return config
