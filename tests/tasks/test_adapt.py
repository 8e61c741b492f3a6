"""configs/adapt.py: its stages for different languages, and every stage of it in a short run."""

import json
import re
from urllib.parse import urlencode

import byte_level
import pytest

from allam_jax.errors import UserError
from allam_jax.tasks import runner
from allam_jax.tokenizer.sentencepiece_training import train_sentencepiece
from configs import adapt

OWN, SHARED = {"tokenizer", "vocabulary"}, {"vocabulary"}


@pytest.mark.parametrize(
    ("arg", "stages", "task"),
    [
        ("laptop?language=fa", OWN, "merge_tokenizer"),
        ("laptop?language=hi", OWN, "merge_tokenizer"),
        ("laptop?language=vi", SHARED, "extend_tokenizer"),
        ("laptop?language=uk", OWN, "merge_tokenizer"),
        ("laptop?language=uk&replay=x&replay_language=ru", SHARED, "extend_tokenizer"),
        ("laptop?language=ja", OWN, "merge_tokenizer"),
    ],
)
def test_a_language_in_the_bases_script_is_measured_and_others_are_proved(arg, stages, task):
    config = adapt.get_config(arg)
    runner.check(config)
    assert set(config.stages) & {"tokenizer", "vocabulary"} == stages
    assert config.stage.vocabulary.task == task


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A directory with a tokenizer, which is all that a config looks at."""
    directory = tmp_path_factory.mktemp("models") / "base"
    train_sentencepiece([f"some words and others {number}" for number in range(50)], vocab_size=300, output=directory)
    return str(directory)


def test_a_given_base_is_not_made(base):
    given = {"base": base, "texts": "t", "replay": "r", "language": "fa"}
    config = adapt.get_config(f"full?{urlencode(given)}")
    runner.check(config)
    assert "base" not in config.stages
    assert config.stage.expanded.init.weights == config.stage.tokenizer.tokenizer_training.like == base
    for key in given:
        with pytest.raises(UserError, match=rf"config\.{key} is empty"):
            adapt.get_config(f"full?{urlencode(given | {key: ''})}")
    with pytest.raises(UserError, match="catalog has texts of"):
        adapt.get_config("laptop?language=am")
    with pytest.raises(UserError, match="is the new one"):
        adapt.get_config("laptop?language=en")


def test_one_file_is_no_text_of_both_languages(base, tmp_path):
    for name in ("one.txt", "other.txt"):
        (tmp_path / name).write_text("some text")
    both = {"texts": f"{tmp_path}/*.txt", "replay": f"{tmp_path}/other.txt"}
    with pytest.raises(UserError, match=r"config.texts and config.replay both name \S+/other.txt: the new"):
        adapt.get_config(f"full?{urlencode({'base': base, 'language': 'fa', **both})}")
    apart = {"texts": f"{tmp_path}/one.txt", "replay": f"{tmp_path}/other.txt"}
    adapt.get_config(f"full?{urlencode({'base': base, 'language': 'fa', **apart})}")


def test_a_byte_level_base_goes_on_with_its_merges(tmp_path):
    byte_level.as_tokenizer(byte_level.train(["text"], size=300)).save(tmp_path)
    given = {"base": tmp_path, "texts": "t", "replay": "r", "language": "fa", "method": "token_distillation"}
    config = adapt.get_config(f"full?{urlencode(given)}")
    runner.check(config)
    assert "tokenizer" not in config.stages
    assert config.stage.vocabulary.tokenizer_extension.base == str(tmp_path)
    assert config.stage.vocabulary.tokenizer_extension.script == "Arab"
    assert list(config.stage.expanded.expand.distillation.sources) == ["fa"]


def test_a_base_whose_pieces_cannot_be_gone_on_with_is_refused_at_once(tmp_path):
    document = json.loads(byte_level.train(["text"], size=300).to_str())
    document["pre_tokenizer"] = document["decoder"] = None  # as of Mistral, where only tokenizer.json was saved
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    given = {"base": tmp_path, "texts": "t", "replay": "r", "language": "fa"}
    with pytest.raises(UserError, match="no byte-level BPE, as of Llama 3; .* put its tokenizer.model beside it"):
        adapt.get_config(f"full?{urlencode(given)}")


def test_languages_that_nothing_identifies_have_no_rule_on_it(base):
    rules = adapt.get_config(f"full?base={base}&texts=a&replay=b&language=ha").stage.corpus.corpus.rules
    assert ("language" in rules.ha, "language" in rules.en) == (False, True)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("language=xx", "language 'xx': no script is known"),
        ("language=fa&base=nowhere", "config.base = 'nowhere': nothing is there"),
        ("language=fa&script=Persian", "config.script: unknown script 'Persian'"),
    ],
)
def test_inputs_are_named_as_they_are_given(argument, message):
    with pytest.raises(UserError, match=message):
        adapt.get_config(f"smoke?texts=a&replay=b&{argument}")


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_every_stage_runs_without_an_argument_and_the_report_says_what_happened(tmp_path):
    result = runner.run(adapt.get_config("smoke"), workdir=tmp_path)
    assert result["merge"] == {"Arab_equal": 1.0, "non_Arab_equal": 1.0}
    final = result["bits_per_byte"]["final"]["subword_mean"]
    assert final["ar"] < result["bits_per_byte"]["step0"]["subword_mean"]["ar"] < result["bits_per_byte"]["base"]["ar"]
    assert result["evaluation"] == pytest.approx(final, rel=1e-5)
    assert result["fertility"]["merged"]["ar"] < 0.5 * result["fertility"]["base"]["ar"]
    assert result["fertility"]["merged"]["en"] == result["fertility"]["base"]["en"]
    report = (tmp_path / "report" / "report.md").read_text()
    assert report.startswith("# Continued pre-training in Arabic and English")
    saved = 1 - result["fertility"]["merged"]["ar"] / result["fertility"]["base"]["ar"]
    assert re.search(
        rf"^- Arabic: {final['ar']:.3f} bits per byte .*, {saved:.1%} fewer than its tokenizer\.$", report, re.M
    )
    assert result["bits_per_byte"]["base"]["ar"] > 8
    assert "The base knows no Arabic: 8 bits per byte" in report
    assert "| Arab only |" in report
    assert "| in the script Arab alone | 1.000 |\n| without the script | 1.000 |" in report
    assert re.search(r"^- English: .* tokens per word, as many as its tokenizer\.$", report, re.M)
    assert {path.name for path in (tmp_path / "report" / "figures").iterdir()} == {
        "bits_per_byte.png",
        "fertility.png",
        "training.png",
    }
    assert json.loads((tmp_path / "vocabulary" / "proof.json").read_text())["Arab_lines"] > 10
    assert (tmp_path / "export" / "huggingface" / "config.json").is_file()
