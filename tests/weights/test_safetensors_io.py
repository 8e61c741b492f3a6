"""Our safetensors reader and writer against the safetensors package, and against damaged files."""

import json
import os
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.flax
import safetensors.numpy

from allam_jax.errors import UserError
from allam_jax.weights.safetensors_io import (
    INDEX_FILE,
    SINGLE_FILE,
    TensorToWrite,
    read_directory,
    read_header,
    write_directory,
)


def some_tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "matrix": rng.standard_normal((50, 7)).astype(np.float32),
        "half": rng.standard_normal((3, 4, 5)).astype(np.float16),
        "brain": rng.standard_normal((33, 5)).astype(ml_dtypes.bfloat16),
        "double": rng.standard_normal(9),
        "ids": rng.integers(-5, 5, (4, 2)),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "flags": rng.integers(0, 2, 6).astype(bool),
    }


def to_write(tensors: dict[str, np.ndarray], *, rows: int = 7) -> list[TensorToWrite]:
    def blocks(array):
        if array.ndim == 0:
            return lambda: iter([array.reshape(1)])
        return lambda: (array[start : start + rows] for start in range(0, len(array), rows))

    return [TensorToWrite(name, array.dtype, array.shape, blocks(array)) for name, array in tensors.items()]


def assert_equal(found: np.ndarray, expected: np.ndarray) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


def test_reads_what_the_package_writes(tmp_path):
    tensors = some_tensors()
    plain = {name: array for name, array in tensors.items() if array.dtype != ml_dtypes.bfloat16}
    safetensors.numpy.save_file(plain, tmp_path / SINGLE_FILE, metadata={"format": "pt"})
    stored = read_directory(tmp_path)
    assert set(stored) == set(plain)
    for name, expected in plain.items():
        assert_equal(stored[name].read_rows(), expected)
    assert_equal(stored["matrix"].read_rows(start=11, stop=30), tensors["matrix"][11:30])

    brain = tensors["brain"]
    import jax.numpy as jnp

    safetensors.flax.save_file({"brain": jnp.asarray(brain)}, tmp_path / "brain.safetensors")
    assert_equal(read_header(tmp_path / "brain.safetensors")["brain"].read_rows(start=2), brain[2:])


def test_the_package_reads_what_we_write(tmp_path):
    tensors = some_tensors()
    assert write_directory(tmp_path, to_write(tensors), max_shard_bytes=10**9).keys() == tensors.keys()
    assert [path.name for path in tmp_path.iterdir()] == [SINGLE_FILE]
    assert struct.unpack("<Q", (tmp_path / SINGLE_FILE).read_bytes()[:8])[0] % 8 == 0
    with safetensors.safe_open(tmp_path / SINGLE_FILE, framework="numpy") as file:
        assert file.metadata()["format"] == "pt"
        assert sorted(file.keys()) == sorted(tensors)
        for name, expected in tensors.items():
            if expected.dtype != ml_dtypes.bfloat16:
                assert_equal(file.get_tensor(name), expected)
    brain = safetensors.flax.load_file(tmp_path / SINGLE_FILE)["brain"]
    assert_equal(np.asarray(brain), tensors["brain"])


def test_shards(tmp_path):
    tensors = some_tensors()
    write_directory(tmp_path, to_write(tensors), max_shard_bytes=400)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert len(shards) > 1
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors.values())
    assert set(index["weight_map"]) == set(tensors)
    for name, shard in index["weight_map"].items():
        with safetensors.safe_open(tmp_path / shard, framework="numpy") as file:
            assert name in file.keys()  # noqa: SIM118
    for shard in shards:
        held = [name for name, file in index["weight_map"].items() if file == shard]
        assert len(held) == 1 or sum(tensors[name].nbytes for name in held) <= 400
    stored = read_directory(tmp_path)
    for name, expected in tensors.items():
        assert_equal(stored[name].read_rows(), expected)


def test_a_wrong_block_is_refused(tmp_path):
    array = np.zeros((4, 3), np.float32)
    for wrong in (array.astype(np.float64), np.zeros((4, 2), np.float32), array[:3]):
        tensor = TensorToWrite("x", np.dtype(np.float32), (4, 3), lambda wrong=wrong: iter([wrong]))
        with pytest.raises(ValueError, match="x: "):
            write_directory(tmp_path, [tensor], max_shard_bytes=100)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / SINGLE_FILE
    safetensors.numpy.save_file({"a": np.ones((8, 8), np.float32), "b": np.ones(3, np.float32)}, path)
    return path


@pytest.mark.parametrize("keep", [0, 4, 30, -1])
def test_truncated_file(file, keep):
    content = file.read_bytes()
    file.write_bytes(content[:keep])
    with pytest.raises(UserError, match=rf"{file}: truncated"):
        read_directory(file.parent)


def test_file_cut_after_its_header_was_read(file):
    tensor = read_header(file)["a"]
    file.write_bytes(file.read_bytes()[: tensor.offset + 40])
    with pytest.raises(UserError, match="truncated inside tensor a"):
        tensor.read_rows()


def with_header(file, header: bytes, *, data: bytes = b"\0" * 64) -> None:
    file.write_bytes(struct.pack("<Q", len(header)) + header + data)


OVERLAPPING = json.dumps(
    {
        "a": {"dtype": "F32", "shape": [12], "data_offsets": [0, 48]},
        "b": {"dtype": "F32", "shape": [8], "data_offsets": [32, 64]},
    }
).encode()


@pytest.mark.parametrize(
    "header",
    [
        b"not json at all",
        b"[]",
        b'{"a": 3}',
        b'{"a": {"dtype": "F32", "shape": [2]}}',
        b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 12]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}, "a": {"dtype": "F32", "shape": [0]}}',
        OVERLAPPING,
        b'{"a": {"dtype": "F32", "shape": [15], "data_offsets": [4, 64]}}',
        b'{"a": {"dtype": "F32", "shape": [15], "data_offsets": [0, 60]}}',
        b"[" * 200_000,
        b'{"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}',
    ],
)
def test_bad_header(file, header):
    with_header(file, header)
    with pytest.raises(UserError, match=str(file)) as error:
        read_directory(file.parent)
    assert "\n" not in str(error.value)


def test_another_kind_of_file(file):
    file.write_bytes(b"PK\x03\x04" + b"\xff" * 100)  # a pickle in a zip, say
    with pytest.raises(UserError, match="not a safetensors file"):
        read_directory(file.parent)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 9\n")
    with pytest.raises(UserError, match="a pointer of Git LFS, not the file itself; run `git lfs pull`"):
        read_directory(file.parent)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="no model.safetensors"):
        read_directory(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"and no .*index\.json; model-00001-of-00002\.safetensors is a shard without"):
        read_directory(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="pickled"):
        read_directory(tmp_path)

    write_directory(tmp_path, to_write(some_tensors()), max_shard_bytes=400)
    first = sorted(tmp_path.glob("model-00001-*"))[0]
    shutil.move(first, tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{first.name}: no such file"):
        read_directory(tmp_path)
    shutil.move(tmp_path / "elsewhere", first)

    index = json.loads((tmp_path / INDEX_FILE).read_text())
    changed = {"weight_map": index["weight_map"] | {"ghost": first.name}}
    (tmp_path / INDEX_FILE).write_text(json.dumps(changed))
    with pytest.raises(UserError, match="ghost"):
        read_directory(tmp_path)
    for name in ("model-a.safetensors", "model-b.safetensors"):
        safetensors.numpy.save_file({"x": np.ones(2), name: np.ones(3)}, tmp_path / name)
    both = {"weight_map": {name: name for name in ("model-a.safetensors", "model-b.safetensors")}}
    (tmp_path / INDEX_FILE).write_text(json.dumps(both))
    with pytest.raises(UserError, match=r"does not list x, and both model-a\.safetensors and model-b"):
        read_directory(tmp_path)
    first.unlink()
    os.mkfifo(first)
    with pytest.raises(UserError, match="is no regular file"):
        read_header(first)
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(UserError, match="plain file name"):
        read_directory(tmp_path)
    (tmp_path / INDEX_FILE).write_text("{}")
    with pytest.raises(UserError, match="weight_map"):
        read_directory(tmp_path)
