"""configs/posttrain.py and what measures its models: losses of replies against another network, and the report."""

import json

import numpy as np
import numpy_llama
import pytest
import tiny_chats

from allam_jax.alignment.sample_cache import open_samples
from allam_jax.errors import UserError
from allam_jax.files import json_text
from allam_jax.tasks import runner, tuning_report
from allam_jax.training.load import load_model
from configs import base, posttrain


@pytest.mark.parametrize("arg", ["tiny", "smoke", "full?base=model"])
def test_the_recipe_makes_its_base_or_takes_one(arg):
    config = posttrain.get_config(arg)
    runner.check(config)
    is_given = arg.startswith("full")
    assert ("expand" in config.stages) != is_given
    weights = "model" if is_given else "@continued"
    assert [config.stage[name].init.weights for name in ("constant", "text_base", "losses_base")] == [weights] * 3
    instructed = config.stage.instructed.data.sources
    assert sum(source.weight for source in instructed.values()) == pytest.approx(1)
    assert config.stage.constant.data.sources.en.weight == 0.55
    lengths = {config.stage[name].train.steps for name in ("constant", "released", "instructed")}
    assert lengths == {config.stage.merged.merge.models.constant.steps[-1]}


def test_text_is_replayed_where_its_share_is_given():
    assert not posttrain.get_config("tiny").stage.sft.replay.sources
    replay = posttrain.get_config("tiny?replay=0.1").stage.sft.replay
    assert replay.share == 0.1
    weights = {source.path: source.weight for source in replay.sources.values()}
    assert weights == {"@corpus/en": 0.55, "@corpus/ar": pytest.approx(0.45)}


def test_a_decay_begins_and_ends_with_a_checkpoint():
    with pytest.raises(UserError, match=r"config\.decay_steps = 15: expected a multiple of config\.save_every = 10"):
        posttrain.get_config("tiny?decay_steps=15")


def test_losses_of_replies_are_those_of_another_network(tmp_path):
    tiny_chats.fill(tmp_path)
    config = base.get_config("chat_losses")
    config.data.seq_len = 192
    config.init.weights = str(tmp_path / "model")
    config.conversations.sources.one = base.conversations(path=str(tmp_path / "one.jsonl"), language="en")
    messages = json.loads((tmp_path / "en.jsonl").read_text().splitlines()[0])["messages"]
    (tmp_path / "one.jsonl").write_text(json_text({"messages": messages}) + "\n")
    found = runner.run(config, workdir=tmp_path / "run")

    model = load_model(tmp_path / "model")
    sample = open_samples(tmp_path / "run" / "samples")[0]
    loss = -numpy_llama.log_softmax(numpy_llama.logits(model.params, sample.ids, config=model.config))
    own = loss[np.arange(len(sample) - 1), sample.ids[1:]]
    assert found == {
        "en": {"loss": pytest.approx(own[sample.turns[1:] > 0].mean(), rel=1e-4)},
        "en_turn1": {"loss": pytest.approx(own[sample.turns[1:] == 1].mean(), rel=1e-4)},
        "en_turn2": {"loss": pytest.approx(own[sample.turns[1:] == 2].mean(), rel=1e-4)},
    }
    config.data.seq_len = 2**31 - 1
    with pytest.raises(UserError, match=r"config\.data\.seq_len = 2147483647: the model's max_position is"):
        runner.run(config, workdir=tmp_path / "longer")


def answers(directory, right):
    """Answers to five prompts, the first `right` of which are right."""
    rows = [
        {
            "row": number,
            "id": f"q{number}",
            "language": "en",
            "kind": "capital",
            "turn": 1,
            "expected": "Cairo.",
            "messages": [{"role": "user", "content": f"Question {number}?"}],
            "answers": [{"text": "Cairo." if number < right else "| Muscat", "finish_reason": "eos", "tokens": 2}],
        }
        for number in range(5)
    ]
    (directory / "answers").mkdir(parents=True)
    (directory / "answers" / "00000.jsonl").write_text("".join(json_text(row) + "\n" for row in rows))


def test_the_report_has_what_was_before_and_after(tmp_path, monkeypatch):
    results = {
        "text": {"ar": {"bits_per_byte": 2.0}, "seconds": 1.0},
        "zsft": {"evaluations": {}, "bits_per_byte": [{"step": 0, "ar": 9.0}, {"step": 5, "ar": 1.5}]},
        "losses": {"ar": {"loss": 3.0}, "ar_turn1": {"loss": 2.5}},
        "probe": {"capitals": {"en": {"0": {"accuracy": 0.5, "low": 0.4, "high": 0.6}}}},
    }
    monkeypatch.setattr(tuning_report, "read_result", lambda path: {"result": results[path.name]})
    for name, right in (("before", 1), ("after", 4)):
        answers(tmp_path / name, right)
    config = base.get_config("tuning_report")
    first = {"bits": "text", "losses": "losses", "probe": "probe", "answers": str(tmp_path / "before")}
    config.tuning.models.zero = base.tuned(**first)
    config.tuning.models.after = base.tuned(bits="zsft", answers=str(tmp_path / "after"))
    with pytest.raises(UserError, match=r"config\.tuning\.order: name each"):
        runner.run(config, workdir=tmp_path / "refused")
    config.tuning.update(order=("zero", "after"), shown=2)
    result = runner.run(config, workdir=tmp_path / "run")
    assert list(result["models"]) == ["zero", "after"]
    assert result["models"]["after"] == {
        "bits_per_byte": {"ar": 1.5},
        "answers": result["models"]["after"]["answers"],
    }
    assert result["models"]["after"]["answers"]["all"]["right"] == 0.8
    (row,) = result["compared"]
    assert (row["first"], row["second"], row["wins"], row["losses"]) == ("zero", "after", 3, 0)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| zero | 2.000 |\n| after | 1.500 (-0.500) |" in report
    assert "| zero | 3.000 | 2.500 |" in report
    assert "| all | 5 | 0.200 (0.036 to 0.624) | 0.800 (0.376 to 0.964) |" in report  # Wilson, of R's prop.test
    assert "| zero | English | 0.500 (0.400 to 0.600) |" in report
    assert "| capital (en) | Question 1? | Cairo. | \\| Muscat | **Cairo.** |" in report
    assert "Question 2?" not in report
