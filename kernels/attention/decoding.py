"""Attention of one new token a slot against a cache: what a decoding step asks for, and its form in plain JAX.

Query b sees the first `lengths_B[b]` keys of slot b. As a request of `contract.py` it has T = 1, position lengths - 1
and keys at positions 0, 1, ... of the same document. It is an operation of its own because it takes the whole cache
and a layer's index: a slice of the cache would be a copy, and nothing may be read but what is filled.

The cache is read in blocks. Blocks are joined by the maximum and the sum of their softmax, as partial results over the
cache are joined by log Z in the kernel. A block behind a slot's length changes none of its bits.

Shapes: L layers, B slots, S keys of a slot, N query heads (M in products), K key/value heads, H head size.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kernels import device
from kernels.attention.contract import MASKED
from kernels.attention.sharded import WHOLE, Partition, dividing

BLOCK = 64  # keys; the capacity of a cache is a multiple of it
READ_AT_ONCE = 32  # keys of a slot in the plain form: blocks of many slots should stay in a CPU's cache


def attend(
    q_BNH: Float[Array, "B N H"],
    k_LBSKH: Float[Array, "L B S K H"],
    v_LBSKH: Float[Array, "L B S K H"],
    *,
    layer: Int[Array, ""],
    lengths_B: Int[Array, " B"],
    scale: float | None = None,
    backend: str = "auto",
    partition: Partition = WHOLE,
) -> Float[Array, "B N H"]:
    """The output for each query, in its dtype; zeros where the length is 0. The softmax is computed in float32.

    Args:
        layer: index of the layer whose keys and values are read.
        lengths_B: keys that each query sees, 0 to S.
        scale: of the scores before the softmax; H ** -0.5 by default.
        backend: "triton" or "plain"; "auto" and the names of other backends take what suits the device.
        partition: how rows and heads lie on the surrounding mesh. Each device reads its own slots and heads. If it does
            not divide the key/value heads, every device computes all heads.

    Raises:
        ValueError: S is no multiple of `BLOCK`.
        NotImplementedError: "triton" cannot serve this; says why.
    """
    if k_LBSKH.shape[2] % BLOCK:
        raise ValueError(f"decoding: a cache of {k_LBSKH.shape[2]} keys a slot; expected a multiple of {BLOCK}")
    scale = q_BNH.shape[-1] ** -0.5 if scale is None else scale
    triton = backend == "triton" or (backend != "plain" and device.current_target(q_BNH).platform == "cuda")
    module = importlib.import_module("kernels.attention.decoding_triton" if triton else __name__)
    serve = functools.partial(module.attention, scale=scale)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return serve(q_BNH, k_LBSKH, v_LBSKH, layer, lengths_B)
    batch = dividing(partition.batch, q_BNH.shape[0], mesh) or None
    heads = dividing(partition.heads, k_LBSKH.shape[3], mesh) or None
    P = jax.sharding.PartitionSpec
    cache = P(None, batch, None, heads)
    specs = (P(batch, heads), cache, cache, P(), P(batch))
    run = jax.shard_map(serve, in_specs=specs, out_specs=P(batch, heads), check_vma=False)
    return run(q_BNH, k_LBSKH, v_LBSKH, layer, lengths_B)


def attention(q_BNH: Array, k_LBSKH: Array, v_LBSKH: Array, layer: Array, lengths_B: Array, *, scale: float) -> Array:
    """Reads blocks up to the end of the longest text, all slots at a time.

    A slot's keys are multiplied as they lie, the heads of a token side by side (X = K * H values), with queries that
    are zero in the heads of others. These products cost N / 2 operations a byte of the cache, less than to bring each
    head's keys together: that would be a transposed copy of all that is read.
    """
    B, N, H = q_BNH.shape
    K = k_LBSKH.shape[3]
    own_KM = jnp.repeat(jnp.eye(K, dtype=bool), N // K, axis=1)  # whether query head M reads key/value head K
    q_BMX = jnp.where(own_KM.T[:, :, None], q_BNH[:, :, None], 0).reshape(B, N, K * H)

    def block_of(cache_LBSKH, start):
        block = jax.lax.dynamic_slice(cache_LBSKH, (layer, 0, start, 0, 0), (1, B, READ_AT_ONCE, K, H))
        return block.reshape(B, READ_AT_ONCE, K * H)

    def join(block, carry):
        mixed_BMX, max_BM, sum_BM = carry
        start = block * READ_AT_ONCE
        scores_BMS = jnp.einsum("BMX,BSX->BMS", q_BMX, block_of(k_LBSKH, start), preferred_element_type=jnp.float32)
        visible_B1S = start + jnp.arange(READ_AT_ONCE) < lengths_B[:, None, None]
        scores_BMS = jnp.where(visible_B1S, scale * scores_BMS, MASKED)
        new_max_BM = jnp.maximum(max_BM, jnp.max(scores_BMS, axis=-1))
        probs_BMS = jnp.exp(scores_BMS - new_max_BM[..., None])
        fade_BM = jnp.exp(max_BM - new_max_BM)
        v_BSX = block_of(v_LBSKH, start)
        new_BMX = jnp.einsum("BMS,BSX->BMX", probs_BMS.astype(v_BSX.dtype), v_BSX, preferred_element_type=jnp.float32)
        sum_BM = sum_BM * fade_BM + jnp.sum(probs_BMS, axis=-1)
        return mixed_BMX * fade_BM[..., None] + new_BMX, new_max_BM, sum_BM

    start = (jnp.zeros(q_BMX.shape, jnp.float32), jnp.full((B, N), MASKED), jnp.zeros((B, N)))
    blocks = (jnp.max(lengths_B) + READ_AT_ONCE - 1) // READ_AT_ONCE
    mixed_BMX, _, sum_BM = jax.lax.fori_loop(0, blocks, join, start)
    mixed_BMKH = mixed_BMX.reshape(B, N, K, H)
    mixed_BMH = jnp.sum(jnp.where(own_KM.T[:, :, None], mixed_BMKH, 0.0), axis=2)
    # A slot without a text has met masked keys only, whose probabilities came out as ones.
    out_BMH = jnp.where((lengths_B > 0)[:, None, None], mixed_BMH / jnp.maximum(sum_BM, 1.0)[..., None], 0.0)
    return out_BMH.astype(q_BNH.dtype)
