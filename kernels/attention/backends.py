"""The attention backends by name, and which of them `auto` tries. Imports nothing, so that settings can be checked."""

# A backend is a module with a function `attention` (see contract.py). It raises NotImplementedError, with the reason,
# for a request that it cannot serve. Modules are imported when they are tried: GPU backends need parts of JAX, or
# packages, that not every installation has.
MODULES = {
    "xla": "kernels.attention.reference",
    "xla_chunked": "kernels.attention.xla_chunked",
    "triton": "kernels.attention.triton",
    "mosaic": "kernels.attention.mosaic",
    "cudnn": "kernels.attention.cudnn",
    "tokamax": "kernels.attention.tokamax_backend",
}
BACKENDS = ("auto", *MODULES)

# What `auto` tries on NVIDIA GPUs, first choice first. Triton stands before Mosaic because it has less risk: until a
# GPU has measured both, a compiler that many programs use is worth more than kernels that are faster on paper. cudnn
# and tokamax are there to compare with.
ON_CUDA = ("triton", "mosaic", "xla_chunked", "xla")
ELSEWHERE = ("xla_chunked", "xla")
