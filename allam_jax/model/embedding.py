"""Look-up of token embeddings, with a gradient that is summed in float32 and never exists whole on one device.

V padded vocabulary, D model width, B batch, T sequence.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from allam_jax.model.layouts import LOOK_UP, TOKENS_OF_ALL_SHARDS
from allam_jax.parallel.sharding import constrain


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def look_up(table_VD: Array, tokens_BT: Array, dtype: jnp.dtype) -> Array:
    """Returns the tokens' rows of the table as [B, T, D] in `dtype`, laid out as the residual stream.

    Under FSDP each device holds a slice of the table's width. It looks up the tokens of all shards in its slice, and an
    all-to-all sorts the results by token. The backward pass sorts their gradients the same way.
    """
    x_BTD = table_VD.astype(dtype)[constrain(tokens_BT, TOKENS_OF_ALL_SHARDS)]
    return constrain(x_BTD, *LOOK_UP)


def _forward(table_VD, tokens_BT, dtype):
    return look_up(table_VD, tokens_BT, dtype), (table_VD, tokens_BT)


def _backward(dtype, residuals, d_x_BTD):
    table_VD, tokens_BT = residuals
    tokens_BT = constrain(tokens_BT, TOKENS_OF_ALL_SHARDS)
    d_x_BTD = constrain(d_x_BTD, *reversed(LOOK_UP))
    return jnp.zeros_like(table_VD, jnp.float32).at[tokens_BT].add(d_x_BTD).astype(table_VD.dtype), None


look_up.defvjp(_forward, _backward)
