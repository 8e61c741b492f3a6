"""Kernel of `decoding` in Pallas Triton: split over the cache, joined by log Z (FlashDecoding, Dao et al. 2023).

A program owns one slot, one key/value head with all query heads that share it, and one part of the slot's keys. So the
keys are loaded once for the whole group, parts of a long text are read by many multiprocessors, and only blocks that
hold keys are read. How a text is cut depends on its own length alone: so do the bits of its result.

Shapes: L layers, B slots, S keys of a slot, K key/value heads, G query heads that share one, H head size, P parts; in a
program g and h, which are G and H padded to powers of two that tensor cores take, and s keys of a block.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array

from kernels import device
from kernels.attention.blocks import LARGEST_HEAD_DIM
from kernels.attention.contract import MASKED, check_dtypes
from kernels.attention.triton_tiles import matmul

SMALLEST_TILE = 16  # rows that tensor cores take
PROGRAMS = 4 * 132  # that keep a large GPU busy; a call has at least so many if its cache is long enough
BLOCK = {2: 64, 4: 32}  # keys of a block, by the bytes of an element
LEAST_PART = 256  # keys of a part, where a slot is full: smaller ones would cost more to join than they save


def attention(
    q_BNH: Array,
    k_LBSKH: Array,
    v_LBSKH: Array,
    layer: Array,
    lengths_B: Array,
    *,
    scale: float,
    interpret: bool = False,
    parts: int | None = None,
) -> Array:
    """As `decoding.attention`, up to rounding. Tests run the kernel on a CPU (`interpret`) and choose the `parts`.

    Raises NotImplementedError, with the reason, for what the kernel cannot serve.
    """
    check_dtypes(q_BNH, k_LBSKH, v_LBSKH, expected=("bfloat16", "float16", "float32"))
    B, N, H = q_BNH.shape
    S, K = k_LBSKH.shape[2:4]
    G, size = N // K, q_BNH.dtype.itemsize
    target = device.current_target(q_BNH)
    if not interpret and (target.platform != "cuda" or 0 < target.major < 8):
        raise NotImplementedError(f"Triton kernels need an NVIDIA GPU from Ampere on, not {target.kind}")
    if H > LARGEST_HEAD_DIM:
        raise NotImplementedError(f"heads of {H} are larger than {LARGEST_HEAD_DIM}")
    P = parts or max(1, min(pl.cdiv(PROGRAMS, B * K), S // LEAST_PART))
    kernel = functools.partial(_kernel, scale=scale, block=BLOCK[size])
    out_BKPGH, log_z_BKPG = pl.pallas_call(
        kernel,
        grid=(P, K, B),
        out_shape=[
            jax.ShapeDtypeStruct((B, K, P, G, H), jnp.float32),
            jax.ShapeDtypeStruct((B, K, P, G), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="decoding_attention",
    )(q_BNH.reshape(B, K, G, H), k_LBSKH, v_LBSKH, layer.reshape(1), lengths_B)
    # Parts are joined: each weighs by its share of the softmax's denominator.
    largest_BK1G = jnp.max(log_z_BKPG, axis=2, keepdims=True)
    weights_BKPG = jnp.exp(log_z_BKPG - largest_BK1G)
    mixed_BKGH = jnp.einsum("BKPG,BKPGH->BKGH", weights_BKPG, out_BKPGH) / jnp.sum(weights_BKPG, axis=2)[..., None]
    return mixed_BKGH.reshape(B, N, H).astype(q_BNH.dtype)


def _kernel(q_ref, k_ref, v_ref, layer_ref, lengths_ref, out_ref, log_z_ref, *, scale: float, block: int):
    part, head, slot = (pl.program_id(axis) for axis in range(3))
    (_, _, G, H), P = q_ref.shape, out_ref.shape[2]
    g, h = (max(SMALLEST_TILE, pl.next_power_of_2(size)) for size in (G, H))
    heads_g, places_h = jnp.arange(g), jnp.arange(h)
    exist_gh = (heads_g < G)[:, None] & (places_h < H)[None, :]
    # Tiles reach beyond the heads and their size, behind the masks. JAX refuses that only from a static start.
    zero = jnp.zeros((), jnp.int32)
    tile_g, tile_h = pl.ds(zero, g), pl.ds(zero, h)
    layer, length = layer_ref[0], plgpu.load(lengths_ref.at[slot])
    q_gh = plgpu.load(q_ref.at[slot, head, tile_g, tile_h], mask=exist_gh, other=jnp.zeros((), q_ref.dtype))
    blocks = pl.cdiv(pl.cdiv(length, block), P)  # of a part
    first = part * blocks
    last = jnp.minimum(first + blocks, pl.cdiv(length, block))

    def step(index, carry):
        mixed_gh, max_g, sum_g = carry
        start = pl.multiple_of(index * block, block)
        filled_s = start + jnp.arange(block) < length

        def tile(ref):
            mask = filled_s[:, None] & (places_h < H)[None, :]
            where = ref.at[layer, slot, pl.ds(start, block), head, tile_h]
            return plgpu.load(where, mask=mask, other=jnp.zeros((), ref.dtype))

        scores_gs = scale * matmul(q_gh, tile(k_ref), transpose_b=True)
        scores_gs = jnp.where(filled_s[None, :], scores_gs, MASKED)
        new_max_g = jnp.maximum(max_g, jnp.max(scores_gs, axis=1))
        probs_gs = jnp.exp(scores_gs - new_max_g[:, None])
        fade_g = jnp.exp(max_g - new_max_g)
        v_sh = tile(v_ref)
        mixed_gh = mixed_gh * fade_g[:, None] + matmul(probs_gs.astype(v_sh.dtype), v_sh)
        return mixed_gh, new_max_g, sum_g * fade_g + jnp.sum(probs_gs, axis=1)

    start = (jnp.zeros((g, h), jnp.float32), jnp.full((g,), MASKED, jnp.float32), jnp.zeros((g,), jnp.float32))
    mixed_gh, max_g, sum_g = lax.fori_loop(first, last, step, start)
    empty_g = sum_g == 0.0
    sum_g = jnp.where(empty_g, 1.0, sum_g)
    out = out_ref.at[slot, head, part, tile_g, tile_h]
    plgpu.store(out, mixed_gh / sum_g[:, None], mask=exist_gh)
    log_z_g = jnp.where(empty_g, MASKED, max_g + jnp.log(sum_g))
    plgpu.store(log_z_ref.at[slot, head, part, tile_g], log_z_g, mask=heads_g < G)
