"""Tests that compile for described GPUs: skipped where the wheels of requirements-aot.txt are missing.

In the job that is there for them nothing may be skipped: with ALLAM_REQUIRE_AOT=1 missing wheels are a failure.
"""

import importlib.util
import os
from pathlib import Path

import pytest
from processes import UNOPTIMISED

from kernels import aot

HERE = Path(__file__).parent

if importlib.util.find_spec("jax_cuda13_plugin"):  # GPU programs are looked at as they will run (tests/conftest.py)
    os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace(UNOPTIMISED, "")


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.aot)


@pytest.fixture(autouse=True, scope="session")
def compiler():
    try:
        aot.topology("a100")
    except aot.Unavailable as error:
        (pytest.fail if os.environ.get("ALLAM_REQUIRE_AOT") == "1" else pytest.skip)(str(error))
