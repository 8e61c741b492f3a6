"""Products of activations with weights.

Shapes as in `model/llama.py`; in `product`, M rows, K summed, N columns.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

FEW_ROWS = 64  # up to so many are multiplied the other way round, see `Turned`


def product(a_MK: Float[Array, "M K"], b_KN: Float[Array, "K N"], *, dtype: jnp.dtype) -> Float[Array, "M N"]:
    """The matrix product with sums in float32, rounded to `dtype`.

    On CPU, XLA's quick library for bfloat16 (AMX, AVX-512) takes row-major operands only and gives float32 only. XLA
    folds transpositions into products, and then computes them as float32: four times slower.
    """
    if a_MK.dtype != jnp.bfloat16:
        return jnp.matmul(a_MK, b_KN, preferred_element_type=dtype)
    return jax.lax.platform_dependent(
        a_MK,
        b_KN,
        cpu=functools.partial(_product_by_rows, dtype=dtype),
        default=functools.partial(jnp.matmul, preferred_element_type=dtype),
    )


def _product_by_rows(a_MK, b_KN, *, dtype):
    by_rows = Layout(major_to_minor=(0, 1))
    a_MK, b_KN = (jax.lax.optimization_barrier(with_layout_constraint(x, by_rows)) for x in (a_MK, b_KN))
    return jnp.matmul(a_MK, b_KN, preferred_element_type=jnp.float32).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rounded_product(a_MK, b_KN, operands):
    """The product of operands rounded to the dtype `operands`, in their own dtype; its gradients are such products."""
    return product(a_MK.astype(operands), b_KN.astype(operands), dtype=a_MK.dtype)


def _rounded_product_forward(a_MK, b_KN, operands):
    return _rounded_product(a_MK, b_KN, operands), (a_MK, b_KN)


def _rounded_product_backward(operands, factors, d_MN):
    a_MK, b_KN = factors
    return _rounded_product(d_MN, b_KN.T, operands), _rounded_product(a_MK.T, d_MN, operands)


_rounded_product.defvjp(_rounded_product_forward, _rounded_product_backward)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Turned:
    """A weight with its contracted axes last and joined, [..., I], in which CPUs multiply a few rows by it.

    The product is then that of the weight with the rows: its long side is the weight's, and no library transposes or
    packs a weight for a handful of rows. With 8 to 32 rows of float32 that takes 0.7 of the time.
    """

    array: Array

    def times(self, x_RI: Array) -> Array:
        """Returns [R, ...]: the product with each row."""
        matrix_OI = self.array.reshape(-1, x_RI.shape[1])
        out_OR = matrix_OI @ x_RI.T
        if len(x_RI) <= FEW_ROWS:
            out_OR = jax.lax.optimization_barrier(out_OR)  # or XLA turns the product back
        return out_OR.T.reshape(len(x_RI), *self.array.shape[:-1])


def turned(weight: Array, inputs: int) -> Turned:
    """A weight of which the first `inputs` axes are contracted."""
    matrix = weight.reshape(math.prod(weight.shape[:inputs]), -1)
    return Turned(matrix.T.reshape(*weight.shape[inputs:], -1))


def project(x: Array, weight: Array | Turned, *, operands: str = "") -> Array:
    """Contracts all axes of `x` after [B, T] with the first ones of `weight`: [B, T, D] x [D, N, H] -> [B, T, N, H].

    On one device it is one matrix product with a row for each token. With B and T as two axes, the gradient contracts
    both of them, and XLA on CPU makes transposed copies of the activations for it: a tenth of a training step. On a
    mesh B and T stay two axes. If they were one, XLA could not scatter a sum of partial products by position, and every
    tensor device would reduce all of it.

    `operands` is the dtype that both are rounded to, by default their own; see `ComputeOptions.products`.
    """
    B, T, *inner = x.shape
    if isinstance(weight, Turned):
        return weight.times(x.reshape(B * T, -1)).reshape(B, T, *weight.array.shape[:-1])
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        if operands:
            x, weight, dtype = x.astype(operands), weight.astype(operands), x.dtype
            return jnp.tensordot(x, weight, axes=len(inner), preferred_element_type=dtype)
        return jnp.tensordot(x, weight, axes=len(inner))
    rows, matrix = x.reshape(B * T, -1), weight.reshape(math.prod(inner), -1)
    out = _rounded_product(rows, matrix, operands) if operands else rows @ matrix
    return out.reshape(B, T, *weight.shape[len(inner) :])


def adapted(
    x: Array, weight: Array | Turned, adapters: dict[str, dict[str, Array]] | None, name: str, *, operands: str = ""
) -> Array:
    """`project`, and what the low-rank adapter (`low_rank.py`) of this name adds, where there is one."""
    out = project(x, weight, operands=operands)
    if not adapters or name not in adapters:
        return out
    adapter = adapters[name]
    return out + adapter["factor"] * project(project(x, adapter["a"]), adapter["b"])
