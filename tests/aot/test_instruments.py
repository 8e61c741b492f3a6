"""The command lines of the table of kernels and of tuning, on GPUs that are only described."""

import json

import pytest

from kernels import aot
from kernels.attention import blocks
from kernels.attention.blocks import Key
from kernels.workshop import compiled, tune


def test_what_the_compiler_says_is_written(tmp_path, capsys):
    file = tmp_path / "numbers.json"
    arguments = ["--kinds", "h100", "--cases", "small_h64", "--subjects", "triton", "cudnn", "jax_mosaic_sample"]
    assert compiled.main([*arguments, "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert "not run" in written["what"]
    ours = [record for record in written["records"] if record["subject"] == "triton"]
    assert [record["kernel"] for record in ours] == ["attention_dkv", "attention_dq", "attention_forward"]
    assert all(record["wgmma"] > 0 and record["spill_bytes"] == 0 for record in ours)
    assert all(record["blocks_per_core"] > 0 and 0 < record["occupancy"] <= 1 for record in ours)
    # cuDNN is not there to be asked, the other has no segments: said, not left out.
    refused = {record["subject"] for record in written["records"] if "refused" in record}
    assert refused == {"cudnn", "jax_mosaic_sample"}
    assert "| triton | attention_forward | " in capsys.readouterr().out


def test_tuning_takes_blocks_that_do_not_spill(tmp_path, monkeypatch, capsys):
    written = {}
    monkeypatch.setattr(tune, "write", written.update)
    arguments = "--backends triton --kinds a100 --dtypes bfloat16 --head-dims 64 --passes forward --top 3 --write"
    assert tune.main(arguments.split()) == 0
    key = Key("triton", "sm80", 2, 64, "forward")
    assert written.keys() == {key}
    for variant in (tune.CASE, *tune.VARIANTS):
        kernel = tune.compiled_kernel(key, "a100", tune.of_key(variant, key), written[key])
        assert (kernel.spills, kernel.mma_kind) == (0, "mma")
    assert "modelled" in capsys.readouterr().out


@pytest.mark.parametrize("key", [key for key in blocks.TABLE if key.bytes_per_element == 2 and key.head_dim == 256])
def test_entries_for_the_largest_heads_fit(key):
    kind = next(kind for kind in aot.TARGETS if aot.limits(kind).capability == key.generation)
    kernel = tune.compiled_kernel(key, kind, tune.of_key(tune.CASE, key), blocks.TABLE[key])
    assert kernel.shared_memory <= aot.limits(kind).shared_memory_per_block
    assert kernel.spills == 0
