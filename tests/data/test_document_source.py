import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from small_corpus import TEXTS

from allam_jax.data.documents import DocumentSource
from allam_jax.errors import UserError


@pytest.mark.parametrize("name", TEXTS)
def test_texts_in_order(datasets, name):
    source = DocumentSource(datasets / name, split="train")
    assert [source[index] for index in range(len(source))] == TEXTS[name]


def test_fingerprints_tell_datasets_and_splits_apart(datasets, tmp_path):
    names = [("en", "train"), ("ar", "train"), ("split", "train"), ("split", "validation")]
    fingerprints = [DocumentSource(datasets / name, split=split).fingerprint for name, split in names]
    assert len(set(fingerprints)) == 4
    shutil.copytree(datasets / "en", tmp_path / "elsewhere")
    assert DocumentSource(tmp_path / "elsewhere", split="train").fingerprint == fingerprints[0]


def test_a_tfds_dataset_made_elsewhere(tmp_path):
    """Other features beside `text`, and no manifest."""
    features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "score": tfds.features.Scalar(np.float32)})
    texts = ["مرحبا", "b", "c" * 1000]
    writer = ArrayRecordWriter(str(tmp_path / "web-train.array_record-00000-of-00001"), "group_size:1")
    for text in texts:
        writer.write(features.serialize_example({"text": text, "score": 0.5}))
    writer.close()
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    name = tfds.core.ShardedFileTemplate(
        data_dir=tmp_path, dataset_name="web", split="train", filetype_suffix="array_record", template=template
    )
    split = tfds.core.SplitInfo(name="train", shard_lengths=[3], num_bytes=1, filename_template=name)
    tfds.folder_dataset.write_metadata(
        data_dir=tmp_path, features=features, split_infos=[split], filename_template=template, check_data=False
    )
    source = DocumentSource(tmp_path, split="train")
    assert [source[index] for index in range(3)] == texts


def damaged(datasets, tmp_path):
    return shutil.copytree(datasets / "en", tmp_path / "en")


def shards(directory):
    return sorted(directory.glob("*.array_record*"))


def test_unknown_paths_splits_and_features(datasets, tmp_path):
    with pytest.raises(UserError, match="nothing: no dataset here"):
        DocumentSource(tmp_path / "nothing", split="train")
    with pytest.raises(UserError, match="no split 'validatoin'; did you mean validation?"):
        DocumentSource(datasets / "split", split="validatoin")
    with pytest.raises(UserError, match="no split 'xyz'; known: train, validation"):
        DocumentSource(datasets / "split", split="xyz")
    directory = damaged(datasets, tmp_path)
    features = json.loads((directory / "features.json").read_text())
    (directory / "files.json").unlink()
    features["featuresDict"]["features"]["body"] = features["featuresDict"]["features"].pop("text")
    (directory / "features.json").write_text(json.dumps(features))
    with pytest.raises(UserError, match="no feature 'text'; it has body, id"):
        DocumentSource(directory, split="train")
    (directory / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="en: not a readable TFDS dataset") as error:
        DocumentSource(directory, split="train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("manifest", ["with", "without"])
def test_truncated_and_missing_shards_are_named_on_opening(datasets, tmp_path, manifest):
    directory = damaged(datasets, tmp_path)
    if manifest == "without":
        (directory / "manifest.json").unlink()
        (directory / "files.json").unlink()
    shard = shards(directory)[1]
    content = shard.read_bytes()
    for length in (0, 1000, len(content) // 2, len(content) - 1):
        shard.write_bytes(content[:length])
        with pytest.raises(UserError, match=rf"{shard.name}: (damaged|is [\d,]+ bytes long instead of)") as error:
            DocumentSource(directory, split="train")
        assert "\n" not in str(error.value)
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name}: (no such shard|is missing)"):
        DocumentSource(directory, split="train")
    shard.write_bytes(shards(directory)[0].read_bytes())
    with pytest.raises(UserError, match=rf"{shard.name}: (damaged|is |\d+ records instead of \d+)"):
        DocumentSource(directory, split="train")


def test_a_damaged_record_is_named_on_reading(datasets, tmp_path):
    """A flipped bit leaves size and count as they are: only reading that record shows it."""
    directory = damaged(datasets, tmp_path)
    shard = shards(directory)[1]
    content = bytearray(shard.read_bytes())
    content[500] ^= 0xFF
    shard.write_bytes(content)
    source = DocumentSource(directory, split="train")
    failures = []
    for index in range(len(source)):
        try:
            assert source[index] == TEXTS["en"][index]
        except UserError as error:
            failures.append(str(error))
    assert failures
    assert all(f"{shard}: damaged record" in failure and "\n" not in failure for failure in failures)
    assert len(failures) < len(source)
