"""Workdirs: whose they are, and a config that a crash has lost."""

import json

import pytest
from ml_collections import ConfigDict

from allam_jax.checksums import write_list
from allam_jax.config import check_own, differences, save
from allam_jax.errors import UserError

OURS = ConfigDict({"task": "train", "seed": 1})


def test_a_new_empty_or_own_workdir_is_used(tmp_path):
    check_own(tmp_path / "new", task="train")
    check_own(tmp_path, task="train")
    (tmp_path / ".DS_Store").touch()
    check_own(tmp_path, task="train")
    assert save(OURS, workdir=tmp_path) == []
    check_own(tmp_path, task="train")
    assert save(ConfigDict({"task": "train", "seed": 2}), workdir=tmp_path) == ["seed: 1 -> 2"]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text('{"task": "train"}')  # from before there were lists
    check_own(tmp_path / "old", task="train")


def test_a_training_run_is_replaced_by_no_other_task(tmp_path):
    save(OURS, workdir=tmp_path)
    (tmp_path / "run.json").write_text("{}")
    check_own(tmp_path, task="train")
    with pytest.raises(UserError, match="holds a training run, whose config.json the task generate would replace"):
        check_own(tmp_path, task="generate")


def test_differences_are_keys_with_both_values():
    old = {"seed": 1, "corpus": {"sources": {"en": {"path": "a", "rules": "x"}}}, "plan": {}, "names": {"a": 1}}
    new = {"seed": 2, "corpus": {"sources": {"ar": {"path": "b"}, "fa": {}}}, "names": 5, "text": "x" * 99}
    shown = "'" + "x" * 75 + " ..."
    assert differences(old, new) == [
        "corpus.sources.ar.path: (absent) -> 'b'",
        "corpus.sources.en.path: 'a' -> (absent)",
        "corpus.sources.en.rules: 'x' -> (absent)",
        "corpus.sources.fa: (absent) -> {}",
        "names: {'a': 1} -> 5",
        "plan: {} -> (absent)",
        "seed: 1 -> 2",
        f"text: (absent) -> {shown}",
    ]
    assert differences(old, old) == []


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"[]", b'{"task": "tra'])
def test_a_config_that_a_crash_has_lost_blocks_nothing(tmp_path, content):
    save(OURS, workdir=tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    check_own(tmp_path, task="train")
    (said,) = save(OURS, workdir=tmp_path)
    assert str(tmp_path / "config.json") in said
    assert json.loads((tmp_path / "config.json").read_text()) == {"task": "train", "seed": 1}
    assert save(OURS, workdir=tmp_path) == []


@pytest.mark.parametrize(
    "names",
    [
        ["config.json", "model.safetensors", "files.json"],  # an export
        ["config.json", "pytorch_model.bin", "checkpoints/"],
        ["tokenizer.model"],
        ["model.json", "params/", "files.json"],
        ["notes.txt"],
    ],
)
def test_a_workdir_of_others_is_refused(tmp_path, names):
    for name in names:
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        elif name == "files.json":
            write_list(tmp_path)
        else:
            (tmp_path / name).write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=f"--workdir {tmp_path}: holds files that no task wrote"):
        check_own(tmp_path, task="train")
