"""The report of an expansion, from stages that left little behind."""

import json

import pytest

from allam_jax.errors import UserError
from allam_jax.tasks import expansion_report
from allam_jax.tasks.registry import settings_of
from configs import base

STEP0 = {"en": {"bits_per_byte_base": 2.5, "bits_per_byte_expanded": 2.5, "kl": 0.0}}
TRAINING = {"step": 4, "loss": 2.0, "grad_norm": 1.0, "learning_rate": 0.1}


@pytest.fixture
def config(tmp_path):
    def stage(name, **result):
        (tmp_path / name).mkdir()
        record = {"fingerprint": "f", "config": {}, "result": result, "seconds": 1.0}
        (tmp_path / name / "result.json").write_text(json.dumps(record))
        return str(tmp_path / name)

    made = base.get_config("expansion_report")
    fertility = {"base": {"en": {"tokens_per_word": 2.0}}}
    made.report.tokenizers = stage("tokenizers", fertility=fertility, merge={"Arab_equal": 1.0})
    (tmp_path / "tokenizers" / "fertility.png").write_bytes(b"png")
    made.report.export = stage("export", huggingface="there")
    made.report.base = stage("base", bits_per_byte=[])
    made.report.arms["random"] = base.arm(
        expand=stage("expand", step0=STEP0, new=7), continued=stage("continued", tokens_per_second=9.0)
    )
    return made


def write(tmp_path, *rows):
    (tmp_path / "continued" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "report").mkdir(exist_ok=True)
    return tmp_path / "report"


def test_one_evaluation_at_the_end_is_no_step_0(config, tmp_path):
    workdir = write(tmp_path, TRAINING, {"step": 4, "eval/held_out/en/bits_per_byte": 2.0})
    result = expansion_report.run(settings_of(config), workdir)
    assert result["bits_per_byte"] == {"base": {"en": 2.5}, "step0": {"random": {}}, "final": {"random": {"en": 2.0}}}
    text = (workdir / "report.md").read_text()
    assert "random, end" in text
    assert "random, step 0" not in text
    assert "- How: 7 new pieces, whose embeddings began by `random` (expand.method), and 4 steps" in text


def test_no_evaluation_is_told(config, tmp_path):
    workdir = write(tmp_path, TRAINING)
    with pytest.raises(UserError, match="continued: was trained without evaluations, so there is nothing to compare"):
        expansion_report.run(settings_of(config), workdir)
