"""Cross-entropy of a language model without ever holding all logits: a chunk of the sequence at a time.

For a token with logits l, target y and weight w, with Z = sum(exp(l)):

    loss   = w * (log Z - l_y)
    z_loss = w * c * (log Z)^2                      (PaLM, 2204.02311, section 5: keeps log Z near 0)
    d(loss + z_loss)/dl = w * (softmax(l) * (1 + 2 c log Z) - onehot(y))

The gradient is known as soon as a chunk's logits are, so the forward pass of a differentiated loss also computes the
gradients of the hidden states and of the head, and the logits are made once.

Shapes: B batch, T sequence, t its chunk, C chunks, D model width, V padded vocabulary, R batch shards.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from allam_jax.parallel.sharding import DEFAULT_RULES, constrain


class LossSums(NamedTuple):
    """Sums over the tokens of a batch, float32 scalars; divide by `weight` (of the whole step) for means, in nats."""

    total: Array  # loss + z_loss; the only one with a gradient
    loss: Array
    z_loss: Array
    weight: Array


def chunked_cross_entropy(
    x_BTD: Float[Array, "B T D"],
    head_DV: Float[Array, "D V"],
    *,
    targets_BT: Int[Array, "B T"],
    weights_BT: Float[Array, "B T"],
    vocab_size: int,
    z_loss: float = 0.0,
    num_chunks: int = 1,
) -> LossSums:
    """Weighted cross-entropy summed over tokens. Differentiate `total` with respect to `x_BTD` and `head_DV`.

    Args:
        x_BTD: hidden states; their dtype is the one of the matmuls (softmax and sums are float32).
        head_DV: the output projection, in any dtype; its gradient has it too.
        targets_BT: ids below `vocab_size`.
        weights_BT: 0 where nothing is to be predicted.
        vocab_size: columns of `head_DV` from here on are padding: probability 0, gradient exactly 0.
        z_loss: the coefficient c above.
        num_chunks: pieces of the sequence; logits of `B * ceil(T / num_chunks)` tokens exist at a time.
    """
    total, loss, z = _summed_loss(
        (x_BTD, head_DV), targets_BT, weights_BT.astype(jnp.float32), vocab_size, z_loss, num_chunks
    )
    return LossSums(total=total, loss=loss, z_loss=z, weight=jnp.sum(weights_BT.astype(jnp.float32)))


def token_nll(
    x_BTD: Float[Array, "B T D"],
    head_DV: Float[Array, "D V"],
    *,
    targets_BT: Int[Array, "B T"],
    vocab_size: int,
    num_chunks: int = 1,
) -> Float[Array, "B T"]:
    """Negative log-likelihood of every target in nats, float32. Arguments as for `chunked_cross_entropy`."""
    head_DV = _gathered(head_DV.astype(x_BTD.dtype))

    def chunk(_, inputs):
        x_BtD, targets_Bt = inputs
        _, log_z_Bt, target_Bt = _log_z(x_BtD, head_DV, targets_Bt, vocab_size)
        return None, log_z_Bt - target_Bt

    _, nll_CBt = jax.lax.scan(chunk, None, _split((x_BTD, targets_BT), num_chunks))
    return _join(nll_CBt, x_BTD.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _summed_loss(differentiated, targets_BT, weights_BT, vocab_size, z_loss, num_chunks):
    """Returns (total, loss, z_loss)."""
    x_BTD, head_DV = differentiated
    head_DV = _gathered(head_DV.astype(x_BTD.dtype))

    def chunk(sums, inputs):
        x_BtD, targets_Bt, weights_Bt = inputs
        _, log_z_Bt, target_Bt = _log_z(x_BtD, head_DV, targets_Bt, vocab_size)
        return _add_sums(sums, log_z_Bt, target_Bt, weights_Bt, z_loss), None

    (loss, z), _ = jax.lax.scan(chunk, _zero_sums(), _split((x_BTD, targets_BT, weights_BT), num_chunks))
    return loss + z, loss, z


def _summed_loss_forward(differentiated, targets_BT, weights_BT, vocab_size, z_loss, num_chunks):
    x_BTD, original_head_DV = differentiated
    head_DV = _gathered(original_head_DV.astype(x_BTD.dtype))
    shards = _batch_shards(x_BTD.shape[0])

    def chunk(carry, inputs):
        sums, d_head_RDV = carry
        x_BtD, targets_Bt, weights_Bt = inputs
        logits_BtV, log_z_Bt, target_Bt = _log_z(x_BtD, head_DV, targets_Bt, vocab_size)
        probs_BtV = jnp.exp(logits_BtV - log_z_Bt[..., None])
        d_log_z_Bt = weights_Bt * (1.0 + 2.0 * z_loss * log_z_Bt)
        d_logits_BtV = probs_BtV * d_log_z_Bt[..., None] - jnp.where(
            _is_target(targets_Bt, logits_BtV), weights_Bt[..., None], 0.0
        )
        d_logits_BtV = d_logits_BtV.astype(x_BtD.dtype)
        d_x_BtD = jnp.einsum("BtV,DV->BtD", d_logits_BtV, head_DV)
        # Each batch shard adds up its own share; the sum over shards waits until after the last chunk.
        by_shard = [a.reshape(shards, -1, a.shape[-1]) for a in (x_BtD, d_logits_BtV)]
        d_head_RDV += jnp.einsum("RtD,RtV->RDV", *by_shard, preferred_element_type=jnp.float32)
        d_head_RDV = constrain(d_head_RDV, ("batch", None, "act_vocab"))
        return (_add_sums(sums, log_z_Bt, target_Bt, weights_Bt, z_loss), d_head_RDV), d_x_BtD

    carry = (_zero_sums(), jnp.zeros((shards, *head_DV.shape), jnp.float32))
    ((loss, z), d_head_RDV), d_x_CBtD = jax.lax.scan(chunk, carry, _split((x_BTD, targets_BT, weights_BT), num_chunks))
    d_head_DV = jnp.sum(d_head_RDV, axis=0).astype(original_head_DV.dtype)
    return (loss + z, loss, z), (_join(d_x_CBtD, x_BTD.shape[1]), d_head_DV)


def _summed_loss_backward(vocab_size, z_loss, num_chunks, gradients, cotangents):
    d_total, _, _ = cotangents
    return jax.tree.map(lambda g: (g * d_total).astype(g.dtype), gradients), None, None


_summed_loss.defvjp(_summed_loss_forward, _summed_loss_backward)


def _log_z(x_BtD, head_DV, targets_Bt, vocab_size):
    """Float32 logits [B, t, V], log Z [B, t] and the target's logit [B, t] of one chunk."""
    logits_BtV = jnp.einsum("BtD,DV->BtV", x_BtD, head_DV, preferred_element_type=jnp.float32)
    logits_BtV = constrain(logits_BtV, ("batch", "sequence", "act_vocab"))
    if vocab_size < logits_BtV.shape[-1]:
        logits_BtV = jnp.where(jnp.arange(logits_BtV.shape[-1]) < vocab_size, logits_BtV, -jnp.inf)
    log_z_Bt = jax.nn.logsumexp(logits_BtV, axis=-1)
    # A sum and not a gather: the vocabulary may be cut over devices, and a gather would collect it.
    target_Bt = jnp.sum(jnp.where(_is_target(targets_Bt, logits_BtV), logits_BtV, 0.0), axis=-1)
    return logits_BtV, log_z_Bt, target_Bt


def _is_target(targets_Bt, logits_BtV):
    return targets_Bt[..., None] == jnp.arange(logits_BtV.shape[-1], dtype=targets_Bt.dtype)


def _zero_sums():
    return jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)


def _add_sums(sums, log_z_Bt, target_Bt, weights_Bt, z_loss):
    loss, z = sums
    return loss + jnp.sum(weights_Bt * (log_z_Bt - target_Bt)), z + z_loss * jnp.sum(weights_Bt * jnp.square(log_z_Bt))


def _split(arrays, num_chunks):
    """Cuts [B, T, ...] into [C, B, t, ...]; the last chunk is filled up with zeros (weight 0)."""

    def split(a):
        B, T = a.shape[:2]
        t = -(-T // num_chunks)
        a = jnp.pad(a, ((0, 0), (0, num_chunks * t - T)) + ((0, 0),) * (a.ndim - 2))
        return jnp.moveaxis(a.reshape(B, num_chunks, t, *a.shape[2:]), 1, 0)

    return jax.tree.map(split, arrays)


def _join(a_CBt, T):
    """The inverse of `_split`."""
    C, B, t = a_CBt.shape[:3]
    return jnp.moveaxis(a_CBt, 0, 1).reshape(B, C * t, *a_CBt.shape[3:])[:, :T]


def _gathered(head_DV):
    """The head with its model axis whole on every device: gathered once, before the loop over chunks."""
    return constrain(head_DV, (None, "act_vocab"))


def _batch_shards(B: int) -> int:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    shards = math.prod(mesh.shape[axis] for axis in DEFAULT_RULES.mesh_axes("batch"))
    return shards if B % shards == 0 else 1
