import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kernels.attention.api import Partition, attend
from kernels.workshop.cases import Case
from tests.kernels.attention_truth import assert_true

PARTITION = Partition(batch=("data", "fsdp"), heads=("tensor",))
MESHES = [(8, 1, 1), (1, 2, 4), (1, 1, 8), (2, 2, 2)]
CASES = [
    Case(name="grouped", batch=8, seq_len=48, num_heads=8, num_kv_heads=4, head_dim=8, documents=(30, 12)),
    Case(name="one_kv_head", batch=8, seq_len=32, num_heads=8, num_kv_heads=1, head_dim=8, dropout_rate=0.2),
    Case(name="few_rows", batch=2, seq_len=32, num_heads=8, num_kv_heads=2, head_dim=8, dropout_rate=0.2),
    Case(name="groups_end_inside_shards", batch=4, seq_len=32, num_heads=24, num_kv_heads=3, head_dim=8),
]


def on_mesh(shape):
    return Mesh(np.array(jax.devices()).reshape(shape), ("data", "fsdp", "tensor"))


@pytest.mark.parametrize("shape", MESHES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_shards_give_the_whole(case, shape):
    with jax.set_mesh(on_mesh(shape)):
        assert_true(functools.partial(attend, partition=PARTITION), case)


def test_shards_exchange_nothing():
    case = CASES[0]
    mesh = on_mesh((2, 2, 2))
    heads = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def loss(q, k, v, ids, partition):
        return attend(q, k, v, case.request(ids), partition=partition).out_BTNH

    def collectives(partition):
        with jax.set_mesh(mesh):
            arrays = [jax.device_put(a, heads) for a in case.arrays()]
            ids = jax.device_put(case.segment_ids_BT(), rows)
            text = jax.jit(functools.partial(loss, partition=partition)).lower(*arrays, ids).compile().as_text()
        return [
            kind for kind in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if f" {kind}(" in text
        ]

    assert collectives(PARTITION) == []
    assert "all-gather" in collectives(Partition())  # cut over nothing: every device works on everything


def test_inside_another_shard_map():
    case = CASES[0]
    q, k, v = case.arrays()
    ids = jnp.asarray(case.segment_ids_BT())
    call = functools.partial(attend, partition=PARTITION)
    with jax.set_mesh(on_mesh((8, 1, 1))):
        rows = PartitionSpec("data")
        inside = jax.jit(
            jax.shard_map(
                lambda q, k, v, ids: call(q, k, v, case.request(ids)).out_BTNH,
                in_specs=(rows, rows, rows, rows),
                out_specs=rows,
                check_vma=False,
            )
        )
        out = inside(q, k, v, ids)
    np.testing.assert_allclose(out, call(q, k, v, case.request(ids)).out_BTNH, atol=1e-6)
