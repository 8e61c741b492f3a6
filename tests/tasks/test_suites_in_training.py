"""Suites as an evaluation of a training run, their curves, and what of them occurs in its corpus."""

import json

import pytest
from launcher import read_rows
from tiny import get_config

from allam_jax.data.documents import DocumentSource
from allam_jax.errors import UserError
from allam_jax.tasks import runner
from configs import base

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def suite(launcher, tmp_path_factory):
    """Items of the corpus's words: every second question is the beginning of a document."""
    path = tmp_path_factory.mktemp("suite") / "facts.jsonl"
    documents = DocumentSource(launcher.root / "corpus" / "en", split="train")
    items = []
    for number in range(12):
        words = documents[number].split()[:16]
        words = words if number % 2 else [f"{word}{number}" for word in words]
        items.append({"id": f"q{number}", "question": " ".join(words), "choices": words[:2], "answer": number % 3 % 2})
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return base.suite(path=str(path), choices="choices", letters=(), prompt="{question}", items=9)


def test_scores_of_a_run_are_those_of_its_checkpoint(launcher, suite, tmp_path, one_device, drawn):
    config = get_config(str(launcher.root))
    config.train.steps = 4
    config.schedule.update(name="constant", peak_lr=0.1)
    config.eval.every = 0
    config.compute.compute_dtype = "float32"
    config.suite_eval.suites.facts = suite
    config.suite_eval.every = 2
    runner.run(config, workdir=tmp_path / "run")
    logged = {
        row["step"]: row["eval/suites/facts/accuracy"]
        for row in read_rows(tmp_path / "run")
        if "eval/suites/facts/accuracy" in row
    }
    assert list(logged) == [0, 2, 4]
    asked = base.get_config("harness")
    asked.init.weights = str(tmp_path / "run")
    asked.compute.compute_dtype = "float32"
    asked.harness.suites.facts = suite
    assert runner.run(asked, workdir=tmp_path / "asked")["facts"] == logged[4]
    curves = base.get_config("suite_curves")
    curves.suite_curves.run = str(tmp_path / "run")
    runner.run(curves, workdir=tmp_path / "curves")
    assert drawn[-1].axes[0].lines[0].get_xydata().tolist() == [[step, value] for step, value in logged.items()]
    curves.suite_curves.run = str(tmp_path)
    with pytest.raises(UserError, match="name a harness stage for each checkpoint"):
        runner.run(curves, workdir=tmp_path / "none")


def test_items_of_a_suite_in_a_corpus(launcher, suite, tmp_path):
    config = base.get_config("contamination")
    config.contamination.suites.facts = suite
    for language in ("en", "ar"):
        config.contamination.corpora[language] = base.texts(path=str(launcher.root / "corpus" / language))
    assert runner.run(config, workdir=tmp_path) == {"facts": 6}
    found = json.loads((tmp_path / "contamination.json").read_text())["suites"]["facts"]
    assert set(found["touched"]) == {f"q{number}" for number in range(1, 12, 2)}
    assert "| facts | en " in (tmp_path / "contamination.md").read_text()
