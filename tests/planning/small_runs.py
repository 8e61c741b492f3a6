"""Runs small enough to be counted by hand."""

import dataclasses

from allam_jax.tasks.registry import settings_of
from allam_jax.training.run_description import RunDescription, described_run
from configs import base
from tests.small_models import SMALL


def small_config(**mesh: int):
    """A train config of the SMALL model: 16 rows of 8 tokens, everything in float32."""
    config = base.get_config("plan")
    config.model = base.model(SMALL)
    config.compute.update(attention="xla", remat="full")
    config.mesh.update(**mesh)
    config.data.update(seq_len=8, batch_size=16)
    config.train.update(loss_chunks=2, steps=50)
    config.plan.update(gpu="a100", nodes=1, gpus_per_node=8, compile=False)
    return config


def small_run(*, data: int, fsdp: int, tensor: int, remat: str = "full", accumulation: int = 1) -> RunDescription:
    config = small_config(data=data, fsdp=fsdp, tensor=tensor)
    config.compute.remat = remat
    config.train.accumulation = accumulation
    return described_run(settings_of(config), device_count=data * fsdp * tensor)


def with_model(run: RunDescription, **shape: int) -> RunDescription:
    return dataclasses.replace(run, model=dataclasses.replace(run.model, **shape))
