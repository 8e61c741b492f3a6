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
ATTEND = functools.partial(attend, partition=PARTITION)
GROUPED = Case("grouped", 8, 48, 8, 4, 8, documents=(30, 12))
ONE_KV_HEAD = Case("one_kv_head", 8, 32, 8, 1, 8, dropout_rate=0.2)
FEW_ROWS = Case("few_rows", 2, 32, 8, 2, 8, dropout_rate=0.2)
UNEVEN = Case("groups_end_inside_shards", 4, 32, 24, 3, 8)
# A mesh of data x fsdp x tensor, and what it is there for.
ON_MESHES = [
    (GROUPED, (8, 1, 1)),  # rows alone are cut
    (GROUPED, (1, 2, 4)),  # every device has a key/value head
    (GROUPED, (1, 1, 8)),  # two devices share one
    (ONE_KV_HEAD, (1, 1, 8)),  # all share one; masks of heads
    (ONE_KV_HEAD, (2, 2, 2)),  # masks of rows and heads
    (FEW_ROWS, (8, 1, 1)),  # rows that are not cut
    (FEW_ROWS, (1, 2, 4)),
    (UNEVEN, (1, 1, 8)),
    (UNEVEN, (1, 2, 4)),
]


def on_mesh(shape):
    return Mesh(np.array(jax.devices()).reshape(shape), ("data", "fsdp", "tensor"))


@pytest.mark.parametrize(("case", "shape"), ON_MESHES, ids=lambda value: getattr(value, "name", str(value)))
def test_shards_give_the_whole(case, shape):
    with jax.set_mesh(on_mesh(shape)):
        assert_true(ATTEND, case)


def test_shards_exchange_nothing():
    case = GROUPED
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
    case = GROUPED
    q, k, v = case.arrays()
    ids = jnp.asarray(case.segment_ids_BT())
    with jax.set_mesh(on_mesh((8, 1, 1))):
        rows = PartitionSpec("data")
        inside = jax.jit(
            jax.shard_map(
                lambda q, k, v, ids: ATTEND(q, k, v, case.request(ids)).out_BTNH,
                in_specs=(rows, rows, rows, rows),
                out_specs=rows,
                check_vma=False,
            )
        )
        out = inside(q, k, v, ids)
    np.testing.assert_allclose(out, jax.jit(ATTEND)(q, k, v, case.request(ids)).out_BTNH, atol=1e-6)
