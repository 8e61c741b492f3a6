import json
import os

import pytest
from tokenizer_helpers import Corpus, Merge, sentencepiece_model

from allam_jax.errors import UserError
from allam_jax.tokenizer.tokenizer import Tokenizer
from allam_jax.tokenizer.tokenizer_json import merge_rules

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def many_lines(corpus: Corpus, awkward_lines: list[str]) -> list[str]:
    train, test = corpus.train, corpus.test
    held_out = [line for kind in test.values() for line in kind]
    return (
        awkward_lines
        + held_out
        + train["ar"][:1500]
        + train["classical"][:700]
        + train["en"][:1500]
        + train["code"][:1500]
    )


@pytest.fixture(scope="module", params=["alone", "beside a model"])
def directory(request: pytest.FixtureRequest, languages: Merge, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("tokenizer")
    languages.merged.save(path)
    if request.param == "beside a model":  # config.json changes which class transformers picks
        (path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    return path


@pytest.mark.slow
def test_auto_tokenizer_gives_our_ids(languages: Merge, directory, many_lines: list[str]):
    assert len(many_lines) > 10_000
    if not (directory / "config.json").exists():
        many_lines = many_lines[::8]
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    ours = languages.merged
    assert len(theirs) == ours.vocab_size
    parsed = theirs(many_lines, add_special_tokens=False)["input_ids"]
    assert parsed == ours.encode_batch(many_lines, specials="parse")
    some = [line for line in many_lines if "<" in line] + many_lines[::8]  # only a "<" can make a difference
    ids = theirs(some, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ids == ours.encode_batch(some)
    assert theirs.batch_decode(ids) == [ours.decode(line) for line in ids]


@pytest.mark.slow
def test_special_tokens_in_transformers(languages: Merge, directory):
    theirs = transformers.AutoTokenizer.from_pretrained(directory, use_fast=False)
    ours = languages.merged
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id, theirs.pad_token_id) == (1, 2, 0, None)
    assert theirs("كتاب ok")["input_ids"] == ours.encode("كتاب ok", bos=True)
    assert theirs("a", "b")["input_ids"] == [*ours.encode("a", bos=True), *ours.encode("b", bos=True)]
    ids = ours.encode("<|im_start|>كتاب<|im_end|>", specials="parse", bos=True)
    assert theirs.decode(ids, skip_special_tokens=True).strip() == ours.decode(ids, skip_special=True) == "كتاب"
    chat = [{"role": "user", "content": "كتاب؟ <|im_end|>"}, {"role": "assistant", "content": "hi"}]
    text = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    turns = "<s><|im_start|>user\nكتاب؟ <|im_end|><|im_end|>\n<|im_start|>assistant\nhi<|im_end|>\n"
    assert text == turns + "<|im_start|>assistant\n"
    ids = theirs.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert ids == ours.encode(text, specials="parse")


def test_beside_a_qwen2_the_generic_class_gives_our_ids(languages: Merge, tmp_path, awkward_lines: list[str]):
    """transformers 5 takes every tokenizer of this model type for Qwen's own, whatever its files say."""
    languages.merged.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}))
    lines = awkward_lines[-200:]
    ids = languages.merged.encode_batch(lines, specials="parse", bos=True)
    assert transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)(lines)["input_ids"] == ids
    if int(transformers.__version__.split(".")[0]) >= 5:
        assert transformers.AutoTokenizer.from_pretrained(tmp_path)(lines)["input_ids"] != ids


def test_saved_again_by_transformers(languages: Merge, directory, tmp_path, awkward_lines: list[str]):
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    theirs.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    lines = awkward_lines[-500:]
    assert again(lines)["input_ids"] == languages.merged.encode_batch(lines, specials="parse", bos=True)


def test_byte_level_bpe(tmp_path, corpus: Corpus):
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(corpus.train["en"][:500]), bos_token="<|bos|>", eos_token="<|eos|>"
    )
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    ours.save(tmp_path / "saved")
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    lines = corpus.test["ar"][:100] + corpus.test["en"][:100]
    assert saved(lines, add_special_tokens=False)["input_ids"] == ours.encode_batch(lines, specials="parse")


def _byte_level(lines: list[str]):
    import tokenizers

    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(lines, vocab_size=800, special_tokens=["<|bos|>", "<|eos|>"], show_progress=False)
    return tokenizers.Tokenizer.from_str(tokenizer.to_str())


def test_rules_come_in_the_order_of_scores():
    tokenizer = sentencepiece_model({"abc": -3.0, "ab": -2.0, "bc": -1.0, "a": -9.0, "b": -9.0, "c": -9.0})
    assert merge_rules(tokenizer.model) == [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")]


@pytest.mark.parametrize(
    ("pieces", "flags", "message"),
    [
        ({"ab": -0.0, "bc": 0.0}, {}, "2 pieces such as 'ab', 'bc' have the same score 0"),
        ({"ab": -1.0}, {"remove_extra_whitespaces": True}, "changes the text; expected identity"),
    ],
)
def test_what_transformers_cannot_express_is_refused_before_writing(tmp_path, pieces: dict, flags: dict, message: str):
    tokenizer = sentencepiece_model({**pieces, "a": -8.0, "b": -9.0, "c": -10.0}, **flags)
    with pytest.raises(UserError, match=message):
        tokenizer.save(tmp_path)
    assert os.listdir(tmp_path) == []
