"""The environment of a measurement: package versions, devices and host."""

import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path

from allam_jax.report.markdown import duration, table

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece")


def environment(*, seconds: float | None = None) -> str:
    """A Markdown table of `environment_facts`, with the wall-clock time in `seconds` if it is given."""
    facts = environment_facts()
    if seconds is not None:
        facts["Wall-clock time"] = duration(seconds)
    return table([{"what": what, "value": value} for what, value in facts.items()], {"what": "", "value": ""})


def environment_facts() -> dict[str, str]:
    """Name -> value: the versions of Python and the packages, the devices with their processes, and the host."""
    import jax

    devices = jax.devices()
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    processes = _count(jax.process_count(), "process", "processes")
    cores = _count(os.cpu_count() or 1, "CPU core", "CPU cores")
    return {
        "Python": platform.python_version(),
        **package_versions(PACKAGES),
        "Devices": f"{len(devices)} × {kinds} ({devices[0].platform}), {processes}",
        "Host": f"{platform.system()} {platform.machine()}, {cores}" + (f" ({name})" if (name := _processor()) else ""),
    }


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _processor() -> str:
    """The name of the processor as Linux states it; empty on other systems."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Package -> version, for those that are installed."""
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
