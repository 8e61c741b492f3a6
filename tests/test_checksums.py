"""Lists of files: every change of a directory is named; the hash is that of the standard."""

import json

import pytest
import xxhash

from allam_jax import checksums
from allam_jax.checksums import FileList, find_list, hash_bytes, hash_file, read_listed, write_list, write_listed
from allam_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.bin").write_bytes(b"abc")
    (tmp_path / "sub" / "b.bin").write_bytes(bytes(9_000_000))
    write_list(tmp_path, arrays={"x": ["1"]})
    return tmp_path


def test_the_hash_is_xxh3_of_the_bytes(folder):
    assert hash_bytes(b"") == "99aa06d3014798d86001c324468d497f"  # XXH3's own test vector
    assert hash_file(folder / "sub" / "b.bin") == xxhash.xxh3_128(bytes(9_000_000)).hexdigest()
    files = FileList.read(folder, remedy="")
    assert files.files == {"a.bin": (3, hash_bytes(b"abc")), "sub/b.bin": (9_000_000, hash_bytes(bytes(9_000_000)))}
    assert files.arrays == {"x": ["1"]}
    assert list(files.damages()) == []


@pytest.mark.parametrize("size", [65, 128, 150])
def test_a_large_file_has_the_hash_of_the_hashes_of_its_pieces(tmp_path, monkeypatch, size):
    content = bytes(range(size))
    old = tmp_path / "old"
    old.mkdir()
    (old / "large").write_bytes(content)
    write_list(old)  # as lists were when all hashes were plain
    monkeypatch.setattr(checksums, "_PIECE", 64)
    new = tmp_path / "new"
    new.mkdir()
    (new / "large").write_bytes(content)
    write_list(new)
    pieces = [xxhash.xxh3_128_hexdigest(content[start : start + 64]) for start in range(0, size, 64)]
    assert FileList.read(new, remedy="").files["large"] == (size, "p" + hash_bytes("".join(pieces).encode()))
    assert FileList.read(old, remedy="").files["large"] == (size, hash_bytes(content))
    for folder in (old, new):
        files = FileList.read(folder, remedy="")
        assert list(files.damages()) == []
        assert files.read_bytes("large", remedy="") == content
        for place in (0, 63, 64, size - 1):
            flipped = bytearray(content)
            flipped[place] ^= 1
            (folder / "large").write_bytes(flipped)
            assert [damage.path.name for damage in files.damages()] == ["large"]
            with pytest.raises(UserError, match="large: its bytes are not those that were written"):
                files.read_bytes("large", remedy="")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: (d / "a.bin").write_bytes(b"abd"), "a.bin: its bytes are not those that were written"),
        (lambda d: (d / "a.bin").write_bytes(b"ab"), "a.bin: is 2 bytes long instead of 3"),
        (lambda d: (d / "a.bin").write_bytes(b"abc\n"), "a.bin: is 4 bytes long instead of 3"),
        (lambda d: (d / "a.bin").unlink(), "a.bin: is missing"),
        (lambda d: (d / "sub" / "c").touch(), "sub/c: is not among the files that were written here"),
    ],
)
def test_every_change_is_named(folder, change, reason):
    change(folder)
    files = FileList.read(folder, remedy="fetch it again")
    assert [str(damage) for damage in files.damages()] == [
        f"{folder}/{reason}" + (" (xxh3)" if "bytes are" in reason else "")
    ]
    with pytest.raises(UserError, match=f"^{folder}/{reason}.*; fetch it again$"):
        files.check_bytes(remedy="fetch it again")
    if "bytes are" not in reason:
        with pytest.raises(UserError, match=reason):
            files.check(remedy="fetch it again")


def test_the_list_guards_itself(folder):
    path = folder / "files.json"
    values = json.loads(path.read_text())
    for changed in (
        values | {"arrays": {"x": ["2"]}},
        values | {"version": 3},
        {key: value for key, value in values.items() if key != "checksum"},
        {"a.bin": "three"},
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r"files\.json: is damaged"):
            FileList.read(folder, remedy="")
    for content in (b"", b"[]", b"null", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"files\.json: "):
            FileList.read(folder, remedy="")
    path.unlink()
    assert find_list(folder, remedy="") is None
    with pytest.raises(UserError, match=r"files\.json: is missing; fetch it"):
        FileList.read(folder, remedy="fetch it")


def test_a_list_of_sizes_is_still_read(folder):
    (folder / "files.json").write_text('{"a.bin": 3, "sub/b.bin": 9000000}')
    files = FileList.read(folder, remedy="")
    assert not files.has_hashes
    files.check_bytes(remedy="")
    (folder / "a.bin").write_bytes(b"ab")
    with pytest.raises(UserError, match="is 2 bytes long instead of 3"):
        files.check(remedy="")


def test_files_are_added_to_a_list_without_a_moment_in_which_they_count_as_damaged(tmp_path):
    write_listed(tmp_path, {"a.json": b'{"a": 1}'})
    write_listed(tmp_path, {"b.json": b'{"b": 1}'})
    write_listed(tmp_path, {"a.json": b'{"a": 2}'})
    assert read_listed(tmp_path, "a.json", remedy="") == {"a": 2}
    assert read_listed(tmp_path, "b.json", remedy="") == {"b": 1}
    (tmp_path / "a.json").write_bytes(b'{"a": 3}')
    with pytest.raises(UserError, match=r"a\.json: its bytes"):
        read_listed(tmp_path, "a.json", remedy="")
    (tmp_path / "c.json").write_bytes(b"{}")
    assert read_listed(tmp_path, "c.json", remedy="") == {}  # not listed: of another program


def test_files_that_belong_together_count_as_damaged_until_all_are_there(tmp_path, monkeypatch):
    from allam_jax import checksums

    class Killed(BaseException):
        pass

    real = checksums.atomic_path

    def killed_at_the_second(path):
        if path.name == "two":
            raise Killed
        return real(path)

    monkeypatch.setattr(checksums, "atomic_path", killed_at_the_second)
    with pytest.raises(Killed):
        write_listed(tmp_path, {"one": b"1", "two": b"2"}, whole=True)
    assert (tmp_path / "one").exists()
    with pytest.raises(UserError, match="two: is missing"):
        FileList.read(tmp_path, remedy="").check(remedy="")
