"""Every test sees eight CPU devices, so that meshes can be tested on a laptop."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# LLVM's optimiser would take a third of the time of all tests, most of whose programs run once.
UNOPTIMISED = " --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8" + UNOPTIMISED
