"""Compressed files: streams one after the other, cut off, damaged, with zeros or rubbish around."""

import json
import lzma
import re

import pytest
import zstandard
from read_files import JSONL, TEXTS, compress, read

from allam_jax.errors import UserError


def test_zstd_of_several_frames_and_more_than_one_block(tmp_path):
    lines = [json.dumps({"text": f"line {number} " + "y" * 400}).encode() for number in range(20_000)]
    frames = [zstandard.compress(b"\n".join(part) + b"\n") for part in (lines[:7_000], lines[7_000:])]
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(frames))
    _, documents = read(path)
    assert [document.text for document in documents] == [json.loads(line)["text"] for line in lines]


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("kept", [0.001, 0.3, 0.9, 0.999])
def test_cut_off_archives_are_an_error(tmp_path, suffix, kept):
    lines = b"".join(json.dumps({"text": f"{number * 7919 % 10007} text"}).encode() + b"\n" for number in range(20_000))
    content = compress(lines, suffix)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UserError, match="a.jsonl.*: damaged or cut short .*fetch it again") as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_no_damaged_byte_of_an_archive_passes_unseen(tmp_path, suffix):
    checked = zstandard.ZstdCompressor(write_checksum=True)
    content = checked.compress(JSONL) if suffix == ".zst" else compress(JSONL, suffix)
    path = tmp_path / f"a.jsonl{suffix}"
    refused = 0
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        try:
            _, documents = read(path)
        except UserError:
            refused += 1
        else:  # a byte without influence on the content, such as gzip's time stamp
            assert [document.text for document in documents] == TEXTS
    assert refused > 0.8 * len(content)


def streams(suffix, *contents):
    if suffix == ".zst":
        checked = zstandard.ZstdCompressor(write_checksum=True)
        return [checked.compress(content) for content in contents]
    return [compress(content, suffix) for content in contents]


ROWS = [f'{{"text": "text {number}"}}\n'.encode() for number in range(4)]


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_no_damaged_byte_of_several_streams_passes_unseen(tmp_path, suffix):
    parts = streams(suffix, ROWS[0] + ROWS[1], ROWS[2], ROWS[3])
    content, path = b"".join(parts), tmp_path / f"a.jsonl{suffix}"
    expected = [f"text {number}" for number in range(4)]
    path.write_bytes(content)
    assert [document.text for document in read(path)[1]] == expected
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        try:
            reader, documents = read(path, max_damaged_share=1.0, max_bad_share=1.0)
        except UserError as error:  # nothing is left
            texts, damage = [], re.search("damaged or cut short", str(error))
        else:
            texts, damage = [document.text for document in documents], reader.counts[path].damage
        assert texts == expected or (damage and texts == expected[: len(texts)]), position


def test_damage_keeps_what_comes_before_it(tmp_path):
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(lzma.compress(ROWS[0]) + b"\xfd7zXY" + lzma.compress(ROWS[1])[5:])
    with pytest.raises(UserError, match="a.jsonl.xz: damaged or cut short"):
        read(path)
    reader, documents = read(path, max_damaged_share=1.0)
    assert [document.text for document in documents] == ["text 0"]
    assert reader.counts[path].damage


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("zeros", [1, 3, 4, 512, 300_000])
@pytest.mark.parametrize("last", [False, True])
def test_zeros_between_and_after_streams(tmp_path, suffix, zeros, last):
    """The file format of xz allows multiples of four zeros, gzip any number (as its program reads), others none."""
    first, second = streams(suffix, ROWS[0], ROWS[1])
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(first + second + bytes(zeros) if last else first + bytes(zeros) + second)
    if suffix == ".gz" or (suffix == ".xz" and zeros % 4 == 0):
        assert [document.text for document in read(path)[1]] == ["text 0", "text 1"]
    else:
        with pytest.raises(UserError, match="damaged or cut short"):
            read(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("rubbish", [b"\n", b"abc", b"BZ", b"\xfd7zXZ", b"\x1f\x8b", b"\x28\xb5\x2f"])
def test_what_follows_the_last_stream_is_no_rubbish(tmp_path, suffix, rubbish):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(streams(suffix, ROWS[0])[0] + rubbish)
    with pytest.raises(UserError, match="damaged or cut short"):
        read(path)


def test_many_small_streams(tmp_path):
    rows = [f'{{"text": "{number}"}}\n'.encode() for number in range(300)]
    for suffix in (".gz", ".zst", ".bz2", ".xz"):
        (tmp_path / f"a.jsonl{suffix}").write_bytes(b"".join(streams(suffix, *rows)))
    assert [document.text for document in read(tmp_path)[1]] == [str(number) for number in range(300)] * 4


def test_zstd_with_a_long_window_is_read(tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=31, compression_level=1, write_content_size=False)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(stream.compress(JSONL) + stream.flush())
    assert zstandard.get_frame_parameters((tmp_path / "a.jsonl.zst").read_bytes()).window_size == 2**31
    assert [document.text for document in read(tmp_path)[1]] == TEXTS
