"""One attention call, forward or with its backward pass, as a program: to be compiled for a described GPU or timed."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from kernels import aot
from kernels.attention import api, peers
from kernels.attention.blocks import Pass
from kernels.attention.cases import Case
from kernels.attention.real_shapes import has_segments

# What is made of kernels that the compiler can be asked about: cuDNN's are not, XLA's are dozens of plain matmuls, and
# the kernels of our backend `tokamax` are those of the peers of this name.
KERNELS = tuple(
    name
    for name in (*api.BACKENDS[1:], *peers.PEERS)
    if name not in ("xla", "xla_chunked", "cudnn", "tokamax", "cudnn_causal")
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured: one of our backends or somebody else's kernel.

    Attributes:
        ours: a backend of `api`, called through it as the model does.
        dtype: of q, k and v.
    """

    name: str
    ours: bool
    dtype: jnp.dtype

    def refuses(self, case: Case, *, backward: bool) -> str | None:
        """Why this subject cannot serve a case, as far as is known before a trace."""
        if self.ours:
            return None
        if case.dropout_rate:
            return "no dropout that can be compared"
        if self.name == "jax_mosaic_sample" and (backward or has_segments(case)):
            return "causal forward pass only"
        return None

    def call(self, case: Case) -> Callable[[Array, Array, Array, Array], Array]:
        """q_BTNH, k_BTKH, v_BTKH, segment_ids_BT -> out_BTNH."""
        if not self.ours:
            peer = peers.PEERS[self.name]
            return lambda q, k, v, ids: peer(q, k, v, ids if has_segments(case) else None)

        def call(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT):
            return api.attention(
                q_BTNH,
                k_BTKH,
                v_BTKH,
                segment_ids_BT=segment_ids_BT,
                dropout_rate=case.dropout_rate,
                dropout_key=jax.random.key(0) if case.dropout_rate else None,
                backend=self.name,
            )

        return call


def subjects(names: Sequence[str] | None = None) -> tuple[Subject, ...]:
    """All of our backends and all peers, or those named. Raises ValueError for a name that is neither."""
    every = {name: Subject(name=name, ours=True, dtype=jnp.dtype(jnp.bfloat16)) for name in api.BACKENDS[1:]}
    for name in peers.PEERS:
        dtype = jnp.float16 if name == "jax_mosaic_sample" else jnp.bfloat16
        every[name] = Subject(name=name, ours=False, dtype=jnp.dtype(dtype))
    for name in names or ():
        if name not in every:
            raise ValueError(f"nothing to measure is called {name!r}; expected one of {', '.join(every)}")
    return tuple(every[name] for name in names or every)


def program(subject: Subject, case: Case, *, backward: bool) -> Callable[..., tuple[Array, ...]]:
    """A function of q, k, v, segment ids and the output's gradient: the output, or with it the three gradients."""
    call = subject.call(case)

    def run(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, d_out_BTNH):
        if not backward:
            return (call(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT),)
        out_BTNH, pull = jax.vjp(lambda q, k, v: call(q, k, v, segment_ids_BT), q_BTNH, k_BTKH, v_BTKH)
        return (out_BTNH, *pull(d_out_BTNH))

    return run


def shapes(case: Case, dtype: jnp.dtype) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Of the arguments of `program`."""
    B, T, N, K, H = case.batch, case.seq_len, case.num_heads, case.num_kv_heads, case.head_dim
    q, k = jax.ShapeDtypeStruct((B, T, N, H), dtype), jax.ShapeDtypeStruct((B, T, K, H), dtype)
    return q, k, k, jax.ShapeDtypeStruct((B, T), jnp.int32), q


def pass_of(kernel: str) -> Pass | None:
    """Which pass a kernel of ours is, by its name; None for others."""
    ends: dict[str, Pass] = {"forward": "forward", "dq": "dq", "d_queries": "dq", "dkv": "dkv", "d_keys": "dkv"}
    if "attention_" not in kernel:
        return None
    return ends.get(kernel.split("attention_")[1])


def compile_for(kind: str, function: Callable, arguments: Sequence[jax.ShapeDtypeStruct]) -> aot.CompileReport:
    """Compiles a function of arrays for one described GPU.

    Raises:
        NotImplementedError: from the trace: what is compiled does not serve this.
        jax.errors.JaxRuntimeError: the compiler refuses, for example for too much shared memory.
    """
    devices = aot.topology(kind)
    mesh = Mesh(np.array(devices), ("gpu",))
    on_gpu = NamedSharding(mesh, PartitionSpec())
    placed = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=on_gpu) for a in arguments]
    # The default device is what other people's kernels ask.
    with jax.set_mesh(mesh), jax.default_device(devices[0]):
        lowered = jax.jit(function).lower(*placed)
    return aot.compile_report(lowered)


def seconds(
    functions: dict[str, Callable[[], object]], *, rounds: int = 15, at_least: float = 0.02
) -> dict[str, float]:
    """Median seconds of a call of each function, on an accelerator.

    The functions take turns, so that a change of clock or heat meets all of them alike. A turn is as many calls, queued
    one after the other, as take `at_least` seconds, and ends when the device has finished the last one.

    Args:
        functions: each queues its work and returns its result.
        rounds: turns of each function.
        at_least: seconds of a turn.
    """

    def turn(function: Callable[[], object], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            result = function()
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / calls

    calls = {}
    for name, function in functions.items():
        turn(function, 3)  # compiles, allocates, wakes the clocks
        calls[name] = max(1, round(at_least / turn(function, 3)))
    measured: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            measured[name].append(turn(function, calls[name]))
    return {name: statistics.median(values) for name, values in measured.items()}
