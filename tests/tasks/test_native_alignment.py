"""configs/native_alignment.py: who learns from what, and that no document is learned from and rewritten."""

import json

import pytest
from small_server import save_model

from allam_jax.tasks import runner
from configs import native_alignment


@pytest.mark.parametrize("arg", ["full", "english", "smoke", "english?endpoint=http://127.0.0.1:1/v1&model=expert"])
def test_the_worker_learns_from_other_documents_and_words_than_those_it_is_judged_by(arg):
    config = native_alignment.get_config(arg)
    runner.check(config)
    languages = ("en",) if arg.startswith("english") else ("en", "ar")
    for language in languages:
        pairs, wild = (config.stage[f"{kind}_{language}"].damage for kind in ("pairs", "wild"))
        assert (pairs.split, wild.split) == ("train", "validation")
        assert set(wild.kinds) - set(pairs.kinds) == {"unknown_insult"}
        assert pairs.known_words == wild.known_words < 1
        rules = config.stage[f"rules_{language}"].rewrite
        assert rules.block_lists[language].startswith(f"@wild_{language}/known_words/")
        by_worker, by_both = (config.stage[f"{kind}_{language}"] for kind in ("worker", "both"))
        assert by_worker.rewrite.input == rules.input
        assert by_both.rewrite.input == f"@rules_{language}/{language}"
        assert ("worker" in config.stages) == (not by_worker.rewrite.endpoint.url)
        assert by_worker.init.weights == ("" if by_worker.rewrite.endpoint.url else "@worker")


@pytest.mark.slow
def test_every_stage_runs(launcher, tmp_path):
    """With a model of a moment in place of SmolLM2, whose every token takes a tenth of a second."""
    save_model(tmp_path)
    smaller = f"smoke?base={tmp_path / 'model'}&seq_len=128"
    launcher.train(tmp_path / "run", config=f"{native_alignment.__file__}:{smaller}")
    for language in ("en", "ar"):
        found = json.loads((tmp_path / "run" / f"compared_{language}" / "report.json").read_text())["restored"]
        assert found.keys() == {"damaged", *native_alignment.WAYS}
        assert found["damaged"]["removed"]["mean"] == 0
        assert found["rules"]["removed"]["mean"] > 0
