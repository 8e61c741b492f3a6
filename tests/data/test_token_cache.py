"""Token caches: batches out of them are those out of the text, and nothing that does not fit is read."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from small_corpus import BOS, EOS, TEXTS, ByteTokenizer, load

from allam_jax.checksums import write_listed
from allam_jax.corpus.document import Document
from allam_jax.corpus.shards import write_dataset
from allam_jax.data.batch import DTYPES
from allam_jax.data.documents import DocumentSource
from allam_jax.data.token_cache import MANIFEST, TokenSource, is_token_cache, read_cache
from allam_jax.data.token_writer import write_tokens
from allam_jax.errors import UserError
from allam_jax.files import read_json, sha256_of_file
from allam_jax.tasks import tokenize
from allam_jax.tasks.registry import settings_of
from allam_jax.tokenizer.sentencepiece_training import train_sentencepiece
from allam_jax.tokenizer.tokenizer import Tokenizer
from configs import base

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]


@pytest.fixture(scope="module")
def caches(datasets, tokenizer, tmp_path_factory):
    """Caches of the three datasets, in shards of at least 900 tokens."""
    root = tmp_path_factory.mktemp("tokens")
    for name in TEXTS:
        write_tokens(datasets / name, split="train", tokenizer=tokenizer, directory=root / name, shard_tokens=900)
    return root


def sources(*roots, weights=(0.5, 0.3, 0.2)):
    """One dataset of each name, from the directory that stands at its place."""
    places = roots * 3 if len(roots) == 1 else roots
    return {
        name: {"path": root / name, "weight": weight} for name, root, weight in zip(TEXTS, places, weights, strict=True)
    }


def batches(count, *, state=None, **options):
    defaults = {"tokenizer": ByteTokenizer(), "seq_len": 48, "batch_size": 8, "seed": 3}
    with load(**{**defaults, **options}) as loader:
        if state is not None:
            loader.set_state(state)
        return [next(loader) for _ in range(count)], loader.get_state()


def assert_same(some, others):
    for batch, other in zip(some, others, strict=True):
        for key in DTYPES:
            assert batch[key].dtype == other[key].dtype
            np.testing.assert_array_equal(batch[key], other[key])


def test_the_files_hold_what_the_heading_says(caches):
    """Read back with numpy alone."""
    manifest = read_json(caches / "en" / MANIFEST)
    assert len(manifest["shards"]) > 3
    documents = []
    for number in range(len(manifest["shards"])):
        tokens = np.load(caches / "en" / f"train-{number:05d}.tokens.npy")
        index = np.load(caches / "en" / f"train-{number:05d}.index.npy")
        assert (tokens.dtype, index.dtype) == (np.uint16, np.uint64)
        assert len(tokens) >= 900 or number == len(manifest["shards"]) - 1
        start = 0
        for end, checksum in index.tolist():
            assert zlib.crc32(tokens[start:end].tobytes()) == checksum
            documents.append(tokens[start:end].tolist())
            start = end
        assert start == len(tokens)
    assert documents == [[BOS, *text.encode(), EOS] for text in TEXTS["en"]]
    bytes_of_text = sum(len(text.encode()) for text in TEXTS["en"])
    assert manifest["tokens"] == bytes_of_text + 2 * len(documents)
    assert manifest["targets"] == bytes_of_text + len(documents)


def test_the_same_batches_from_text_and_from_tokens(datasets, caches):
    text, text_state = batches(60, sources=sources(datasets))
    assert max(text[-1]["segment_ids"].max() for _ in [0]) > 1
    cached, cached_state = batches(60, sources=sources(caches))
    assert_same(text, cached)
    assert cached_state == text_state
    mixed, _ = batches(60, sources=sources(caches, datasets, caches))
    assert_same(text, mixed)
    # One goes on where the other was.
    _, state = batches(25, sources=sources(datasets))
    resumed, _ = batches(35, sources=sources(caches), state=state)
    assert_same(text[25:], resumed)
    parts = [batches(10, sources=sources(caches), process_index=p, process_count=4)[0] for p in range(4)]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in DTYPES} for step in zip(*parts, strict=True)
    ]
    assert_same(text[:10], joined)


def test_a_real_tokenizer_gives_the_same_batches(tmp_path):
    texts = [" ".join(f"كلمة{i * j % 13} word{j}" for j in range(i % 40 + 1)) for i in range(80)]
    documents = [Document(text=text, id=str(i), source="s", language="ar") for i, text in enumerate(texts)]
    write_dataset(documents, directory=tmp_path / "text", name="s", validation_share=0)
    train_sentencepiece(iter(texts), output=tmp_path / "tokenizer", vocab_size=290)
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    write_tokens(tmp_path / "text", split="train", tokenizer=tokenizer, directory=tmp_path / "tokens")
    options = {"tokenizer": tokenizer, "batch_size": 4}
    text, _ = batches(40, sources={"s": {"path": tmp_path / "text"}}, **options)
    cached, _ = batches(40, sources={"s": {"path": tmp_path / "tokens"}}, **options)
    assert_same(text, cached)


def test_another_mixture_needs_no_tokenizer(datasets, caches):
    class Mute(ByteTokenizer):
        def encode(self, text, **options):
            raise AssertionError("tokenised again")

    for weights in ((1, 0, 0), (0.1, 0.2, 0.7)):
        cached, _ = batches(20, sources=sources(caches, weights=weights), tokenizer=Mute())
        text, _ = batches(20, sources=sources(datasets, weights=weights))
        assert_same(text, cached)
    phases = {"mid": {"from_step": 4, "weights": {"code": 1}}}
    cached, _ = batches(8, sources=sources(caches), tokenizer=Mute(), phases=phases)
    assert [set(batch["source_ids"].ravel().tolist()) == {2} for batch in cached] == [False] * 4 + [True] * 4


def test_large_vocabularies_get_wide_integers(datasets, tmp_path):
    class Wide(ByteTokenizer):
        vocab_size, fingerprint = 2**16 + 1, "wide"

        def encode(self, text, *, bos=False, eos=False):
            return [65536, *text.encode(), EOS]

    write_tokens(datasets / "ar", split="train", tokenizer=Wide(), directory=tmp_path / "wide")
    source = TokenSource(tmp_path / "wide", split="train")
    assert [source[i].tolist() for i in range(len(source))] == [[65536, *t.encode(), EOS] for t in TEXTS["ar"]]
    assert source[0].dtype == np.int32


def test_what_does_not_fit_is_refused(datasets, caches, tmp_path):
    class Other(ByteTokenizer):
        fingerprint = "another one"

    en = {"en": {"path": caches / "en"}}
    for options, message in (
        ({"tokenizer": Other()}, "made by tokenizer bytes, but this run's is another one; run the tokenize task"),
        ({"sources": {"en": {"path": caches / "en", "split": "validation"}}}, "tokens of split 'train', not of 'valid"),
    ):
        with pytest.raises(UserError, match=message) as error:
            batches(1, **{"sources": en, **options})
        assert "\n" not in str(error.value)
    assert (
        TokenSource(caches / "en", split="train").fingerprint
        == DocumentSource(datasets / "en", split="train").fingerprint
    )
    with pytest.raises(UserError, match="no split 'nothing'"):
        write_tokens(datasets / "split", split="nothing", tokenizer=ByteTokenizer(), directory=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_documents_that_have_changed_since_are_noticed(tmp_path):
    def write(texts):
        documents = [Document(text=text, id=str(i), source="s", language="en") for i, text in enumerate(texts)]
        write_dataset(documents, directory=tmp_path / "text", name="s", validation_share=0)

    write(["one", "two"])
    tokenise = {"split": "train", "tokenizer": ByteTokenizer(), "directory": tmp_path / "tokens"}
    write_tokens(tmp_path / "text", **tokenise)
    write(["one", "three"])
    with pytest.raises(UserError, match="text have changed since they were tokenised; run the tokenize task again"):
        TokenSource(tmp_path / "tokens", split="train")
    write_tokens(tmp_path / "text", **tokenise)
    assert TokenSource(tmp_path / "tokens", split="train")[1].tolist() == [BOS, *b"three", EOS]
    shutil.rmtree(tmp_path / "text")  # the tokens alone will do
    assert len(TokenSource(tmp_path / "tokens", split="train")) == 2


def test_damage_is_named(caches, tmp_path):
    for kind, change, message in (
        ("missing", lambda path: path.unlink(), "train-00001.tokens.npy: is missing"),
        ("cut", lambda path: os.truncate(path, 100), "train-00001.tokens.npy: is 100 bytes long instead of"),
        ("flipped", flip, "train-00001.tokens.npy: damaged tokens of document"),
        ("header", lambda path: flip(path, 3), "train-00001.tokens.npy: not readable"),
    ):
        copy = shutil.copytree(caches / "en", tmp_path / kind)
        read_cache(copy)[1].check_bytes(remedy="")
        change(copy / "train-00001.tokens.npy")
        with pytest.raises(UserError, match=message) as error:
            batches(60, sources={"en": {"path": copy}})
        assert "\n" not in str(error.value)
        with pytest.raises(UserError, match=r"train-00001.tokens.npy: "):
            read_cache(copy)[1].check_bytes(remedy="")


def test_a_cache_of_an_older_version_says_what_to_do(caches, tmp_path):
    copy = shutil.copytree(caches / "en", tmp_path / "old")
    manifest = read_json(copy / MANIFEST) | {"version": 1}
    write_listed(copy, {MANIFEST: json.dumps(manifest).encode()})
    with pytest.raises(UserError, match="old: tokens of version 1, not 2; run the tokenize task again"):
        TokenSource(copy, split="train")


def flip(path, position=300):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x40
    path.write_bytes(content)


PROGRAM = """
import os, sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[3], sys.argv[4]]
from small_corpus import ByteTokenizer
from allam_jax.data import token_writer
class Slow(ByteTokenizer):
    def encode_batch(self, texts, **options):
        time.sleep(0.05)
        return super().encode_batch(texts, **options)
token_writer._BATCH_CHARACTERS = 300
source, directory = map(Path, sys.argv[1:3])
token_writer.write_tokens(source, split="train", tokenizer=Slow(), directory=directory, shard_tokens=900)
"""


def test_killed_it_goes_on_and_writes_the_same_bytes(datasets, caches, tmp_path):
    command = [sys.executable, "-c", PROGRAM, datasets / "en", tmp_path / "en", HERE, ROOT]
    unfinished = tmp_path / ".en.unfinished"
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE)
    end = time.monotonic() + 240
    while not (unfinished / "00001.json").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "en").exists()
    kept = (unfinished / "train-00000.tokens.npy").stat().st_ino
    flip(unfinished / "train-00001.tokens.npy")  # as if its bytes had not reached the disk: it is written anew
    write_tokens(datasets / "en", split="train", tokenizer=ByteTokenizer(), directory=tmp_path / "en", shard_tokens=900)
    assert not unfinished.exists()
    assert (tmp_path / "en" / "train-00000.tokens.npy").stat().st_ino == kept
    names = sorted(path.name for path in (caches / "en").iterdir())
    assert sorted(path.name for path in (tmp_path / "en").iterdir()) == names
    for name in names:
        assert sha256_of_file(tmp_path / "en" / name) == sha256_of_file(caches / "en" / name), name


def test_a_finished_cache_is_kept_and_another_tokenizer_replaces_it(datasets, tmp_path):
    class Other(ByteTokenizer):
        fingerprint = "other"

    directory = tmp_path / "ar"
    first = write_tokens(datasets / "ar", split="train", tokenizer=ByteTokenizer(), directory=directory)
    before = (directory / MANIFEST).stat().st_ino
    assert write_tokens(datasets / "ar", split="train", tokenizer=ByteTokenizer(), directory=directory) == first
    assert (directory / MANIFEST).stat().st_ino == before
    for damage in (lambda: flip(directory / "train-00000.tokens.npy"), (directory / "files.json").unlink):
        damage()
        assert write_tokens(datasets / "ar", split="train", tokenizer=ByteTokenizer(), directory=directory) == first
        read_cache(directory)[1].check_bytes(remedy="")
    write_tokens(datasets / "ar", split="train", tokenizer=Other(), directory=directory)
    assert read_json(directory / MANIFEST)["tokenizer"] == "other"
    assert is_token_cache(directory)
    assert not is_token_cache(datasets / "ar")


def test_every_source_is_looked_at_before_the_first_is_written(datasets, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenize, "open_tokenizer", lambda config: (ByteTokenizer(), None))
    config = base.get_config("train")
    config.data.sources.first = base.mixture(path=str(datasets / "ar"))
    config.data.sources.second = base.mixture(path=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="nothing: no dataset here"):
        tokenize.run(settings_of(config, task="tokenize"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
