"""Atomic writes: what a reader sees is the old content or the new, never a part."""

import errno
import hashlib
import itertools
import os
import resource
import shutil
import threading

import numpy as np
import pytest

from allam_jax import files
from allam_jax.errors import UserError


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_file_appears_under_its_name_only_when_complete(tmp_path):
    target = tmp_path / "new" / "folder" / "file.txt"
    with files.atomic_path(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert names_in(target.parent) == ["file.txt"]


def write_half_a_file(target, *, stopped_by):
    with files.atomic_path(target) as temporary:
        temporary.write_text("half of the new")
        raise stopped_by


def write_half_a_directory(target, *, stopped_by):
    with files.atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
        raise stopped_by


@pytest.mark.parametrize("stopped_by", [OSError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_no_litter(tmp_path, stopped_by):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(stopped_by):
        write_half_a_file(target, stopped_by=stopped_by)
    assert target.read_text() == "old"
    assert names_in(tmp_path) == ["file.txt"]


def test_an_exception_leaves_the_old_directory_and_no_litter(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(KeyboardInterrupt):
        write_half_a_directory(target, stopped_by=KeyboardInterrupt)
    assert names_in(target) == ["old"]
    assert names_in(tmp_path) == ["folder"]


def test_a_directory_replaces_a_directory_without_mixing_them(tmp_path):
    target = tmp_path / "folder"
    for content in ("old", "new"):
        with files.atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / content).touch()
    assert names_in(target) == ["new"]
    assert names_in(tmp_path) == ["folder"]


def test_two_writers_of_one_name_do_not_share_a_temporary(tmp_path):
    target = tmp_path / "file.txt"
    with files.atomic_path(target) as first, files.atomic_path(target) as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second
        assert first.read_text() == "first"
    assert target.read_text() == "first"  # the outer block ends last
    assert names_in(tmp_path) == ["file.txt"]


def test_replacing_keeps_an_open_reader_on_the_old_content(tmp_path):
    target = tmp_path / "file.txt"
    files.write_text(target, "old")
    with open(target) as reader:
        files.write_text(target, "new, and longer")
        assert reader.read() == "old"
    assert target.read_text() == "new, and longer"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_an_error_that_leaves_the_old_file(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            files.write_text(target, "new")
    finally:
        tmp_path.chmod(0o700)
    assert target.read_text() == "old"


def test_text_is_utf8_with_unix_newlines(tmp_path):
    files.write_text(tmp_path / "a.txt", "سلام\nb\n")
    assert (tmp_path / "a.txt").read_bytes() == "سلام\nb\n".encode()


def test_json_keeps_values_key_order_and_arabic(tmp_path):
    value = {"ب": [1, 2.5, None, True], "a": {"z": "علّام", "y": -1e-9}}
    files.write_json(tmp_path / "a.json", value)
    read = files.read_json(tmp_path / "a.json")
    assert read == value
    assert list(read) == ["ب", "a"]
    assert "علّام" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.json"
    files.write_json(target, {"old": 1})
    with pytest.raises(TypeError):
        files.write_json(target, {"new": object()})
    assert files.read_json(target) == {"old": 1}
    assert names_in(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [b'{"a": 1', b"", b"\xff\xfe{}"])
def test_bad_json_is_a_one_line_user_error_with_the_path(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        files.read_json(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_json_is_a_user_error_with_the_path(tmp_path):
    with pytest.raises(UserError, match="absent.json: no such file"):
        files.read_json(tmp_path / "absent.json")


def test_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    content = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(content)
    assert files.sha256_of_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_hash_of_json_ignores_key_order_and_nothing_else():
    assert files.sha256_of_json({"a": 1, "b": [1, 2]}) == files.sha256_of_json({"b": [1, 2], "a": 1})
    values = [{"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, [1, 2], [2, 1]]
    assert len({files.sha256_of_json(value) for value in values}) == len(values)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_lock_that_is_held_is_refused_until_it_ends(tmp_path, kind):
    path = tmp_path if kind == "directory" else tmp_path / "a.lock"
    held = files.lock(path, busy="it is taken", wait=False)
    with held, pytest.raises(UserError, match="it is taken"), files.lock(path, busy="it is taken", wait=False):
        pass
    with files.lock(path, busy="it is taken", wait=False):
        pass


def test_a_lock_that_is_held_is_waited_for(tmp_path):
    path, order = tmp_path / "a.lock", []

    def second():
        with files.lock(path, busy="waiting", wait=True):
            order.append("second")

    with files.lock(path, busy="never", wait=False):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(timeout=0.2)
        assert thread.is_alive()
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]


def test_arrays_that_do_not_fit_on_the_disk_say_why(tmp_path):
    array = np.arange(1_000_000)
    files.write_array(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), array)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(OSError) as error:  # noqa: PT011 - the number is compared below
            files.write_array(tmp_path / "b.npy", array)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.errno == errno.EFBIG
    assert names_in(tmp_path) == ["a.npy"]


def test_json_has_no_nan(tmp_path):
    files.write_json(tmp_path / "a.json", {"x": [float("nan"), 1.5, {"y": float("-inf")}], "z": (float("inf"), 2)})
    assert (tmp_path / "a.json").read_text().split() == files.json_text(
        {"x": [None, 1.5, {"y": None}], "z": [None, 2]}, indent=2
    ).split()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds a list where an object belongs"),
        ("3", "holds a whole number where an object belongs"),
        ("{}", "lacks the key 'steps'"),
        ('{"steps": "3"}', "'steps' is a string, expected a whole number or a number"),
        ('{"steps": true}', "'steps' is a truth value, expected a whole number or a number"),
        ('{"steps": null}', "'steps' is null, expected a whole number or a number"),
        ("", "is empty"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_json_of_another_shape_names_file_and_key(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        files.read_json(path, keys={"steps": (int, float)})
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_directory_where_json_belongs_is_told(tmp_path):
    (tmp_path / "a.json").mkdir()
    for path in (tmp_path / "a.json", tmp_path / "file" / "a.json"):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=f"{path}: expected a file of JSON"):
            files.read_json(path)


def replace_dying_at(target, moment):
    """Replaces a directory in a process that ends before its system call number `moment`."""
    if os.fork():
        os.wait()
        return
    calls = itertools.count()

    def dying(call):
        def wrapped(*args, **options):
            if next(calls) == moment:
                os._exit(0)
            return call(*args, **options)

        return wrapped

    os.replace, os.mkdir, shutil.rmtree = map(dying, (os.replace, os.mkdir, shutil.rmtree))
    with files.atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    os._exit(0)


@pytest.mark.parametrize("exchange", [True, False])
def test_what_a_killed_process_left_is_swept(tmp_path, monkeypatch, exchange):
    """Afterwards the old or the new is there, whole, and no litter."""
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    seen = set()
    for moment in range(6):
        target = tmp_path / str(moment) / "data"
        target.mkdir(parents=True)
        (target / "old").touch()
        replace_dying_at(target, moment)
        seen.add(tuple(names_in(target.parent)))
        files.sweep(target.parent)
        assert names_in(target.parent) == ["data"]
        assert names_in(target) in (["old"], ["new"])
    assert len(seen) > 1, "no kill left anything"


def test_sweeping_leaves_what_is_not_ours(tmp_path):
    for name in (".hidden", "x.tmp", ".x.tmp", ".x.0123456.tmp", ".gitignore"):
        (tmp_path / name).touch()
    before = names_in(tmp_path)
    files.sweep(tmp_path)
    assert names_in(tmp_path) == before
