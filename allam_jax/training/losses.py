"""Cross-entropy of a language model, one chunk of the sequence at a time, so that all logits never exist together.

For a token with logits l, target y and weight w, with Z = sum(exp(l)):

    loss   = w * (log Z - l_y)
    z_loss = w * c * (log Z)^2                      (PaLM, 2204.02311, section 5: keeps log Z near 0)
    d(loss + z_loss)/dl = w * (softmax(l) * (1 + 2 c log Z) - onehot(y))

The gradient is known as soon as a chunk's logits are, so the forward pass of a differentiated loss also computes the
gradients of the hidden states and of the head, and the logits are made once.

On a mesh every device works on its own rows of the batch and its own columns of the head (`shard_map`). It gathers
those columns over `fsdp` once. Devices that share rows exchange, for each chunk, three numbers a token and, at the end,
their shares of the gradient of the hidden states; those that share columns then add up the gradient of the head.

Shapes: B batch, T sequence, t its chunk, C chunks, D model width, V padded vocabulary; in this file's inner functions
B and V are those of one device.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from allam_jax.model.products import product
from allam_jax.parallel.sharding import DEFAULT_RULES

MASKED = -1e30  # logit of padding columns: finite, so that a device may hold nothing else


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
        x_BTD: hidden states; their dtype is the one of the matmuls (softmax and sums are float32) and of what devices
            exchange.
        head_DV: the output projection, in any dtype; its gradient has it too.
        targets_BT: ids below `vocab_size`.
        weights_BT: 0 where nothing is to be predicted.
        vocab_size: columns of `head_DV` from here on are padding: probability 0, gradient exactly 0.
        z_loss: the coefficient c above.
        num_chunks: pieces of the sequence; logits of `B * ceil(T / num_chunks)` tokens exist at a time. Each further
            chunk reads and writes the head's gradient once more.
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
    """Negative log-likelihood of every target in nats, float32. Arguments as for `chunked_cross_entropy`.

    It can be differentiated. The logits are then made twice, because a function of likelihoods, such as a preference
    loss, has its derivatives only once all of them are known.
    """
    return _token_nll((x_BTD, head_DV), targets_BT, vocab_size, num_chunks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _token_nll(differentiated, targets_BT, vocab_size, num_chunks):
    log_z_BT, target_BT = _log_z_and_target(*differentiated, targets_BT, vocab_size, num_chunks)
    return log_z_BT - target_BT


def _token_nll_forward(differentiated, targets_BT, vocab_size, num_chunks):
    return _token_nll(differentiated, targets_BT, vocab_size, num_chunks), (differentiated, targets_BT)


def _token_nll_backward(vocab_size, num_chunks, residuals, d_nll_BT):
    differentiated, targets_BT = residuals
    _, gradients = _summed_loss_forward(differentiated, targets_BT, d_nll_BT, vocab_size, 0.0, num_chunks)
    return gradients, None


_token_nll.defvjp(_token_nll_forward, _token_nll_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _summed_loss(differentiated, targets_BT, weights_BT, vocab_size, z_loss, num_chunks):
    """Returns (total, loss, z_loss)."""
    log_z_BT, target_BT = _log_z_and_target(*differentiated, targets_BT, vocab_size, num_chunks)
    return _sums(log_z_BT, target_BT, weights_BT, z_loss)


def _summed_loss_forward(differentiated, targets_BT, weights_BT, vocab_size, z_loss, num_chunks):
    x_BTD, head_DV = differentiated
    shards = _Shards.of(x_BTD, head_DV)

    def local(x_BTD, head_DV, targets_BT, weights_BT):
        whole_DV = shards.gather(head_DV)

        def chunk(d_head_DV, inputs):
            x_BtD, targets_Bt, weights_Bt = inputs
            logits_BtV, columns_V = _logits(x_BtD, whole_DV, vocab_size, shards)
            is_target_BtV = targets_Bt[..., None] == columns_V
            log_z_Bt, target_Bt = _statistics(logits_BtV, is_target_BtV, shards)
            probs_BtV = jnp.exp(logits_BtV - log_z_Bt[..., None])
            d_log_z_Bt = weights_Bt * (1.0 + 2.0 * z_loss * log_z_Bt)
            d_logits_BtV = probs_BtV * d_log_z_Bt[..., None] - jnp.where(is_target_BtV, weights_Bt[..., None], 0.0)
            d_logits_BtV = d_logits_BtV.astype(x_BtD.dtype)
            d_x_BtD = product(_rows(d_logits_BtV), whole_DV.T, dtype=x_BtD.dtype).reshape(x_BtD.shape)
            d_head_DV += product(_rows(x_BtD).T, _rows(d_logits_BtV), dtype=jnp.float32)
            return d_head_DV, (log_z_Bt, target_Bt, d_x_BtD)

        d_head_DV, by_chunk = jax.lax.scan(
            chunk, jnp.zeros(whole_DV.shape, jnp.float32), _split((x_BTD, targets_BT, weights_BT), num_chunks)
        )
        log_z_BT, target_BT, d_x_BTD = (_join(a, x_BTD.shape[1]) for a in by_chunk)
        return log_z_BT, target_BT, shards.sum_rows(d_x_BTD), shards.sum_head(d_head_DV, dtype=x_BTD.dtype)

    log_z_BT, target_BT, d_x_BTD, d_head_DV = shards.over_mesh(
        local,
        (x_BTD, head_DV.astype(x_BTD.dtype), targets_BT, weights_BT),
        arguments=(shards.rows, shards.head, shards.rows, shards.rows),
        results=(shards.rows, shards.rows, shards.summed_rows, shards.head),
    )
    sums = _sums(log_z_BT, target_BT, weights_BT, z_loss)
    return sums, (d_x_BTD, d_head_DV.astype(head_DV.dtype))


def _summed_loss_backward(vocab_size, z_loss, num_chunks, gradients, cotangents):
    d_total, _, _ = cotangents
    return jax.tree.map(lambda g: (g * d_total).astype(g.dtype), gradients), None, None


_summed_loss.defvjp(_summed_loss_forward, _summed_loss_backward)


def _log_z_and_target(x_BTD, head_DV, targets_BT, vocab_size, num_chunks):
    """log Z and the target's logit of every token, float32 [B, T]."""
    shards = _Shards.of(x_BTD, head_DV)

    def local(x_BTD, head_DV, targets_BT):
        whole_DV = shards.gather(head_DV)

        def chunk(_, inputs):
            x_BtD, targets_Bt = inputs
            logits_BtV, columns_V = _logits(x_BtD, whole_DV, vocab_size, shards)
            return None, _statistics(logits_BtV, targets_Bt[..., None] == columns_V, shards)

        _, by_chunk = jax.lax.scan(chunk, None, _split((x_BTD, targets_BT), num_chunks))
        return tuple(_join(a, x_BTD.shape[1]) for a in by_chunk)

    return shards.over_mesh(
        local,
        (x_BTD, head_DV.astype(x_BTD.dtype), targets_BT),
        arguments=(shards.rows, shards.head, shards.rows),
        results=(shards.rows, shards.rows),
    )


def _sums(log_z_BT, target_BT, weights_BT, z_loss):
    """(total, loss, z_loss)."""
    loss = jnp.sum(weights_BT * (log_z_BT - target_BT))
    z = z_loss * jnp.sum(weights_BT * jnp.square(log_z_BT))
    return loss + z, loss, z


def _logits(x_BtD, head_DV, vocab_size, shards):
    """Float32 logits [B, t, V] of this device's columns, and the ids of those columns [V]."""
    V = head_DV.shape[1]
    logits_BtV = product(_rows(x_BtD), head_DV, dtype=jnp.float32).reshape(*x_BtD.shape[:2], V)
    columns_V = shards.position(shards.vocab) * V + jnp.arange(V)
    if vocab_size < V * shards.count(shards.vocab):
        logits_BtV = jnp.where(columns_V < vocab_size, logits_BtV, MASKED)
    return logits_BtV, columns_V


def _rows(x_BtX):
    """[B * t, X], a row for each token."""
    return x_BtX.reshape(-1, x_BtX.shape[-1])


def _statistics(logits_BtV, is_target_BtV, shards):
    """log Z and the target's logit over all devices' columns, float32 [B, t]."""
    parts = jax.lax.platform_dependent(logits_BtV, is_target_BtV, cpu=_three_passes, default=_one_pass)
    if shards.vocab:
        # Devices combine their columns in one exchange of three numbers a token.
        parts = jax.lax.all_gather(jnp.stack(parts), shards.vocab)  # [devices, 3, B, t]
        largest = jnp.max(parts[:, 0], axis=0)
        parts = largest, jnp.sum(parts[:, 1] * jnp.exp(parts[:, 0] - largest), axis=0), jnp.sum(parts[:, 2], axis=0)
    largest_Bt, sum_Bt, target_Bt = parts
    return largest_Bt + jnp.log(sum_Bt), target_Bt


def _three_passes(logits_BtV, is_target_BtV):
    """The largest logit of each token, the sum of exp(logit - largest) and the target's logit (0 if not here)."""
    largest_Bt = jnp.max(logits_BtV, axis=-1)
    sum_Bt = jnp.sum(jnp.exp(logits_BtV - largest_Bt[..., None]), axis=-1)
    return largest_Bt, sum_Bt, jnp.sum(jnp.where(is_target_BtV, logits_BtV, 0.0), axis=-1)


def _one_pass(logits_BtV, is_target_BtV):
    """As `_three_passes`, in one reduction: here memory limits a GPU, and exponentials limit a CPU."""

    def join(a, b):
        largest = jnp.maximum(a[0], b[0])
        return largest, a[1] * jnp.exp(a[0] - largest) + b[1] * jnp.exp(b[0] - largest), a[2] + b[2]

    return jax.lax.reduce(
        (logits_BtV, jnp.ones_like(logits_BtV), jnp.where(is_target_BtV, logits_BtV, 0.0)),
        (jnp.float32(MASKED), jnp.float32(0.0), jnp.float32(0.0)),
        join,
        (logits_BtV.ndim - 1,),
    )


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


class _Shards(NamedTuple):
    """The mesh axes that cut the rows, the head's columns and its width, and what devices exchange over them.

    Axes that do not divide an array are left out: it is then whole on every device.
    """

    batch: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()
    width: tuple[str, ...] = ()  # some of the batch's
    positions: tuple[str, ...] = ()  # of the gradient of the hidden states

    @classmethod
    def of(cls, x_BTD, head_DV) -> "_Shards":
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return cls()

        def dividing(logical: str, size: int) -> tuple[str, ...]:
            axes = tuple(axis for axis in DEFAULT_RULES.mesh_axes(logical) if mesh.shape[axis] > 1)
            return axes if size % math.prod(mesh.shape[axis] for axis in axes) == 0 else ()

        batch, vocab = dividing("batch", x_BTD.shape[0]), dividing("act_vocab", head_DV.shape[1])
        width, positions = dividing("embed", head_DV.shape[0]), dividing("residual", x_BTD.shape[1])
        return cls(batch, vocab, width if set(width) <= set(batch) else (), positions if positions == vocab else ())

    @property
    def rows(self) -> PartitionSpec:
        return PartitionSpec(self.batch or None)

    @property
    def summed_rows(self) -> PartitionSpec:
        return PartitionSpec(self.batch or None, self.positions or None)

    @property
    def head(self) -> PartitionSpec:
        return PartitionSpec(self.width or None, self.vocab or None)

    def over_mesh(self, local, arrays, *, arguments, results):
        if self == _Shards():
            return local(*arrays)
        return jax.shard_map(local, in_specs=arguments, out_specs=results, check_vma=False)(*arrays)

    def count(self, axes: tuple[str, ...]) -> int:
        return jax.lax.axis_size(axes) if axes else 1

    def position(self, axes: tuple[str, ...]):
        return jax.lax.axis_index(axes) if axes else 0

    def gather(self, head_DV):
        """All of the width of this device's columns."""
        return jax.lax.all_gather(head_DV, self.width, axis=0, tiled=True) if self.width else head_DV

    def sum_rows(self, d_x_BTD):
        """The sum over the devices that hold other columns; each keeps its own positions, if the mesh divides them."""
        if self.positions:
            return jax.lax.psum_scatter(d_x_BTD, self.positions, scatter_dimension=1, tiled=True)
        return jax.lax.psum(d_x_BTD, self.vocab) if self.vocab else d_x_BTD

    def sum_head(self, d_head_DV, *, dtype):
        """The sum over the devices that hold other rows, in `dtype`; each keeps its own slice of the width."""
        if self.batch:
            d_head_DV = d_head_DV.astype(dtype)
        if self.width:
            d_head_DV = jax.lax.psum_scatter(d_head_DV, self.width, scatter_dimension=0, tiled=True)
        others = tuple(axis for axis in self.batch if axis not in self.width)
        return jax.lax.psum(d_head_DV, others) if others else d_head_DV
