"""Tasks `sft` and `dpo` as configs run them: what they learn, a kill in the middle, adapters, and what is refused."""

import json
import math
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_chats
from launcher import read_rows
from processes import ROOT, wait, wait_until

from allam_jax.alignment.conversations import pair_of
from allam_jax.errors import UserError
from allam_jax.tasks import runner
from allam_jax.tokenizer.chat_template import stored_template
from allam_jax.tokenizer.ready_templates import READY
from allam_jax.training.load import load_model, open_stored
from allam_jax.training.stored_checkpoints import list_steps
from configs import base

CONFIG = ROOT / "tests" / "tasks" / "tiny_chats.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    directory = tmp_path_factory.mktemp("chats")
    tiny_chats.fill(directory)
    return directory


def config_of(root, task, **sections):
    config = tiny_chats.get_config(f"{root},{task}")
    for name, values in sections.items():
        config[name].update(values)
    return config


def leaves(workdir):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(load_model(Path(workdir)).params)]


@pytest.mark.slow
def test_sft_learns_replies_and_scores_them_by_language_and_turn(root, tmp_path):
    result = runner.run(config_of(root, "sft", conversations={"template": "llama2"}), workdir=tmp_path)
    learned, before = (stored_template(folder) for folder in (tmp_path / "tokenizer", root / "tokenizer"))
    assert learned == READY["llama2"] != before
    rows = read_rows(tmp_path)
    names = {key.split("/")[2] for row in rows for key in row if key.startswith("eval/replies/")}
    assert names == {f"{language}{turn}" for language in ("en", "ar") for turn in ("", "_turn1", "_turn2")}
    first, last = (rows[place]["eval/replies/ar/loss"] for place in (0, -1))
    assert last < 0.8 * first
    assert result["evaluations"]["eval/replies/ar/loss"] == last
    report = json.loads((tmp_path / "samples" / "samples.json").read_text())["report"]
    assert {name: (counts["rows"], counts["samples"]) for name, counts in report.items()} == {
        "en": (12, 24),
        "ar": (12, 24),
    }


@pytest.mark.long
def test_answers_to_fixed_prompts_are_watched(root, tmp_path):
    watch = {"prompts": 2, "every": 16, "max_new_tokens": 4}
    result = runner.run(config_of(root, "sft", watch=watch, lora={"rank": 2}), workdir=tmp_path)
    rows = [row for row in read_rows(tmp_path) if "eval/answers/watched/repetition" in row]
    assert (rows[0]["step"], rows[-1]["step"]) == (0, result["step"])
    assert 0 <= rows[-1]["eval/answers/watched/cut"] <= 1
    assert 0 <= rows[-1]["eval/answers/watched/words"] <= 4


@pytest.mark.long
def test_sft_may_also_take_its_steps_and_the_mean_over_samples_from_the_config(root, tmp_path):
    given = {"train": {"steps": 2}, "conversations": {"epochs": 0.0, "packed": False}, "sft": {"average": "sample"}}
    assert runner.run(config_of(root, "sft", **given), workdir=tmp_path)["step"] == 2
    given["sft"] = {"learned": "last"}
    with pytest.raises(UserError, match="data state: of another conversations, template or packing"):
        runner.run(config_of(root, "sft", **given | {"train": {"steps": 3}}), workdir=tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("reference", ["cached", "live"])
def test_dpo_prefers_what_was_chosen(root, tmp_path, reference):
    result = runner.run(config_of(root, "dpo", dpo={"reference": reference}), workdir=tmp_path)
    rows = [row for row in read_rows(tmp_path) if "loss" in row]
    np.testing.assert_allclose(rows[0]["loss"], math.log(2), rtol=1e-5)
    assert abs(rows[0]["margin"]) < 1e-4
    if reference == "live":
        assert (rows[0]["margin"], rows[0]["loss"]) == (0.0, np.float32(math.log(2)))
    assert rows[-1]["margin"] > 0.1
    assert rows[-1]["accuracy"] > 0.9
    assert result["evaluations"]["eval/preferences/held_out/loss"] < math.log(2)
    assert (tmp_path / "reference").exists() == (reference == "cached")


@pytest.mark.long
def test_a_run_that_strays_from_its_reference_is_saved_and_finished(root, tmp_path):
    result = runner.run(config_of(root, "dpo", dpo={"max_kl": 1e-4}), workdir=tmp_path)
    assert "above dpo.max_kl = 0.0001" in result["ended_early"]
    rows = [row for row in read_rows(tmp_path) if "loss" in row]
    assert result["step"] == rows[-1]["step"] == list_steps(tmp_path / "checkpoints")[-1]
    assert result["step"] - 2 <= next(row["step"] for row in rows if row["kl"] > 1e-4) < result["step"]
    assert "eval/preferences/held_out/loss" in result["evaluations"]


@pytest.mark.long
def test_simpo_has_no_reference(root, tmp_path):
    runner.run(config_of(root, "dpo", dpo={"loss": "simpo", "beta": 2.0}), workdir=tmp_path)
    assert not (tmp_path / "reference").exists()
    assert not {"kl", "change_chosen"} & read_rows(tmp_path)[-1].keys()


@pytest.mark.long
@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_a_killed_run_goes_on_bit_for_bit(root, launcher, tmp_path, task):
    given = {"config": f"{CONFIG}:{root},{task}"}
    launcher.train(tmp_path / "whole", **given)
    process = launcher.start(tmp_path / "killed", **given)
    steps = tmp_path / "killed" / "checkpoints"
    wait_until(lambda: len(list_steps(steps)) > 0, process=process)
    process.kill()
    assert wait(process).status == -signal.SIGKILL
    assert list_steps(steps)[-1] < list_steps(tmp_path / "whole" / "checkpoints")[-1]
    launcher.train(tmp_path / "killed", **given)
    assert read_rows(tmp_path / "killed") == read_rows(tmp_path / "whole")
    for one, other in zip(leaves(tmp_path / "killed"), leaves(tmp_path / "whole"), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.long
def test_adapters_are_trained_written_for_peft_and_merged_where_the_run_is_loaded(root, tmp_path):
    given = {"lora": {"rank": 2, "targets": ("query", "up")}, "conversations": {"epochs": 2.0}}
    runner.run(config_of(root, "sft", **given), workdir=tmp_path / "run")
    losses = [row["loss"] for row in read_rows(tmp_path / "run") if "loss" in row]
    assert losses[-1] < losses[0]
    assert json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())["r"] == 2
    base, tuned = load_model(root / "model").params, load_model(tmp_path / "run").params
    different = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), base, tuned)
    changed = {
        "/".join(key.key for key in path) for path, is_so in jax.tree_util.tree_leaves_with_path(different) if is_so
    }
    assert changed == {"layers/attention/query", "layers/mlp/up"}
    with pytest.raises(UserError, match="a run with low-rank adapters; export it first"):
        open_stored(tmp_path / "run")


def test_what_cannot_be_done_is_said(root, tmp_path):
    config = config_of(root, "dpo")
    config.init.weights = ""
    with pytest.raises(UserError, match="config.init.weights"):
        runner.run(config, workdir=tmp_path / "a")
    (tmp_path / "bad.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}\n' * 3)
    config = config_of(root, "sft")
    config.conversations.sources.en.path = str(tmp_path / "bad.jsonl")
    with pytest.raises(UserError, match=r"sources.en: 3 of 3 rows cannot be used \(3 no reply\)"):
        runner.run(config, workdir=tmp_path / "b")
    config = config_of(root, "sft", conversations={"template": "nothing"})
    with pytest.raises(UserError, match="chat template 'nothing'"):
        runner.run(config, workdir=tmp_path / "c")


@pytest.mark.slow
def test_sampled_preferences_go_on_where_they_were_killed(root, tmp_path):
    config = base.get_config("preferences")
    config.init.weights = f"{root}/model"
    config.engine.update(slots=4, burst=4, capacity=128)
    config.preferences.update(input=f"{root}/en.jsonl", max_new_tokens=6, shard_rows=4, keep_cut=True)
    config.preferences.update(temperatures=(0.7, 1.3), top_ps=(0.9,), keep_other_language=True, pairs_of_prompt=2)
    report = runner.run(config, workdir=tmp_path / "pairs")
    assert (report["rows"], report["answered"]) == (12, 12)
    pairs = [json.loads(line) for line in (tmp_path / "pairs" / "pairs.jsonl").read_text().splitlines()]
    assert report["pairs"] == len(pairs) > 6
    assert len(pairs) + sum(report["left_out"].values()) == 24
    assert {pair["provenance"]["temperature"] for pair in pairs} == {0.7, 1.3}
    content = (tmp_path / "pairs" / "pairs.jsonl").read_bytes()
    (tmp_path / "pairs" / "answers" / "00002.jsonl").unlink()  # as if it had been killed before the last shard
    assert runner.run(config, workdir=tmp_path / "pairs") == report
    assert (tmp_path / "pairs" / "pairs.jsonl").read_bytes() == content
    assert [pair_of(pair).shared for pair in pairs] == [len(pair["messages"]) for pair in pairs]


def test_half_of_a_surrogate_pair_is_written_as_it_was(tmp_path):
    asked, answered = {"role": "user", "content": "What is the capital of Egypt?"}, {"role": "assistant"}
    records = [{"messages": [asked, answered | {"content": reply}], "id": "\ud83d"} for reply in ("Cairo.", "\ud83d")]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = base.get_config("sft_quality")
    config.chat_quality.sources.en = base.conversations(path=f"{tmp_path}/chats.jsonl")
    config.chat_quality.evaluations = f"{tmp_path}/chats.jsonl"
    runner.run(config, workdir=tmp_path / "out")
    (dropped,) = map(json.loads, (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()[-1:])
    assert dropped["record"] == records[1]


def test_faulty_conversations_are_left_out_and_reported(tmp_path, caplog):
    asked, answered = {"role": "user", "content": "What is the capital of Egypt?"}, {"role": "assistant"}
    replies = ["Cairo.", "", "Cairo.", "Alexandria was, long before Cairo.", "عاصمة مصر هي مدينة القاهرة"]
    records = [{"messages": [asked, answered | {"content": reply}], "id": n} for n, reply in enumerate(replies)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + "no json\n")
    exam = '{"question": "x", "choices": ["Alexandria was long before Cairo"]}\n{"question": "cut\n'
    (tmp_path / "exam.jsonl").write_text(exam)
    config = base.get_config("sft_quality")
    config.chat_quality.sources.en = base.conversations(path=f"{tmp_path}/chats.jsonl")
    assert runner.run(config, workdir=tmp_path / "out")["en"]["dropped_for"] == {
        "not a conversation": 1,
        "empty": 1,
        "wrong language": 1,
        "duplicate": 1,
    }
    config.chat_quality.update(evaluations=f"{tmp_path}/exam.jsonl", ngram=4)
    found = runner.run(config, workdir=tmp_path / "other")["en"]
    assert "chat_quality.evaluations: 1 rows cannot be read: not JSON" in caplog.text
    assert (found["rows"], found["kept"]) == (6, 1)
    kept = [json.loads(line) for line in (tmp_path / "other" / "clean" / "en.jsonl").read_text().splitlines()]
    assert kept == records[:1]
    dropped = [json.loads(line) for line in (tmp_path / "other" / "dropped.jsonl").read_text().splitlines()]
    assert [entry["record"] for entry in dropped[:4]] == records[1:]
    assert dropped[2]["dropped_for"] == ["evaluation text"]
    assert "## Rows of each fault" in (tmp_path / "other" / "report.md").read_text()
