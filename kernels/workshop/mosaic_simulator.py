"""JAX's simulator of Mosaic GPU kernels, with the operations that it lacks and that the attention kernels need.

The simulator runs a kernel on the CPU: every warpgroup is a thread, TMA copies and barriers keep their meaning, and
races are looked for with vector clocks. It cannot run accumulators that start from values or are carried through
loops, wgmma with its left operand in registers or with a transposed one, nor layouts of values. Here accumulators
become plain values by the same rewriting ("discharge") that the real lowering applies, and wgmma on values is a
float32 matmul whose operands in shared memory are read through the simulator, so that these reads are checked for
races as well.

Not modelled, by JAX or here: wgmma and TMA run at once instead of asynchronously, so a missing wait for a wgmma or a
missing `commit_smem` goes unseen; layouts, swizzling, registers and approximate functions do not exist.
"""

import dataclasses
import functools
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import callback
from jax._src import core as jax_core
from jax._src.interpreters import partial_eval as pe
from jax._src.pallas import primitives as pallas_primitives
from jax._src.pallas.mosaic.interpret import thread_map
from jax._src.pallas.mosaic.interpret import utils as interpret_utils
from jax._src.pallas.mosaic_gpu import core as gpu_core
from jax._src.pallas.mosaic_gpu import primitives as gpu_primitives
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks, interpret_pallas_call, jaxpr_interpret
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
from jax._src.state import discharge
from jax._src.state import primitives as state_primitives
from jax._src.state import types as state_types

_NAMES = jax.make_jaxpr(lambda: None)().jaxpr.debug_info  # jaxprs want one; it shows in messages only
_TRANSFORM_TREES = ("acc_transforms_tree", "a_transforms_tree", "b_transforms_tree")


# What JAX 0.10 lacks and later ones have: tiles that overhang their array.
_TILES_MAY_OVERHANG = hasattr(gpu_callbacks, "AsyncCopyTask")


@functools.cache
def parameters() -> InterpretGPUParams:
    """What to give a kernel as `interpret`. The first call extends JAX's simulator, for the rest of the process.

    Shared memory starts as NaN; `races_found` tells after a run what came of the race detection.
    """
    setattr(jaxpr_interpret, "JaxprInterpreter", _Interpreter)  # noqa: B010 (mypy takes it for a type)
    thread_map._run_jaxpr = _OnceCompiled().run
    if not _TILES_MAY_OVERHANG:
        gpu_callbacks._handle_out_of_bounds_read = _zeros_out_of_bounds
    options: dict[str, Any] = {"detect_races": True}
    if "on_race" in {field.name for field in dataclasses.fields(InterpretGPUParams)}:
        options["on_race"] = "warn"
    return InterpretGPUParams(**options)


def races_found() -> bool:
    """Whether two warpgroups of the last kernel that ran touched the same memory without a barrier between them."""
    return interpret_pallas_call.get_races().races_found


class _Interpreter(jaxpr_interpret.JaxprInterpreter):
    def interpret(self, jaxpr, token, *args):
        env = interpret_utils.JaxprEnv(vars=[*jaxpr.constvars, *jaxpr.invars], values=args)
        for eqn in jaxpr.eqns:
            values = env.read_many(eqn.invars)
            token, out = self._one(eqn, token, values)
            env.write_many(eqn.outvars, out)
        return token, env.read_many(jaxpr.outvars)

    def _one(self, eqn, token, values):
        if eqn.primitive is gpu_core.layout_cast_p:
            return token, values
        if eqn.primitive is gpu_primitives.wgmma_accumulator_deref_p:
            return token, values
        if eqn.primitive is gpu_primitives.wgmma_accumulator_store_p:
            return token, values[1:]
        if eqn.primitive is gpu_primitives.wgmma_p:
            return self._wgmma(eqn, token, values)
        if eqn.primitive is gpu_primitives.copy_smem_to_gmem_p and not _TILES_MAY_OVERHANG:
            return self._copy_smem_to_gmem(eqn, token, values)
        if eqn.primitive is pallas_primitives.run_scoped_p and any(map(_is_accumulator, eqn.params["jaxpr"].invars)):
            return self._run_scoped_accumulators(eqn, token, values)
        if eqn.primitive is discharge.run_state_p:
            return self._run_state(eqn, token, values)
        if eqn.primitive is jax_core.closed_call_p:  # a loop of one turn
            closed = eqn.params["call_jaxpr"]
            return self.interpret(closed.jaxpr, token, *closed.consts, *values)
        if eqn.primitive is gpu_primitives.barrier_arrive_p and _TILES_MAY_OVERHANG:
            token = self._order_reads_before_tma(token)
        return self._by_jax(eqn, token, values)

    def _order_reads_before_tma(self, token):
        """Later simulators know reads to be over, for a TMA copy to the same place, after a `commit_smem` only.

        On the GPU that fence is for writes; the arrival at a barrier orders reads before a copy, as CUTLASS relies on.
        """
        return callback.io_callback(
            gpu_callbacks.commit_smem,
            gpu_callbacks.TOKEN_SHAPE_DTYPE,
            token=token,
            mesh_location=self.mesh_location,
            thread=self.thread,
        )

    def _run_scoped_accumulators(self, eqn, token, values):
        jaxpr = eqn.params["jaxpr"]
        zeros = [jnp.zeros(v.aval.shape, v.aval.dtype) for v in jaxpr.invars]
        become_values = [False] * len(values) + [True] * len(zeros)
        jaxpr_of_all = pe.convert_constvars_jaxpr(jaxpr)
        token, out = self._discharged(jaxpr_of_all, become_values, token, [*values, *zeros])
        return token, out[: len(jaxpr.outvars)]

    def _run_state(self, eqn, token, values):
        # Values that the body closes over arrive as references as well; only real memory stays one.
        become_values = [not isinstance(v.aval, state_types.AbstractRef) for v in eqn.outvars]
        token, out = self._discharged(eqn.params["jaxpr"], become_values, token, values)
        final = iter(out)
        return token, [next(final) if b else value for b, value in zip(become_values, values, strict=True)]

    def _by_jax(self, eqn, token, values):
        """One equation alone, by JAX's own interpreter."""
        inputs = {v: value for v, value in zip(eqn.invars, values, strict=True) if not isinstance(v, jax_core.Literal)}
        outputs = [v for v in eqn.outvars if not isinstance(v, jax_core.DropVar)]
        alone = jax_core.Jaxpr([], list(inputs), outputs, [eqn], eqn.effects, _NAMES)
        token, out = super().interpret(alone, token, *inputs.values())
        out = iter(out)
        return token, [None if isinstance(v, jax_core.DropVar) else next(out) for v in eqn.outvars]

    def _discharged(self, jaxpr, become_values, token, values):
        if hasattr(jax_core, "ClosedJaxpr"):
            discharged = discharge.discharge_state(jax_core.ClosedJaxpr(jaxpr, ()), should_discharge=become_values)
        else:  # later than JAX 0.10 there is one kind of jaxpr
            discharged = discharge.discharge_state(jaxpr, should_discharge=become_values, strip_memory_space=True)
        return self.interpret(discharged.jaxpr, token, *values)

    def _get(self, eqn, token, ref_aval, ref, transforms):
        """Reads from memory through the simulator, which checks for races."""
        if transforms and isinstance(transforms[-1], state_types.TransposeTransform):
            *transforms, transpose = transforms
            token, [x] = self._get(eqn, token, ref_aval, ref, tuple(transforms))
            return token, [jnp.transpose(x, transpose.permutation)]
        leaves, tree = jax.tree.flatten(tuple(transforms))
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        aval = state_types.TransformedRef(ref_aval, tuple(transforms)).type
        new_var = lambda aval: jax_core.Var(aval)  # noqa: E731
        invars = [new_var(ref_aval), *(new_var(jax.typeof(leaf)) for leaf in leaves)]
        outvar = new_var(jax_core.ShapedArray(aval.shape, aval.dtype))
        get = jax_core.new_jaxpr_eqn(invars, [outvar], state_primitives.get_p, {"tree": tree}, set(), eqn.source_info)
        return self._by_jax(get, token, [ref, *leaves])

    def _wgmma(self, eqn, token, values):
        acc, a, b, *leaves = values
        trees = [eqn.params[name] or jax.tree.structure(()) for name in _TRANSFORM_TREES]
        acc_transforms, a_transforms, b_transforms = jax.tree.unflatten(jax.tree_util.treedef_tuple(trees), leaves)
        if acc_transforms:
            raise NotImplementedError("parts of an accumulator")
        if isinstance(eqn.invars[1].aval, state_types.AbstractRef):
            token, [a] = self._get(eqn, token, eqn.invars[1].aval, a, a_transforms)
        token, [b] = self._get(eqn, token, eqn.invars[2].aval, b, b_transforms)
        return token, [acc + jnp.dot(a, b, preferred_element_type=acc.dtype, precision="highest")]

    def _copy_smem_to_gmem(self, eqn, token, values):
        src, dst, *leaves = values
        if eqn.params["has_user_predicate"] or eqn.params["reduction_op"] is not None:
            raise NotImplementedError("predicates and reductions of TMA copies")
        trees = [eqn.params["src_transforms_treedef"], eqn.params["dst_transforms_treedef"]]
        src_transforms, dst_transforms = jax.tree.unflatten(jax.tree_util.treedef_tuple(trees), leaves)
        token, [x] = self._get(eqn, token, eqn.invars[0].aval, src, src_transforms)
        token = callback.io_callback(
            _store_what_is_in_bounds,
            gpu_callbacks.TOKEN_SHAPE_DTYPE,
            token,
            self.device_info.device_id,
            self.thread_id,
            dst,
            dst_transforms,
            x,
            ordered=True,
        )
        return token, []


class _OnceCompiled:
    """Runs the threads' program; JAX compiles it anew for every program of the grid and every warpgroup."""

    def __init__(self):
        self._lock = threading.Lock()
        self._compiled = {}  # the jaxpr is kept as well: its id stays its own

    def run(self, jaxpr, consts, *args):
        with self._lock:
            if id(jaxpr) not in self._compiled:
                run = lambda consts, *args: jax_core.eval_jaxpr(jaxpr, consts, *args)  # noqa: E731
                self._compiled[id(jaxpr)] = jaxpr, jax.jit(run).lower(consts, *args).compile()
        self._compiled[id(jaxpr)][1](consts, *args)


def _store_what_is_in_bounds(token, device_id, thread_id, key_array, transforms, x):
    memory = gpu_callbacks._get_shared_memory()
    key = gpu_callbacks.HostAllocationKey.from_array(key_array)
    place = interpret_utils.to_range(jax.tree.map(int, gpu_callbacks._remove_noop_transforms(transforms)))
    shape = memory.mem[key].logical_shape
    place += tuple(slice(0, size, 1) for size in shape[len(place) :])
    place = interpret_utils.clip_range_to_shape(place, shape)
    if place is not None:
        x = np.asarray(x)
        x = x[tuple(slice(s.stop - s.start) for s in place if isinstance(s, slice))]
        thread = memory.get_global_thread_id(int(device_id), int(thread_id))
        _, _, clock = memory.store_buffer_content(key, place, x, thread)
        if memory.detect_races:
            gpu_callbacks.get_races().check_write(int(device_id), int(thread_id), clock, key, place)
    return token


def _zeros_out_of_bounds(inside, full_shape, shape, dtype, *_):
    """What TMA gives for the part of a tile that lies outside of the array."""
    full = np.zeros(full_shape, dtype)
    if inside is not None:
        full[tuple(slice(size) for size in inside.shape)] = inside
    return full


def _is_accumulator(var):
    return isinstance(var.aval, gpu_core.WGMMAAbstractAccumulatorRef)
