"""Kinds of GPU as data: what one of them, its node and its network adapter give, from data sheets.

Sources, all NVIDIA's: data sheets of the A100 (40 and 80 GB), H100, H200, HGX B200 and L40S, and the white paper of the
Ada architecture for the RTX 4090. Rates of tensor cores are dense (no sparsity), with sums in float32; that of float32
is TF32's. Memory is what the driver reports. Network and power of a node: user guides of DGX A100, H100, H200 and B200.
L40S and RTX 4090 have no such node: theirs is assumed to draw twice the power of its boards (as a DGX does), with an
adapter of 100 Gbit/s for each GPU. Without NVLink the link inside a node is PCIe 4.0 x16.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU and its share of a node. Rates in units per second, links in bytes per second and direction."""

    name: str
    device_kinds: tuple[str, ...]  # as JAX calls it, without "NVIDIA "; another variant has another name and rates
    memory_bytes: int
    peak_flops: dict[str, float]  # by compute dtype
    memory_bandwidth: float
    nvlink_bandwidth: float  # to the other GPUs of the node, by PCIe where there is no NVLink
    network_bandwidth: float  # to other nodes: its network adapter
    watts: float  # of the node at full draw, divided by its GPUs
    target: str = ""  # its description for the compiler: kernels/targets; "": there is none

    @property
    def family(self) -> str:
        """The chip without form and memory, such as `A100`."""
        return self.name.partition("-")[0]


def _peak(bfloat16: float, tf32: float) -> dict[str, float]:
    return {"bfloat16": bfloat16, "float16": bfloat16, "float32": tf32}


_A100 = Gpu(
    name="A100-SXM4-80GB",
    device_kinds=("A100-SXM4-80GB", "A100 80GB PCIe"),
    memory_bytes=85_100_068_864,
    peak_flops=_peak(312e12, 156e12),
    memory_bandwidth=2.039e12,
    nvlink_bandwidth=300e9,
    network_bandwidth=25e9,
    watts=6500 / 8,
    target="a100",
)
_H100 = Gpu(
    name="H100-SXM5-80GB",
    device_kinds=("H100 80GB HBM3",),
    memory_bytes=84_942_979_072,
    peak_flops=_peak(989.4e12, 494.7e12),
    memory_bandwidth=3.352e12,
    nvlink_bandwidth=450e9,
    network_bandwidth=50e9,
    watts=10_200 / 8,
    target="h100",
)

GPUS = {
    "a100": _A100,
    "a100_40gb": dataclasses.replace(  # the same chip with other memory
        _A100,
        name="A100-SXM4-40GB",
        device_kinds=("A100-SXM4-40GB", "A100-PCIE-40GB"),
        memory_bytes=42_505_273_344,
        memory_bandwidth=1.555e12,
    ),
    "h100": _H100,
    "h200": dataclasses.replace(  # the same chip with other memory
        _H100,
        name="H200-SXM5-141GB",
        device_kinds=("H200",),
        memory_bytes=150_120_000_000,
        memory_bandwidth=4.8e12,
    ),
    "b200": Gpu(
        name="B200-SXM6-180GB",
        device_kinds=("B200",),
        memory_bytes=191_500_000_000,
        peak_flops=_peak(2250e12, 1100e12),
        memory_bandwidth=8e12,
        nvlink_bandwidth=900e9,
        network_bandwidth=50e9,
        watts=14_300 / 8,
    ),
    "l40s": Gpu(
        name="L40S-48GB",
        device_kinds=("L40S",),
        memory_bytes=47_700_000_000,
        peak_flops=_peak(362.05e12, 183e12),
        memory_bandwidth=864e9,
        nvlink_bandwidth=32e9,
        network_bandwidth=12.5e9,
        watts=2 * 350,
        target="l40s",
    ),
    "rtx4090": Gpu(
        name="GeForce RTX 4090",
        device_kinds=("GeForce RTX 4090",),
        memory_bytes=25_390_000_000,
        peak_flops=_peak(165.2e12, 82.6e12),
        memory_bandwidth=1.008e12,
        nvlink_bandwidth=32e9,
        network_bandwidth=12.5e9,
        watts=2 * 450,
        target="rtx4090",
    ),
}


def known_gpu(device_kind: str) -> Gpu | None:
    """The entry of a device by `jax.Device.device_kind`, such as "NVIDIA H100 80GB HBM3"; None if there is none."""
    kind = device_kind.removeprefix("NVIDIA ")
    return next((gpu for gpu in GPUS.values() if kind in gpu.device_kinds), None)


def peak_flops(device_kind: str, *, compute_dtype: str) -> float:
    """Dense peak rate of one device, FLOP per second; 0 where the kind of device is not known."""
    gpu = known_gpu(device_kind)
    return gpu.peak_flops[compute_dtype] if gpu else 0.0
