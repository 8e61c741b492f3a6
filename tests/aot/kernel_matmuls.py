"""The matmuls that Pallas kernels write down, read from their jaxprs: what the compiler must find instructions for."""

import math
from collections.abc import Callable, Iterator

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

KERNELS = ("pallas_call", "mpmd_map", "core_map")


def macs_of_kernels(function: Callable, arguments) -> dict[str, int]:
    """Multiply-adds of each kernel by its name, every matmul of the text counted once, whatever loop it is in.

    Of Triton kernels those of a block (`dot_general`), of Mosaic kernels those of one warpgroup (`wgmma`).
    """
    found = {}
    for eqn in _equations(jax.make_jaxpr(function)(*arguments).jaxpr):
        if eqn.primitive.name in KERNELS:
            macs = sum(_macs(inner) for jaxpr in _jaxprs(eqn) for inner in _equations(jaxpr))
            found[str(eqn.params["name"])] = macs
    return found


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in _jaxprs(eqn):
            yield from _equations(inner)


def _jaxprs(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)):
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value


def _macs(eqn: JaxprEqn) -> int:
    shapes = [variable.aval.shape for variable in eqn.invars]
    if eqn.primitive.name == "dot_general":
        ((contracted, _), _) = eqn.params["dimension_numbers"]
        rows_and_columns = math.prod(eqn.outvars[0].aval.shape)
        return rows_and_columns * math.prod(shapes[0][axis] for axis in contracted)
    if eqn.primitive.name == "wgmma_ref":
        (rows, columns), left = shapes[:2]
        # The left operand is a matrix in registers, or in shared memory, where it is cut into tiles of 8 rows.
        return rows * columns * (math.prod(left[-4:]) // rows)
    return 0
