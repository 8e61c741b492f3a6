"""What a trace is for: the platform, the device's name and the GPU's compute capability.

That is not always the device of this process: a program can be compiled for a described cluster on a machine without
any GPU (`kernels.aot`). What knows best is asked first: the mesh of the surrounding `jax.set_mesh` or `jax.shard_map`,
the mesh that an array lies on, the default device.
"""

import dataclasses
import functools
import re

import jax

# Compute capability by the name of the device, where only the name is known: the mesh of a trace has no more of it.
# Source: developer.nvidia.com/cuda-gpus. Longer names first where one is the beginning of another.
_CAPABILITIES = (
    (r"\bGB?300\b", "sm103"),
    (r"\bG?B200\b", "sm100"),
    (r"\bG?H(100|200|20|800)\b", "sm90"),
    (r"\bL(4|20|40S?)\b|\bRTX (40\d\d|\d000 Ada)", "sm89"),
    (r"\bA(2|10G?|16|40)\b|\bRTX (30\d\d|A\d000)", "sm86"),
    (r"\bA(100|30|800)\b", "sm80"),
    (r"\bT4\b|\bRTX 20\d\d", "sm75"),
    (r"\bV100\b", "sm70"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Where a program will run.

    Attributes:
        platform: "cpu", "cuda", "rocm" or "tpu".
        kind: the device's own name, such as "NVIDIA H100 80GB HBM3".
        capability: "sm80", "sm90", ...; None off CUDA, and for a CUDA device whose name is not in the table and which
            is not attached.
    """

    platform: str
    kind: str
    capability: str | None = None

    @property
    def major(self) -> int:
        """First number of the compute capability: 8 is Ampere and Ada, 9 is Hopper; 0 off CUDA or where unknown."""
        return int(self.capability[2:]) // 10 if self.capability else 0


def current_target(array: jax.Array | None = None) -> Target:
    """The target of the surrounding trace, or of eager code. `array` is asked where no mesh surrounds the call."""
    on = None if array is None else getattr(jax.typeof(array).sharding, "mesh", None)
    for mesh in (jax.sharding.get_abstract_mesh(), on):
        device = getattr(mesh, "abstract_device", None)
        if device is not None:
            return _target(device.platform, device.device_kind)
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    if device is None or isinstance(device, str):
        device = jax.local_devices(backend=device)[0]
    return of_device(device)


def of_device(device: jax.Device) -> Target:
    """The target that a device, attached or described, stands for."""
    capability = getattr(device, "compute_capability", None)
    if capability is not None and re.fullmatch(r"\d+\.\d+", str(capability)):
        return Target(platform="cuda", kind=device.device_kind, capability=_sm(capability))
    return _target(device.platform, device.device_kind)


@functools.cache
def _target(platform: str, kind: str) -> Target:
    if platform not in ("gpu", "cuda", "rocm"):
        return Target(platform=platform, kind=kind)
    if re.search(r"\bAMD\b|\bInstinct\b|^gfx", kind) or platform == "rocm":
        return Target(platform="rocm", kind=kind)
    return Target(platform="cuda", kind=kind, capability=_capability(kind))


def _capability(kind: str) -> str | None:
    for pattern, capability in _CAPABILITIES:
        if re.search(pattern, kind):
            return capability
    # A name that is not in the table: an attached GPU of that name knows.
    if jax.default_backend() == "gpu":
        for device in jax.local_devices():
            if device.device_kind == kind:
                return _sm(device.compute_capability)
    return None


def _sm(capability: str) -> str:
    """`9.0` -> `sm90`."""
    return "sm" + str(capability).replace(".", "")
