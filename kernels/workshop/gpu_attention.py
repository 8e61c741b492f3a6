"""Attention on this machine's accelerator: errors against float64, and times beside other libraries' kernels."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kernels.attention.api import attend
from kernels.attention.contract import AttentionOutput
from kernels.workshop import measure, truth
from kernels.workshop.cases import REAL_CASES, Case, packed
from kernels.workshop.measure import PartOptions, Record, first_line
from kernels.workshop.subjects import Subject
from kernels.workshop.work import flops

# A result may deviate from float64 by this share of the largest true value.
BOUNDS = {"bfloat16": 2e-2, "float16": 2e-2, "float32": 1e-4}
_CASE = Case(name="packed", batch=2, seq_len=1024, num_heads=8, num_kv_heads=8, head_dim=128, documents=packed(1024))
# Segments, grouped heads with dropout at a length that no block divides, and padding in front of smaller heads.
NUMBERS = (
    (_CASE, "bfloat16"),
    (dataclasses.replace(_CASE, name="grouped, dropout", num_kv_heads=2, seq_len=1000, dropout_rate=0.1), "bfloat16"),
    (dataclasses.replace(_CASE, name="padded in front", head_dim=64, seq_len=1100, padded_in_front=True), "float16"),
    (dataclasses.replace(_CASE, head_dim=64), "float32"),
)
# The order in which cases are timed, those of most worth first.
TIMED = ("7b_t4096", "8b_t8192", "small_h64", "7b_t4096_whole", "70b_tp8_t8192", "7b_t4096_dropout", "34b_tp8_t4096")
PEERS = ("cudnn", "tokamax_mosaic", "tokamax_triton", "jax_triton_sample")


def tiny(case: Case) -> Case:
    """The case with short rows and few small heads, for a machine without a GPU."""
    documents = tuple(max(1, length * 48 // case.seq_len) for length in case.documents)
    group = case.num_heads // case.num_kv_heads
    return dataclasses.replace(
        case, batch=1, seq_len=64, num_heads=2, num_kv_heads=1 if group > 1 else 2, head_dim=16, documents=documents
    )


def numbers(options: PartOptions, *, backends: Sequence[str]) -> Iterator[Record]:
    """The error of every result of every case, by each of these backends of `kernels.attention`."""
    for case, dtype in NUMBERS:
        case = tiny(case) if options.small else case
        arguments = _arguments(case, jnp.dtype(dtype))
        expected = truth.in_float64(case, *arguments)
        for backend in backends:
            if options.is_over:
                return
            yield {"backend": backend, "case": case.name, "dtype": dtype, **_errors(backend, case, arguments, expected)}


def _arguments(case: Case, dtype: jnp.dtype):
    """q, k, v and the cotangents of the output and of log Z."""
    rng = np.random.default_rng(1)
    d_out = rng.standard_normal((case.batch, case.seq_len, case.num_heads, case.head_dim))
    d_log_z = rng.standard_normal((case.batch, case.num_heads, case.seq_len))
    return (*case.arrays(dtype=dtype), jnp.asarray(d_out, dtype), jnp.asarray(d_log_z, jnp.float32))


def _errors(backend: str, case: Case, arguments, expected: truth.Results) -> Record:
    @jax.jit
    def run(q, k, v, d_out, d_log_z):
        output, pull = jax.vjp(lambda q, k, v: attend(q, k, v, case.request(), backend=backend), q, k, v)
        return *output, *pull(AttentionOutput(d_out, d_log_z))

    try:
        first, second = (truth.Results(*jax.device_get(run(*arguments))) for _ in range(2))
    except Exception as error:  # whatever a backend or its compiler raises is a result
        return {"refused": first_line(error)}
    errors = dict(truth.relative_errors(first, expected))
    bound = BOUNDS[str(first.out.dtype)]
    return {
        "right": all(error <= bound for error in errors.values()),  # false for NaN as well
        "bound": bound,
        **errors,
        "same bits twice": all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True)),
    }


def times(options: PartOptions) -> Iterator[Record]:
    """Median seconds and TFLOP/s of every subject that serves a case, and why the others do not.

    TFLOP/s count the matmuls of visible pairs, two forward and five backward, so that skipped blocks and repeated work
    are not paid for. Subjects take turns.
    """
    by_name = {case.name: case for case in REAL_CASES}
    for case in map(by_name.__getitem__, TIMED[:1] if options.small else TIMED):
        case = tiny(case) if options.small else case
        for backward in (True, False):
            functions = {}
            for subject in map(Subject, ("triton", "mosaic", *PEERS, "xla_chunked", "xla")):
                if options.is_over:
                    return
                try:
                    functions[subject.name] = _ready(subject, case, backward=backward)
                except Exception as error:  # a kernel too large, memory that ends, a library that is not there
                    yield _row(case, backward, subject.name) | {"refused": first_line(error)}
            work = flops(case, backward=False) + (flops(case, backward=True) if backward else 0)
            at_least = 0.0 if options.small else 0.02
            measured = measure.seconds(functions, at_least=at_least, deadline=options.deadline)
            for name, seconds in measured.items():
                speed = {"milliseconds": seconds * 1e3, "TFLOP/s": work / seconds / 1e12}
                yield _row(case, backward, name) | speed


def _row(case: Case, backward: bool, subject: str) -> Record:
    return {"case": case.name, "passes": "forward and backward" if backward else "forward", "subject": subject}


def _ready(subject: Subject, case: Case, *, backward: bool):
    """A call that is compiled and whose arrays lie on the accelerator."""
    if reason := subject.refuses(case, backward=backward):
        raise NotImplementedError(reason)
    q, k, v = case.arrays(dtype=subject.dtype)
    arguments = (q, k, v, jnp.asarray(case.segment_ids_BT()), q)
    run = jax.jit(subject.program(case, backward=backward))
    jax.block_until_ready(run(*arguments))
    return lambda: run(*arguments)
