"""The tasks merge_tokenizer and extend_tokenizer on shards: what a merge proves, and what both keep of the base."""

import byte_level
import pytest

from allam_jax.corpus.document import Document
from allam_jax.corpus.shards import write_dataset
from allam_jax.errors import UserError
from allam_jax.files import read_json
from allam_jax.tasks import extend_tokenizer, merge_tokenizer
from allam_jax.tasks.registry import settings_of
from allam_jax.tokenizer.generation_config import read_generation
from allam_jax.tokenizer.sentencepiece_training import train_sentencepiece
from allam_jax.tokenizer.tokenizer import Tokenizer
from configs import base as configs

ENGLISH = ["the cat --- sat on the mat --- again (and again): ---"] * 20
ALPHABETS = {
    "arabic": ["قال -:-: كتاب الكتاب -:-: من الكتاب"] * 20,
    "cyrillic": ["кот -:-: сидит на коте -:-: и кот"] * 20,
}


def configured(root, *, script: str, like_base: bool):
    base = train_sentencepiece(ENGLISH, vocab_size=300, output=root / "base")
    how = {"like": base, "script": script} if like_base else {"like": base}
    train_sentencepiece(ALPHABETS[script], vocab_size=285, output=root / "target", character_coverage=1.0, **how)
    config = configs.get_config("merge_tokenizer")
    config.tokenizer_merge.update(base=str(root / "base"), target=str(root / "target"), script=script)
    for name, lines in (("en", ENGLISH), ("other", ALPHABETS[script])):
        config.tokenizer_merge.sources[name] = dataset(root / name, lines)
    return config


def dataset(directory, lines: list[str]):
    name = directory.name
    documents = (Document(text=line, id=str(i), source=name, language=name) for i, line in enumerate(lines))
    write_dataset(documents, directory=directory, name=name, validation_share=0.3)
    return configs.texts(path=str(directory), split="validation")


@pytest.mark.parametrize("script", ["arabic", "cyrillic"])
def test_a_merge_of_any_script_is_proved(tmp_path, script: str, caplog):
    result = merge_tokenizer.run(settings_of(configured(tmp_path, script=script, like_base=True)), tmp_path / "merged")
    assert result["merge"][f"{script}_equal"] == result["merge"][f"non_{script}_equal"] == 1.0
    assert result["merge"][f"{script}_lines"] > 0 < result["merge"][f"non_{script}_lines"]
    assert f"only {result['merge'][f'{script}_lines']} {script} lines show" in caplog.text
    assert (tmp_path / "merged" / "tokenizer.model").is_file()
    assert read_json(tmp_path / "merged" / "proof.json") == result["merge"]


@pytest.mark.parametrize("task", [merge_tokenizer, extend_tokenizer])
def test_what_the_base_says_of_its_use_goes_along(tmp_path, task):
    config = configured(tmp_path, script="cyrillic", like_base=True)
    if task is extend_tokenizer:
        config = configs.get_config("extend_tokenizer")
        options = config.tokenizer_extension
        options.update(base=str(tmp_path / "base"), script="latin", pieces=20, limit=1.0)
        options.sources.vi = dataset(tmp_path / "vi", ["nghe nghe thang nghe lung thang"] * 20)
        options.kept.en = options.held_out.en = dataset(tmp_path / "en", ENGLISH)
    (tmp_path / "base" / "generation_config.json").write_text('{"eos_token_id": [2, 7], "top_p": 0.9}')
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "base" / "files.json").unlink()  # another program wrote it
    result = task.run(settings_of(config), tmp_path / "made")
    assert result["vocab_size"] > 300
    assert read_generation(tmp_path / "made") == {"eos_token_id": [2, 7], "top_p": 0.9}
    assert read_json(tmp_path / "made" / "tokenizer_config.json")["chat_template"] == "{{ messages }}"


def test_the_figure_names_the_language_that_was_added(tmp_path, monkeypatch):
    config = configured(tmp_path, script="arabic", like_base=True)
    config.tokenizer_merge.sources.fa = config.tokenizer_merge.sources.other
    del config.tokenizer_merge.sources.other
    drawn = []
    monkeypatch.setattr(merge_tokenizer, "fertility_bars", lambda table, path: drawn.append(list(table)))
    merge_tokenizer.run(settings_of(config), tmp_path / "merged")
    assert drawn == [["base", "Persian only", "merged"]]


def test_a_target_with_its_own_signs_is_refused_by_its_first_line(tmp_path):
    config = configured(tmp_path, script="arabic", like_base=False)
    with pytest.raises(
        UserError, match=r"100.00% of \d+ arabic lines .* first 'قال -:-: .*tokenizer_training.script"
    ) as e:
        merge_tokenizer.run(settings_of(config), tmp_path / "merged")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("script", ["arabic", "cyrillic"])
def test_a_byte_level_base_goes_on_with_its_merges(tmp_path, script, names):
    """Also where each line of the base's language has a name in the new script, as English texts about hadith have."""
    byte_level.as_tokenizer(byte_level.train(ENGLISH, size=300)).save(tmp_path / "base")
    config = configs.get_config("extend_tokenizer")
    config.tokenizer_extension.update(base=str(tmp_path / "base"), script=script, pieces=15)
    options = config.tokenizer_extension
    options.sources.new = options.held_out.new = dataset(tmp_path / "new", ALPHABETS[script])
    name = ALPHABETS[script][0].split()[2]
    english = [f"{line} {name}" for line in ENGLISH] if names else ENGLISH
    options.kept.en = dataset(tmp_path / "en", english)
    options.held_out.en = dataset(tmp_path / "held_out", ENGLISH)
    result = extend_tokenizer.run(settings_of(config), tmp_path / "extended")
    lines = result["merge"].pop(f"non_{script}_lines")
    assert lines > 0
    assert result["merge"] == {f"non_{script}_equal": 1.0, "new_pieces": 15, "unreachable_pieces": 0}
    assert Tokenizer.load(tmp_path / "extended").fingerprint == result["fingerprint"]
    assert set(result["fertility"]) == {"base", script, "extended"}
    tokens = {name: domains["new"]["tokens"] for name, domains in result["fertility"].items()}
    assert tokens["extended"] < tokens["base"]


def test_a_byte_level_base_is_not_merged(tmp_path):
    byte_level.as_tokenizer(byte_level.train(ENGLISH, size=300)).save(tmp_path / "base")
    config = configs.get_config("merge_tokenizer")
    config.tokenizer_merge.update(base=str(tmp_path / "base"), target=str(tmp_path / "base"))
    config.tokenizer_merge.sources.en = dataset(tmp_path / "en", ENGLISH)
    with pytest.raises(UserError, match="the task extend_tokenizer goes on with the merges of a byte-level BPE"):
        merge_tokenizer.run(settings_of(config), tmp_path / "merged")
