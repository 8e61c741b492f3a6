"""Choosing block sizes: what is tried, what wins, and what is written."""

import dataclasses
import shutil
import time

import pytest

from kernels import ptx
from kernels.attention import blocks
from kernels.attention.blocks import Blocks, Key
from kernels.workshop import compiled, cost, measure, tune
from kernels.workshop.cases import Case

KERNEL = ptx.Kernel(
    name="attention_forward", threads=128, shared_memory=48 * 1024, registers=128, mma_sync=128, tensor_macs=1
)
CASE = Case(name="c", batch=1, seq_len=2048, num_heads=4, num_kv_heads=4, head_dim=128)


def _candidate(modelled=1.0, measured=None, **changes) -> tune.Candidate:
    kernel = dataclasses.replace(KERNEL, **changes)
    return tune.Candidate(blocks=Blocks(64, 64, 4, 2), kernel=kernel, modelled=modelled, measured=measured)


def test_spills_weigh_more_than_instructions_and_these_more_than_the_model():
    spilling = _candidate(modelled=0.1, spills=8, wgmma=8, mma_sync=0)
    quick, slow = _candidate(modelled=0.2), _candidate(modelled=0.3)
    wgmma = _candidate(modelled=0.4, wgmma=8, mma_sync=0)
    ranked = sorted([spilling, slow, quick, wgmma], key=lambda candidate: candidate.rank)
    assert ranked == [wgmma, quick, slow, spilling]


def test_a_measured_time_decides_over_everything_else():
    ranked = sorted([_candidate(0.1, measured=2.0), _candidate(0.9, measured=1.0, spills=8)], key=lambda c: c.rank)
    assert [candidate.measured for candidate in ranked] == [1.0, 2.0]


@pytest.mark.parametrize("key", blocks.TABLE, ids=lambda key: "-".join(map(str, key)))
def test_what_the_table_holds_is_among_what_is_tried(key):
    assert blocks.TABLE[key] in set(tune.sizes(key))


def test_written_entries_are_read_back_and_others_stay(tmp_path):
    copy = tmp_path / "blocks.csv"
    shutil.copy(blocks.FILE, copy)
    old, new = next(iter(blocks.TABLE)), Key("triton", "sm75", 2, 64, "forward")
    tune.write({old: Blocks(1, 2, 3, 4), new: Blocks(5, 6, 7, 8)}, copy)
    assert blocks.read_table(copy) == {**blocks.TABLE, old: Blocks(1, 2, 3, 4), new: Blocks(5, 6, 7, 8)}
    assert "triton,sm75,2,64,forward,5,6,7,8" in copy.read_text().splitlines()


def test_writing_what_is_there_changes_nothing(tmp_path):
    copy = tmp_path / "blocks.csv"
    shutil.copy(blocks.FILE, copy)
    tune.write({}, copy)
    assert copy.read_bytes() == blocks.FILE.read_bytes()


def _modelled(sizes=(64, 64, 4, 2), kernel_pass="forward", kind="a100", case=CASE, **changes) -> float:
    kernel = dataclasses.replace(KERNEL, **changes)
    return cost.modelled_seconds(case, kernel=kernel, kind=kind, blocks=Blocks(*sizes), kernel_pass=kernel_pass)


def test_the_model_is_above_the_matmuls_alone_and_grows_with_the_work():
    visible_matmuls = 2 * 2 * 128 * 4 * 2048 * 2049 / 2 / 312e12
    assert visible_matmuls < _modelled() < 10 * visible_matmuls
    assert _modelled(case=dataclasses.replace(CASE, num_heads=8)) == pytest.approx(2 * _modelled())
    assert _modelled(kernel_pass="dkv") > _modelled(kernel_pass="dq") > _modelled()


def test_the_model_prefers_room_for_other_blocks_and_loads_ahead():
    assert _modelled(registers=255) > _modelled(registers=128)
    assert _modelled(shared_memory=150 * 1024) > _modelled()
    assert _modelled(sizes=(64, 64, 4, 1)) > _modelled()
    large = {"sizes": (256, 64, 8, 2), "threads": 256, "kind": "h100"}  # not bound by loads
    assert _modelled(**large) > _modelled(**large, mma_sync=0, wgmma=8)


def test_seconds_are_those_of_the_functions():
    def busy(seconds):
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    times = measure.seconds({"short": lambda: busy(0.002), "long": lambda: busy(0.02)}, rounds=5, at_least=0.01)
    assert times["long"] >= 0.02
    assert 0.002 <= times["short"] < times["long"]  # on a machine with other things to do both can take longer


def test_an_unknown_subject_is_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        compiled.main(["--subjects", "tritn"])
    assert "invalid choice: 'tritn'" in capsys.readouterr().err
