"""A port for processes that meet."""

import pytest
from processes import free_port


@pytest.fixture
def port() -> int:
    """See `free_port`."""
    return free_port()
