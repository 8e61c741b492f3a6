"""What libraries raise where a machine is too small becomes one line."""

import jax
import pytest

from allam_jax.errors import UserError
from allam_jax.tasks import runner
from configs import base


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), ""),
        (MemoryError("std::bad_alloc"), " (std::bad_alloc)"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating\n 7 bytes."),
            " (RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.)",
        ),
        (RuntimeError("INTERNAL: a fault"), None),
    ],
)
def test_too_little_memory_is_one_line(monkeypatch, tmp_path, error, said):
    def fail(config, *, workdir):
        raise error

    monkeypatch.setattr(runner, "_run_task", fail)
    with pytest.raises(type(error) if said is None else UserError) as caught:
        runner.run(base.get_config("train"), workdir=tmp_path)
    if said is not None:
        expected = f"not enough memory for what the config asks{said}; choose smaller sizes, or a larger machine"
        assert str(caught.value) == expected
