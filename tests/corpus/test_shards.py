import hashlib
import json
import os
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from allam_jax.corpus.document import Document
from allam_jax.corpus.shards import check_shard, read_manifest, write_dataset
from allam_jax.errors import UserError


def corpus(count=1000):
    lengths = [1, 100, 127, 128, 129, 16_383, 16_384, 20_000]  # around the steps of a protobuf varint
    return [
        Document(text=f"نص {number} " + "ع" * lengths[number % 8], id=f"d{number}", source="s", language="ar")
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "books"
    manifest = write_dataset(
        corpus(),
        directory=directory,
        name="books",
        validation_share=0.1,
        shard_bytes=2_000_000,
        metadata={"licence": "MIT"},
    )
    return directory, manifest


def test_tfds_reads_every_document_without_tensorflow(dataset):
    directory, _ = dataset
    builder = tfds.builder_from_directory(directory)
    read = {}
    for split in ("train", "validation"):
        source = builder.as_data_source(split)
        assert len(source) == builder.info.splits[split].num_examples
        for record in source:
            fields = {key: value.decode() for key, value in record.items()}
            read[fields["id"]] = fields
    assert read == {d.id: {"text": d.text, "id": d.id, "source": "s", "language": "ar"} for d in corpus()}
    assert "tensorflow" not in sys.modules
    assert builder.info.name == "books"


def test_counts_are_those_of_the_documents(dataset):
    directory, manifest = dataset
    assert manifest == read_manifest(directory) == json.loads((directory / "manifest.json").read_text())
    documents = {document.id: document for document in corpus()}
    builder = tfds.builder_from_directory(directory)
    for split, counts in manifest["splits"].items():
        texts = [documents[record["id"].decode()].text for record in builder.as_data_source(split)]
        assert counts["documents"] == len(texts)
        assert counts["bytes"] == sum(len(text.encode()) for text in texts)
        assert counts["words"] == sum(len(text.split()) for text in texts)
        for shard in counts["shards"]:
            content = (directory / shard["file"]).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (shard["size"], shard["sha256"])
    assert len(manifest["splits"]["train"]["shards"]) > 2


def test_the_split_depends_on_the_id_alone(dataset, tmp_path):
    directory, manifest = dataset
    held_out = {r["id"] for r in tfds.builder_from_directory(directory).as_data_source("validation")}
    assert 70 < manifest["splits"]["validation"]["documents"] < 130  # 100 expected, 3 standard deviations of 9.5
    write_dataset(reversed(corpus(500)), directory=tmp_path / "b", name="b", validation_share=0.1)
    half = {r["id"] for r in tfds.builder_from_directory(tmp_path / "b").as_data_source("validation")}
    assert half == {id_ for id_ in held_out if int(id_[1:]) < 500}
    write_dataset(corpus(), directory=tmp_path / "c", name="c", validation_share=0.1, seed=1)
    assert held_out != {r["id"] for r in tfds.builder_from_directory(tmp_path / "c").as_data_source("validation")}


def test_same_documents_same_bytes_in_another_process(dataset, tmp_path):
    program = (
        "import sys; sys.path[:0] = sys.argv[2:]; from test_shards import corpus\n"
        "from allam_jax.corpus.shards import write_dataset\n"
        "options = dict(name='books', validation_share=0.1, shard_bytes=2_000_000)\n"
        "print(write_dataset(corpus(), directory=sys.argv[1], **options)['fingerprint'])"
    )
    here = os.path.dirname(__file__)
    root = os.path.dirname(os.path.dirname(here))
    command = [sys.executable, "-c", program, str(tmp_path / "again"), here, root]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.split()[-1] == dataset[1]["fingerprint"]


def test_no_validation_split(tmp_path):
    manifest = write_dataset(corpus(10), directory=tmp_path / "a", name="a", validation_share=0)
    assert list(manifest["splits"]) == ["train"]
    assert list(tfds.builder_from_directory(tmp_path / "a").info.splits) == ["train"]


def test_bad_arguments_and_empty_splits_leave_nothing_behind(tmp_path):
    for documents, options, message in (
        ([], {}, "the split 'train' has no document"),
        (corpus(3), {"validation_share": 1e-9}, "the split 'validation' has no document"),
        (corpus(3), {"name": "Books-2"}, "dataset name 'Books-2'"),
    ):
        with pytest.raises(UserError, match=message):
            write_dataset(documents, **{"directory": tmp_path / "a", "name": "a", **options})

    def broken():
        yield from corpus(5)
        raise UserError("the reader failed")

    with pytest.raises(UserError, match="the reader failed"):
        write_dataset(broken(), directory=tmp_path / "a", name="a")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_user_error_and_leaves_nothing_behind(tmp_path):
    """In a process of its own, where no file may grow beyond 200 kB: what a full disk is to a writer."""
    program = (
        "import resource, signal, sys; sys.path[:0] = sys.argv[2:]\n"
        "from test_shards import corpus\n"
        "from allam_jax.corpus.shards import write_dataset\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "documents = [d.__class__(**{**vars(d), 'text': repr(hash((d.id, 1)) ** 9) * 50}) for d in corpus()]\n"
        "try: write_dataset(documents, directory=sys.argv[1], name='a')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", program, str(tmp_path / "a"), here, os.path.dirname(os.path.dirname(here))]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith(f"UserError {tmp_path / 'a'}: cannot write the dataset (")
    assert result.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rewrite_keeps_the_old_dataset(tmp_path):
    write_dataset(corpus(100), directory=tmp_path / "a", name="a", validation_share=0.1)
    with pytest.raises(UserError):
        write_dataset([], directory=tmp_path / "a", name="a")
    assert tfds.builder_from_directory(tmp_path / "a").info.splits.total_num_examples == 100
    assert write_dataset(corpus(200), directory=tmp_path / "a", name="a") == read_manifest(tmp_path / "a")


def test_check_shard_names_what_is_wrong(tmp_path):
    counts = write_dataset(corpus(200), directory=tmp_path / "a", name="a", validation_share=0)["splits"]["train"]
    (shard,) = counts["shards"]
    path = tmp_path / "a" / shard["file"]
    check_shard(path, documents=200, size=shard["size"])
    with pytest.raises(UserError, match="array_record-00000-of-00001: 200 records instead of 201"):
        check_shard(path, documents=201)
    content = path.read_bytes()
    for length in (0, 1000, 65_536, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=f"damaged shard .{length} bytes instead of {len(content)}"):
            check_shard(path, documents=200, size=shard["size"])
        with pytest.raises(UserError, match="damaged or cut short, not a readable ArrayRecord file"):
            check_shard(path, documents=200)
    path.unlink()
    with pytest.raises(UserError, match="no such shard"):
        check_shard(path, documents=200)
