"""Every test sees eight CPU devices, so that meshes can be tested on a laptop."""

import gc
import os
import shutil
import tempfile

import pytest
from processes import CACHE_EVERYTHING, UNOPTIMISED

os.environ["JAX_PLATFORMS"] = "cpu"
if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers of xdist inherit it
    _COMPILED = tempfile.mkdtemp(prefix="allam_jax_tests_")
    os.environ.update(CACHE_EVERYTHING, JAX_COMPILATION_CACHE_DIR=_COMPILED)
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count=8 {UNOPTIMISED}"


def pytest_unconfigure():
    """Removes the programs that the tests have compiled; many of them compile the same ones."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(_COMPILED, ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: the workers of xdist take whole files, and then end at the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """What is imported stays: without it, and with rarer collections, tracing takes a tenth less time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that a test saves, as matplotlib objects."""
    from matplotlib.figure import Figure

    saved = []
    save = Figure.savefig

    def remember(figure, *args, **kwargs):
        save(figure, *args, **kwargs)
        saved.append(figure)

    monkeypatch.setattr(Figure, "savefig", remember)
    return saved
