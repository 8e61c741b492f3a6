"""Checkpoints: the same bits back on any mesh; complete or not there; one line when the disk misbehaves."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from processes import child_environment, start, wait, wait_until

from allam_jax.checksums import FileList, write_list
from allam_jax.errors import UserError
from allam_jax.training.checkpoints import Checkpointer
from allam_jax.training.guard import SpikeGuard
from allam_jax.training.run_metadata import run_metadata
from allam_jax.training.settings import CheckpointSettings, GuardSettings
from allam_jax.training.stored_checkpoints import (
    find_checkpoint,
    list_steps,
    read_metadata,
    restore_checkpoint,
    restore_params,
    step_path,
)


class State(NamedTuple):
    step: Any
    params: Any
    optimizer: Any
    rng: Any


class Moments(NamedTuple):
    mu: Any
    count: Any
    nothing: tuple[()] = ()


def state_of(step: int, *, rows: int = 64) -> State:
    """Arrays that are a function of the step; incompressible."""
    rng = np.random.default_rng(step)
    odd = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 1e-42, 3.4e38, 1], np.float32)
    return State(
        step=jnp.int32(step),
        params={
            "table": jnp.asarray(rng.standard_normal((rows, 128)), jnp.float32),
            "layers": {"scale": jnp.asarray(rng.standard_normal((8, 16)), jnp.bfloat16)},
        },
        optimizer=Moments(mu=jnp.asarray(np.tile(odd, (8, 1))), count=jnp.float32(step / 3)),
        rng=jax.random.key_data(jax.random.key(step)),
    )


def abstract(state, shardings=None):
    shardings = jax.tree.map(lambda x: x.sharding, state) if shardings is None else shardings
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


def assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_the_same_bits_come_back_though_the_state_was_donated_at_once(tmp_path):
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x * 0, state), donate_argnums=0)
    with Checkpointer(tmp_path / "c", CheckpointSettings(keep_last=9)) as checkpointer:
        for step in (1, 2, 3):
            state = state_of(step, rows=4096)
            checkpointer.save(step, state=state, data={"lane": {"0": step}}, metadata={"note": "é"})
            overwrite(state)
        for step in (1, 2, 3):
            restored = checkpointer.restore(abstract(state_of(0, rows=4096)), step=step)
            assert_same_bits(restored.state, state_of(step, rows=4096))
            assert restored.data == {"lane": {"0": step}}
            assert restored.metadata == {"step": step, "note": "é"}
        assert checkpointer.latest_step() == 3


def test_a_run_whose_checkpoints_have_the_older_names_goes_on(tmp_path):
    with Checkpointer(tmp_path, CheckpointSettings(keep_last=9)) as checkpointer:
        checkpointer.save(7, state=state_of(7), data={"lane": {"0": 7}}, metadata={})
    old = (tmp_path / "7").rename(tmp_path / "00000007")
    for item in ("data", "metadata"):
        (old / item / "metadata").rename(old / item / "content.json")
    files = FileList.read(old, remedy="")
    names = [name.replace("/metadata", "/content.json") if name.count("/") == 1 else name for name in files.files]
    write_list(old, names=[name for name in names if (old / name).is_file()], arrays=files.arrays)
    with Checkpointer(tmp_path, CheckpointSettings(keep_last=1)) as checkpointer:
        restored = checkpointer.restore(abstract(state_of(0)))
        assert (restored.data, restored.metadata) == ({"lane": {"0": 7}}, {"step": 7})
        assert_same_bits(restored.state, state_of(7))
        assert find_checkpoint(tmp_path, step=7) == find_checkpoint(old) == old
        checkpointer.save(8, state=state_of(8), data={}, metadata={})
    assert [path.name for path in tmp_path.iterdir()] == ["8"]  # the older one is removed like any other


def meshes():
    devices = np.array(jax.devices())
    return {
        "one": Mesh(devices[:1].reshape(1, 1), ("data", "fsdp")),
        "data8": Mesh(devices.reshape(8, 1), ("data", "fsdp")),
        "fsdp8": Mesh(devices.reshape(1, 8), ("data", "fsdp")),
        "data2fsdp4": Mesh(devices.reshape(2, 4), ("data", "fsdp")),
    }


def shardings_on(mesh, state, axis):
    """Matrices split along `axis` over fsdp, all else replicated."""

    def one(x):
        spec = PartitionSpec() if x.ndim < 2 else PartitionSpec(*["fsdp" if i == axis else None for i in range(x.ndim)])
        return NamedSharding(mesh, spec)

    return jax.tree.map(one, state)


@pytest.mark.parametrize("save_on", ["one", "fsdp8", "data2fsdp4"])
def test_restores_onto_another_mesh(tmp_path, save_on):
    state = state_of(5)
    with Checkpointer(tmp_path, CheckpointSettings(keep_last=3)) as checkpointer:
        placed = jax.device_put(state, shardings_on(meshes()[save_on], state, axis=0))
        checkpointer.save(5, state=placed, data={}, metadata={})
        for name, mesh in meshes().items():
            for axis in (0, 1):
                target = abstract(state, shardings_on(mesh, state, axis))
                restored = checkpointer.restore(target).state
                assert_same_bits(restored, state)
                for array, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
                    assert array.sharding == wanted.sharding
                table = restored.params["table"]
                share = {"one": 1, "data8": 1, "fsdp8": 8, "data2fsdp4": 4}[name]
                assert table.addressable_shards[0].data.nbytes == table.nbytes // share


def test_parameters_alone_in_the_wanted_type(tmp_path):
    state = state_of(5)
    with Checkpointer(tmp_path, CheckpointSettings(keep_last=3)) as checkpointer:
        checkpointer.save(5, state=state, data={}, metadata={})
    params = restore_params(find_checkpoint(tmp_path), abstract_params=abstract(state.params))
    assert_same_bits(params, state.params)
    params = restore_params(step_path(tmp_path, 5), abstract_params=abstract(state.params), param_dtype="bfloat16")
    assert_same_bits(params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params))


def test_keeps_the_last_and_every_nth(tmp_path):
    with Checkpointer(tmp_path, CheckpointSettings(keep_last=2, keep_every=4)) as checkpointer:
        for step in range(1, 12):
            checkpointer.save(step, state={"x": jnp.ones(step)}, data={}, metadata={})
            assert len(list_steps(tmp_path)) <= 2 + step // 4 + 1
    assert list_steps(tmp_path) == [4, 8, 10, 11]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "11", "4", "8"]


def test_a_step_is_saved_once_and_never_over_an_earlier_run(tmp_path):
    with Checkpointer(tmp_path, CheckpointSettings(keep_last=3)) as checkpointer:
        checkpointer.save(1, state={"x": jnp.ones(3)}, data={}, metadata={})
        checkpointer.save(1, state={"x": jnp.zeros(3)}, data={}, metadata={})
        assert checkpointer.restore(abstract({"x": jnp.ones(3)})).state["x"][0] == 1
    taken = pytest.raises(UserError, match="1: a checkpoint of this step")
    with Checkpointer(tmp_path, CheckpointSettings(keep_last=3)) as checkpointer, taken:
        checkpointer.save(1, state={"x": jnp.zeros(3)}, data={}, metadata={})


def test_metadata_says_where_a_branch_comes_from(tmp_path):
    facts = {"run": "r", "config": {"seed": 1}, "mesh": {"data": 8}, "tokenizer": "t", "mixture": "m"}
    with Checkpointer(tmp_path / "main", CheckpointSettings(keep_last=3)) as main:
        main.save(
            3, state={"x": jnp.ones(3)}, data={}, metadata={"tokens_by_source": {"en": 70}, **run_metadata(**facts)}
        )
    path = find_checkpoint(tmp_path / "main", step=3)
    parent = {"path": str(path), "step": 3}
    with Checkpointer(tmp_path / "branch", CheckpointSettings(keep_last=3)) as branch:
        branch.save(
            4,
            state={"x": jnp.ones(3)},
            data={},
            metadata={"tokens_by_source": {"en": 90}, **run_metadata(parent=parent, **facts)},
        )
    metadata = read_metadata(find_checkpoint(tmp_path / "branch"))
    assert metadata["parent"] == {"path": str(path), "step": 3}
    assert metadata["step"] == 4
    assert metadata["tokens_by_source"] == {"en": 90}
    assert metadata["versions"]["jax"] == jax.__version__
    assert read_metadata(path)["parent"] is None
    repository = Path(__file__).parents[2]
    if (repository / ".git").exists():
        head = subprocess.run(["git", "-C", repository, "rev-parse", "HEAD"], capture_output=True, text=True)
        assert metadata["code_revision"].removesuffix("+changes") == head.stdout.strip()


# --- Kill -9 ----------------------------------------------------------------------------------------------------------

SAVE_FOR_EVER = """
import sys, jax
sys.path.insert(0, {here!r})
from test_checkpoints import Checkpointer, CheckpointSettings, abstract, assert_same_bits, state_of
checkpointer = Checkpointer({directory!r}, CheckpointSettings(keep_last=2))
step = checkpointer.latest_step() or 0
if step:
    assert_same_bits(checkpointer.restore(abstract(state_of(0, rows=8192))).state, state_of(step, rows=8192))
while True:
    step += 1
    checkpointer.save(step, state=state_of(step, rows=8192), data={{"at": step}}, metadata={{}})
    print(step, flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_leaves_only_complete_checkpoints(tmp_path):
    code = SAVE_FOR_EVER.format(here=str(Path(__file__).parent), directory=str(tmp_path))
    interrupted, latest = 0, 0
    for moment in ("saving", "any"):
        child = start([sys.executable, "-c", code], environment=child_environment())
        for _ in range(2):
            line = child.stdout.readline()
            assert line, child.stderr.read()
        if moment == "saving":
            wait_until(lambda: any(not path.name.isdigit() for path in tmp_path.iterdir()), process=child)
        else:
            time.sleep(random.uniform(0, 0.12))
        child.kill()
        assert wait(child).status == -signal.SIGKILL

        interrupted += any(not p.name.isdigit() for p in tmp_path.iterdir())
        steps = list_steps(tmp_path)
        assert steps
        assert steps[-1] >= max(latest, int(line) - 1)  # `line` was being saved, the one before was complete
        for step in steps:
            restored = restore_checkpoint(step_path(tmp_path, step), abstract_state=abstract(state_of(0, rows=8192)))
            assert_same_bits(restored.state, state_of(step, rows=8192))
            assert restored.data == {"at": step}
        latest = steps[-1]
    assert interrupted, "no kill fell into a save or a removal: the test has shown nothing"
    with Checkpointer(tmp_path, CheckpointSettings(keep_last=3)) as checkpointer:
        assert checkpointer.latest_step() == latest
        assert all(p.name.isdigit() for p in tmp_path.iterdir())


# --- Disk trouble -----------------------------------------------------------------------------------------------------


def big(step):
    """4 MB that do not compress."""
    return {"x": jnp.asarray(np.random.default_rng(step).standard_normal((1024, 1024)), jnp.float32)}


def assert_failed_save_is_one_line(error, capfd, *, latest):
    assert "\n" not in str(error.value)
    assert latest in str(error.value)
    assert len(str(error.value)) < 600
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_file_too_large_keeps_the_last_good_checkpoint(tmp_path, capfd):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpointer = Checkpointer(tmp_path, CheckpointSettings(keep_last=3))
    checkpointer.save(1, state=big(1), data={}, metadata={})
    checkpointer.wait()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        checkpointer.save(2, state=big(2), data={}, metadata={})
        with pytest.raises(UserError, match="saving step 2 failed: file too large") as error:
            checkpointer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_failed_save_is_one_line(error, capfd, latest="(last complete checkpoint: step 1)")
    assert [p.name for p in tmp_path.iterdir()] == ["1"], "the failed save's space was not given back"
    assert_same_bits(checkpointer.restore(abstract(big(0))).state, big(1))
    checkpointer.save(2, state=big(2), data={}, metadata={})  # space again: goes on
    checkpointer.close()
    assert list_steps(tmp_path) == [1, 2]


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, capfd):
    mount = ["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        with pytest.raises(UserError, match="saving step 3 failed: no space left on device") as error:  # noqa: PT012
            checkpointer = Checkpointer(tmp_path / "c", CheckpointSettings(keep_last=9))
            for step in (1, 2, 3, 4):
                checkpointer.save(step, state=big(step), data={}, metadata={})
        assert_failed_save_is_one_line(error, capfd, latest="(last complete checkpoint: step 2)")
        assert list_steps(tmp_path / "c") == [1, 2]
        restored = restore_checkpoint(find_checkpoint(tmp_path / "c"), abstract_state=abstract(big(0)))
        assert_same_bits(restored.state, big(2))
        checkpointer.close()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("moment", ["before", "between", "during", "at the end"])
def test_a_removed_folder_is_told(tmp_path, moment, capfd):
    folder = tmp_path / "c"
    checkpointer = Checkpointer(folder, CheckpointSettings(keep_last=3))
    if moment == "before":
        shutil.rmtree(folder)
    with pytest.raises(UserError, match="checkpoint folder has been removed or emptied during the run") as error:  # noqa: PT012
        checkpointer.save(1, state=big(1), data={}, metadata={})
        if moment == "between":
            checkpointer.wait()
        folder.rename(tmp_path / "elsewhere")  # at once, whatever is being written
        if moment == "at the end":
            checkpointer.close()
        checkpointer.save(2, state=big(2), data={}, metadata={})
        checkpointer.close()
    assert_failed_save_is_one_line(error, capfd, latest=str(folder))


def test_an_unusable_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/c: the checkpoint folder cannot be used: .*Not a directory"):
        Checkpointer(tmp_path / "file" / "c", CheckpointSettings(keep_last=3))


@pytest.mark.parametrize("damage", ["cut", "removed", "longer"])
def test_a_damaged_checkpoint_names_the_file(tmp_path, damage):
    with Checkpointer(tmp_path, CheckpointSettings(keep_last=3)) as checkpointer:
        checkpointer.save(1, state=state_of(1), data={}, metadata={})
    files = [tmp_path / "1" / name for name in FileList.read(tmp_path / "1", remedy="").files]
    assert any("state" in f.parts for f in files)
    assert any("data" in f.parts for f in files)
    for file in files:
        content = file.read_bytes()
        if damage == "cut":
            file.write_bytes(content[:-1])
        elif damage == "longer":
            file.write_bytes(content + b"x")
        else:
            file.unlink()
        with pytest.raises(UserError, match=file.name):
            restore_checkpoint(step_path(tmp_path, 1), abstract_state=abstract(state_of(0)))
        file.write_bytes(content)
    restored = restore_checkpoint(step_path(tmp_path, 1), abstract_state=abstract(state_of(0)))
    assert_same_bits(restored.state, state_of(1))


def test_a_checkpoint_that_does_not_fit_is_told(tmp_path):
    state = state_of(1)
    with Checkpointer(tmp_path, CheckpointSettings(keep_last=3)) as checkpointer:
        checkpointer.save(1, state=state, data={}, metadata={})
        for other, message in [
            (state_of(1, rows=65), r"params/table has shape \(64, 128\), but the config makes it \(65, 128\)"),
            (state._replace(params={**state.params, "head": state.rng}), "has no array params/head"),
            (state._replace(params={"table": state.params["table"]}), "holds an array params/layers/scale"),
            (state._replace(step=jnp.float32(1)), "step is int32, but the config makes it float32"),
        ]:
            with pytest.raises(UserError, match=message):
                checkpointer.restore(abstract(other))
        with pytest.raises(UserError, match="no checkpoint of step 7; there are 1"):
            checkpointer.restore(abstract(state), step=7)


def test_another_window_of_the_guard_is_not_taken_for_another_model(tmp_path):
    with Checkpointer(tmp_path, CheckpointSettings(keep_last=3)) as checkpointer:
        guards = [SpikeGuard(GuardSettings(window=size)) for size in (100, 128)]
        states = [state_of(1)._replace(optimizer=guard.init()) for guard in guards]
        checkpointer.save(1, state=states[0], data={}, metadata={})
        with pytest.raises(UserError, match=r"optimizer/losses_W has shape \(100,\).*set guard.window to what it was"):
            checkpointer.restore(abstract(states[1]))


def test_a_missing_checkpoint_is_told(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint folder"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        find_checkpoint(tmp_path)
