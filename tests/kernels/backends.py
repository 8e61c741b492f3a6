"""Every backend that a CPU can run, as `serve(q, k, v, request)`; Pallas kernels are interpreted."""

import functools
from collections.abc import Callable

from kernels.attention import reference, triton, xla_chunked
from kernels.attention.contract import AttentionOutput

ON_CPU: dict[str, Callable[..., AttentionOutput]] = {
    "xla": reference.attention,
    "xla_chunked": xla_chunked.attention,
    "triton": functools.partial(triton.attention, interpret=True),
}
