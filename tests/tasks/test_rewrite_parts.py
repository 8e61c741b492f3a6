"""A rewrite that several machines share: parts, and what joins them."""

import functools
import json
import shutil

import pytest
from rewritten import INSTRUCTIONS, Scripted, better, dataset, files_of, paragraphs, run_scripted, texts_of
from small_server import save_model

from allam_jax.corpus.executors import run_stages
from allam_jax.corpus.settings import ExecutorSettings
from allam_jax.errors import UserError
from allam_jax.launch.rewrite_step import RewriteStep
from allam_jax.tasks import runner
from configs import base
from configs import rewrite as rewrite_config

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def run(monkeypatch, tmp_path):
    return functools.partial(run_scripted, monkeypatch, tmp_path)


def test_parts_of_several_machines_are_joined_to_what_one_writes(run, tmp_path):
    """Byte for byte, with pieces that fail and are asked again, documents that go, and checks that find as often."""

    def change(text, seed):
        if "8 boats" in text:
            return None
        if seed == 0 and "9 boats" in text:
            return f"Rewritten text: {text}"
        return text.replace("9 boats", "3 boats") if "10 boats" in text else better(text, seed)

    texts = [paragraphs(n % 5) or "***" for n in range(7)] + ["Numbers of 77 men.", "﴿verse﴾"] + [paragraphs(3)] * 4
    given = {"attempts": 2, "temperature": 0.5, "failed": "drop_document"}
    result, found = run(texts, change, workdir="whole", **given)
    assert 0 < len(found) < len(texts)
    one = Scripted(change)
    run(texts, change, workdir="again", scripted=one, **given)
    asked, parts = [], 4
    for part in (2, 0, 3, 1):
        machine = Scripted(change)
        with pytest.raises(UserError, match="no dataset"):  # a part is none
            run(texts, change, workdir=f"parts/{part}", scripted=machine, part=part, parts=parts, **given)
        asked += zip(machine.rows, machine.asked, strict=True)
        if part == 0:
            join = rewrite_config.get_config("join")
            join.join_rewrites.input = str(tmp_path / "parts")
            (tmp_path / "parts" / "three").mkdir()
            with pytest.raises(UserError, match=r"2 of 4 parts are missing: 1, 3 .of folders without part.json: three"):
                runner.run(join, workdir=tmp_path / "joined")
    assert sorted(asked) == sorted(zip(one.rows, one.asked, strict=True))  # as one machine asks, so seeds are the same
    assert runner.run(join, workdir=tmp_path / "joined") == result
    whole = files_of(tmp_path / "whole")
    assert files_of(tmp_path / "joined") == whole
    assert len(whole) >= 8
    with pytest.raises(UserError, match="holds answers that were made with another part;"):
        run(texts, change, workdir="parts/0", part=1, parts=parts, **given)
    with pytest.raises(UserError, match=r"rewrite.part = 4: parts count from 0, and there are 4"):
        run(texts, change, workdir="other", part=4, parts=4)
    with pytest.raises(UserError, match=r"rewrite.parts = 14: more than there are documents"):
        run(texts, change, workdir="other", parts=14)
    described = json.loads((tmp_path / "parts" / "3" / "part.json").read_text())
    (tmp_path / "parts" / "3" / "part.json").write_text(json.dumps(described | {"made_by": {}}))
    with pytest.raises(UserError, match=r"which differ in made_by.instruction, made_by.model; move away"):
        runner.run(join, workdir=tmp_path / "joined")
    (tmp_path / "parts" / "3" / "part.json").write_text(json.dumps(described | {"part": 1}))
    with pytest.raises(UserError, match=r"are both part 1; move one away"):
        runner.run(join, workdir=tmp_path / "joined")
    (tmp_path / "parts" / "3" / "part.json").write_text(json.dumps(described | {"part": 4}))
    with pytest.raises(UserError, match=r"3/part.json: part 4 of 4, which there is not"):
        runner.run(join, workdir=tmp_path / "joined")
    join.join_rewrites.input = str(tmp_path / "parts" / "2")
    with pytest.raises(UserError, match=r"2: no folder has a part.json.* it is a part itself: give the folder above"):
        runner.run(join, workdir=tmp_path / "joined")
    join.join_rewrites.input = str(tmp_path / "web")
    with pytest.raises(UserError, match="no folder has a part.json"):
        runner.run(join, workdir=tmp_path / "none")


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


def test_parts_that_are_damaged_or_of_another_rewrite_are_not_joined(tmp_path):
    source = dataset(tmp_path / "web", [f"Buy now, huge discount! {paragraphs(1 + n % 3)}" for n in range(9)])
    config = base.get_config("rewrite")
    for folder, part, documents in (("parts", 0, 0), ("parts", 1, 0), ("others", 1, 5)):
        config.rewrite.update(input=str(source), worker="rules", parts=2, part=part, documents=documents)
        runner.run(config, workdir=tmp_path / folder / str(part))
    join = rewrite_config.get_config("join")
    join.join_rewrites.input = str(tmp_path / "parts")
    assert runner.run(join, workdir=tmp_path / "whole")["documents"] == 9
    for name in ("documents.jsonl.gz", "provenance.jsonl.gz", "aligned.jsonl.gz"):
        path = tmp_path / "parts" / "1" / name
        content = path.read_bytes()
        other = (tmp_path / "others" / "1" / name).read_bytes()
        # A copy that was cut off at once leaves a file of no bytes, which gzip reads as no lines.
        for damaged in (flipped(content), content[:-9], b"", other, content + content):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=f"{name}: damaged, or not the file that this part has written; copy"):
                runner.run(join, workdir=tmp_path / "joined")
        path.unlink()
        with pytest.raises(UserError, match=f"{name}: no such file; copy it again"):
            runner.run(join, workdir=tmp_path / "joined")
        path.write_bytes(content)
    assert not list((tmp_path / "joined").glob("*.gz"))
    shutil.rmtree(tmp_path / "parts" / "1")
    shutil.copytree(tmp_path / "others" / "1", tmp_path / "parts" / "1")
    with pytest.raises(UserError, match=r"parts of different rewrites, which differ in asked.cut.documents; move away"):
        runner.run(join, workdir=tmp_path / "joined")


@pytest.mark.long
def test_two_machines_with_our_engine_write_what_one_does(tmp_path):
    """Sampled text, other neighbours in the slots, the same bytes."""
    save_model(tmp_path)
    source = dataset(tmp_path / "web", [f"the cat sat on the mat {n}.\n\nthe dog ran." for n in range(9)])
    config = base.get_config("rewrite")
    config.init.weights = str(tmp_path / "model")
    config.rewrite.update(input=str(source), max_new_tokens=8, instruction=f"{INSTRUCTIONS}/short.toml")
    config.rewrite.update(template="allam", temperature=1.0, piece_tokens=16)
    config.rewrite.checks.names = ()
    runner.run(config, workdir=tmp_path / "whole")
    whole = texts_of(tmp_path / "whole" / "web")
    assert len(set(whole.values())) == 9
    for part in (0, 1):
        config.rewrite.update(part=part, parts=2)
        runner.run(config, workdir=tmp_path / "parts" / str(part))
    join = rewrite_config.get_config("join")
    join.join_rewrites.input = str(tmp_path / "parts")
    runner.run(join, workdir=tmp_path / "joined")
    assert files_of(tmp_path / "joined") == files_of(tmp_path / "whole")


def test_datatroves_executors_start_the_parts(tmp_path):
    source = dataset(tmp_path / "web", [f"Buy now, huge discount! {paragraphs(1 + n % 3)}" for n in range(9)])
    config = base.get_config("rewrite")
    config.rewrite.update(input=str(source), worker="rules", piece_tokens=80)
    runner.run(config, workdir=tmp_path / "whole")
    step = RewriteStep(config, tmp_path / "parts")
    run_stages([("rewrite", [step], 3)], logs=tmp_path / "logs", settings=ExecutorSettings(kind="local", workers=1))
    assert config.rewrite.parts == 1
    join = rewrite_config.get_config("join")
    join.join_rewrites.input = str(tmp_path / "parts")
    runner.run(join, workdir=tmp_path / "joined")
    assert files_of(tmp_path / "joined") == files_of(tmp_path / "whole")
    stats = [json.loads(file.read_text())[0]["stats"] for file in (tmp_path / "logs" / "rewrite" / "stats").iterdir()]
    assert [one["documents"]["total"] for one in stats] == [3, 3, 3]
