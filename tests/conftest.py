"""Every test sees eight CPU devices, so that meshes can be tested on a laptop."""

import os

import pytest
from processes import UNOPTIMISED

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count=8 {UNOPTIMISED}"


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: the workers of xdist take whole files, and then end at the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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
