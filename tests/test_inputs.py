"""What is known of the files that a finished piece of work has read, and when it says that they changed."""

import os
import shutil

import pytest
import xxhash

from allam_jax import inputs
from allam_jax.inputs import look


@pytest.fixture
def folder(tmp_path):
    for name in ("a.txt", "sub/b.txt", "sub/c.txt"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(name)
    return tmp_path / "data"


def files(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file())


def test_a_record_holds_size_time_and_hash(folder):
    record = look(folder, files(folder)).record()
    assert list(record) == ["a.txt", "sub/b.txt", "sub/c.txt"]
    status = (folder / "a.txt").stat()
    assert record["a.txt"] == [5, status.st_mtime_ns, xxhash.xxh3_128_hexdigest(b"a.txt")]
    assert look(folder, files(folder)).changed(record) == ([], False)


def test_every_change_is_named(folder):
    record = look(folder, files(folder)).record()
    (folder / "new.txt").write_text("")
    (folder / "sub" / "b.txt").write_text("longer than before")
    (folder / "sub" / "c.txt").unlink()
    lines, _ = look(folder, files(folder)).changed(record)
    assert lines == ["new.txt is new", "sub/b.txt has changed (9 bytes before, 18 now)", "sub/c.txt is gone"]


def test_another_time_is_no_change_but_another_content_is(folder, tmp_path, monkeypatch):
    record = look(folder, files(folder)).record()
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved, copy_function=shutil.copyfile)
    for file in files(moved):
        os.utime(file, (1, 1))
    assert look(moved, files(moved)).changed(record) == ([], True)
    (moved / "a.txt").write_text("b.txt")  # as long as before
    assert look(moved, files(moved)).changed(record) == (["a.txt has changed"], False)
    # Where times agree, nothing is read.
    monkeypatch.setattr(inputs, "_hash", None)
    assert look(folder, files(folder)).changed(record) == ([], False)


def test_a_file_that_changed_while_it_was_read_never_counts_as_equal(folder):
    before = look(folder, files(folder))
    (folder / "a.txt").write_text("b.txt")
    os.utime(folder / "a.txt", (1, 1))
    record = before.record()
    assert record["a.txt"][2] == ""
    assert look(folder, files(folder)).changed(record)[0] == ["a.txt has changed"]
