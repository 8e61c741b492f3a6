"""The attention backends by name. No JAX here: a config names a backend without importing any."""

# A backend that cannot serve a request raises NotImplementedError with the reason. Modules are imported when they are
# tried: GPU backends need parts of JAX, or packages, that not every installation has.
BACKENDS = {
    "xla": "kernels.attention.reference",
    "xla_chunked": "kernels.attention.xla_chunked",
    "mosaic": "kernels.attention.mosaic",
    "triton": "kernels.attention.triton",
    "cudnn": "kernels.attention.cudnn",
    "tokamax": "kernels.attention.tokamax_backend",
}
