"""What CPUs cannot hold is told before it is allocated."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from allam_jax.errors import UserError
from allam_jax.model.llama_config import preset
from allam_jax.parallel import host_memory
from allam_jax.parallel.mesh import make_mesh
from allam_jax.planning.fit import check_fits
from allam_jax.tasks.registry import settings_of
from allam_jax.training.run_description import described_run
from configs import base

MESH = {"data": 2, "fsdp": 4, "tensor": 1}


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec("fsdp"), PartitionSpec(("data", "fsdp"))])
def test_arrays_count_once_however_they_are_sharded(monkeypatch, spec):
    array = jax.ShapeDtypeStruct((16, 8), jnp.bfloat16, sharding=NamedSharding(make_mesh(MESH), spec))
    monkeypatch.setattr(host_memory, "memory_bytes", lambda: 2 * 256)
    host_memory.check_memory({"a": array, "b": [array]})
    monkeypatch.setattr(host_memory, "memory_bytes", lambda: 2 * 256 - 1)
    with pytest.raises(UserError, match="^the model's parameters alone need 0.0 GiB"):
        host_memory.check_memory({"a": array, "b": [array]})


def test_a_7b_run_on_a_laptop_is_refused_before_anything_is_allocated(monkeypatch):
    config = base.get_config("train")
    config.mesh.update(MESH)
    model = preset("llama2_7b")
    run = described_run(settings_of(config), device_count=8, model=model)
    monkeypatch.setattr(host_memory, "memory_bytes", lambda: 16 * 2**30)
    needed = 3 * 4 * model.num_parameters / 2**30  # float32: parameters and two moments
    message = f"the parameters and the optimizer's state alone need {needed:.1f} GiB, but this machine has 16.0 GiB"
    with pytest.raises(UserError, match=f"^{message} of memory; .*--config.task=plan"):
        check_fits(run, mesh=make_mesh(MESH))
