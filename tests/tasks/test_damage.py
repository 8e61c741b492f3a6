"""No damaged byte is read as if it were whole; verify finds what readers find (`damage.py` tries thousands)."""

import os
import shutil
from pathlib import Path

import damage
import pytest
from processes import made_once

from allam_jax.checksums import write_listed
from allam_jax.errors import UserError
from allam_jax.settings import Settings
from allam_jax.tasks import verify
from allam_jax.tasks.settings import VerifySettings
from allam_jax.training.load import load_model
from allam_jax.training.stored_checkpoints import find_checkpoint, list_steps, move_damaged_aside, read_metadata


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with made_once(tmp_path_factory, "damage") as (root, empty):
        if empty:
            damage.make(root)
    return root


@pytest.fixture
def root(made, tmp_path):
    shutil.copytree(made, tmp_path / "x")
    return tmp_path / "x"


@pytest.mark.slow
def test_a_sample_of_damages(root):
    found = damage.try_damages(root, count=100, seed=1)
    assert sum(found.values()) == 100
    assert sum(number for what, number in found.items() if "verify names it" in what) > 65


def test_only_checkpoints_that_were_moved_aside_are_passed_over(root):
    os.rename(root / "dataset", root / "damaged_texts")
    os.rename(root / "run" / "checkpoints" / "2", root / "run" / "checkpoints" / "2.damaged")
    shard = next((root / "damaged_texts").glob("*-train.*"))
    shard.write_bytes(shard.read_bytes() + b"x")
    rows = {row.path.relative_to(root).as_posix(): row.state for row in verify.verify(root)}
    assert rows["damaged_texts"] == "damaged"
    assert "run/checkpoints/2.damaged" not in rows


@pytest.mark.parametrize("name", ["new/files.json", "new/config.json", "weights/files.json", "weights/metadata.json"])
def test_a_pipe_is_not_waited_for(root, name):
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).unlink(missing_ok=True)
    os.mkfifo(root / name)
    states = {row.path.name: row.state for row in verify.verify(root)}
    assert states.get("weights") == ("damaged" if name.startswith("weights") else "whole")
    if name.startswith("weights"):
        with pytest.raises(UserError, match=f"{root / name}: is missing"):
            load_model(root / "weights")


def run_verify(path: Path, workdir: Path):
    workdir.mkdir(exist_ok=True)
    return verify.run(Settings(task="verify", verify=VerifySettings(path=str(path))), workdir)


def test_verify_says_what_is_whole(root, tmp_path, capsys):
    assert run_verify(root, tmp_path / "out") == {"whole": 10, "unchecked": 0}
    said = capsys.readouterr().err
    for name in (
        "run/checkpoints/1",
        "run/metrics.jsonl",
        "run/tokenizer",
        "weights",
        "huggingface",
        "dataset",
        "tokens",
    ):
        assert f"{root / name} " in said
    shard = next((root / "dataset").glob("*-train.*"))
    shard.write_bytes(shard.read_bytes() + b"x")
    with pytest.raises(UserError, match=f"1 of 10 are damaged, the first is {shard}: is .* bytes long"):
        run_verify(root, tmp_path / "out")
    (root / "huggingface" / "files.json").unlink()
    with pytest.raises(UserError, match="2 of 10 are damaged"):
        run_verify(root, tmp_path / "out")
    with pytest.raises(UserError, match="holds nothing that this code has written"):
        run_verify(tmp_path / "out", tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    [
        "huggingface/model.safetensors.index.json",
        "huggingface/added_tokens.json",
        "run/tokenizer/vocab.json",
        "weights/d/x",
        "dataset/en-train.array_record-9",
    ],
)
def test_files_that_come_in_are_named(root, name):
    (root / name).write_text("{}")
    assert [str(root / name) in row.reasons[0] for row in verify.verify(root) if row.state == "damaged"] == [True]
    if not name.endswith("added_tokens.json"):
        with pytest.raises(UserError, match=f"{root / name}: is not among the files that were written"):
            damage.readers(root)["run/tokenizer" if name.startswith("run") else name.split("/")[0]]()


@pytest.mark.parametrize("content", ["{}", '{"step": "2"}', '{"step": 2, "config": null}'])
def test_metadata_of_another_shape_is_named(root, content):
    checkpoint = root / "run" / "checkpoints" / "2"
    write_listed(checkpoint, {"metadata/metadata": content.encode()})
    with pytest.raises(UserError, match="lacks the key 'step'|'step' is a string|'config' is null, expected an object"):
        read_metadata(checkpoint)
    assert [row.state for row in verify.verify(checkpoint)] == ["damaged"]


def test_a_damaged_newest_checkpoint_names_the_whole_one_and_can_be_skipped(root):
    checkpoints = root / "run" / "checkpoints"
    newest = find_checkpoint(checkpoints)
    largest = max((newest / "state").rglob("*"), key=lambda path: path.stat().st_size)
    # All of it: a single byte may be one of the optimizer's, which loading a model does not read.
    largest.write_bytes(bytes(byte ^ 1 for byte in largest.read_bytes()))
    with pytest.raises(UserError, match=f"the newest whole one is {checkpoints / '1'}: .*skip_damaged=True"):
        load_model(root / "run")
    (checkpoints / "2.damaged" / "of an earlier time").mkdir(parents=True)
    move_damaged_aside(checkpoints)
    assert list_steps(checkpoints) == [1]
    assert (checkpoints / "2.damaged.2" / "state").is_dir()
    assert read_metadata(find_checkpoint(checkpoints))["step"] == 1
    first = find_checkpoint(checkpoints)
    (first / "data" / "metadata").write_text("{}")
    with pytest.raises(UserError, match="no checkpoint is whole, so the run cannot go on"):
        move_damaged_aside(checkpoints)
    assert list_steps(checkpoints) == [1]
