"""What a model says of its use: read from either file, completed for exports, kept by a merge."""

import json

import pytest
import tokenizers
import transformers

from allam_jax.errors import UserError
from allam_jax.tokenizer.chat_template import ChatTemplate
from allam_jax.tokenizer.generation_config import (
    complete_generation,
    keep_conversation,
    learned_conversation,
    name_pad_token,
    read_generation,
    stop_ids,
)
from allam_jax.tokenizer.piece_merge import CHAT_TOKENS
from allam_jax.tokenizer.sentencepiece_training import train_sentencepiece
from allam_jax.tokenizer.tokenizer import Tokenizer, with_control_tokens
from allam_jax.weights.output_directory import copy_tokenizer

TEXTS = [f"{word} and {other} {number}" for number in range(30) for word, other in (("one", "two"), ("three", "four"))]


@pytest.fixture(scope="module")
def base():
    return train_sentencepiece(TEXTS, vocab_size=300)


@pytest.fixture(scope="module")
def merged(base):
    """The base's ids, and our chat tokens behind them."""
    return with_control_tokens(base, CHAT_TOKENS)


@pytest.fixture
def byte_level(tmp_path):
    """A directory with a byte-level `tokenizer.json`, which names no token for padding."""
    directory = tmp_path / "byte_level"
    directory.mkdir()
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXTS, vocab_size=300, special_tokens=["<|end|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    write(directory, tokenizer_config={"eos_token": "<|end|>"})
    return directory


def write(directory, **files):
    for name, values in files.items():
        (directory / f"{name}.json").write_text(json.dumps(values))


def test_generation_config_comes_before_config(tmp_path):
    assert read_generation(tmp_path) == {}
    write(tmp_path, config={"eos_token_id": [5, 6], "pad_token_id": None, "hidden_size": 8, "bos_token_id": 1})
    assert read_generation(tmp_path) == {"eos_token_id": [5, 6], "bos_token_id": 1}
    write(tmp_path, generation_config={"eos_token_id": 7, "temperature": 0.6, "_from_model_config": True})
    assert read_generation(tmp_path) == {"eos_token_id": 7, "temperature": 0.6, "bos_token_id": 1}
    for ids in ("</s>", [1, "x"], True, [None], [2, None], [[2]], 2.0):
        write(tmp_path, generation_config={"eos_token_id": ids})
        with pytest.raises(UserError, match="eos_token_id = .*; expected a token id, or a list of them"):
            read_generation(tmp_path)


def test_an_end_of_text_is_special_and_no_ordinary_piece(byte_level):
    """As in transformers, a token that the settings name is special, also where tokenizer.json does not say so."""
    path = byte_level / "tokenizer.json"
    document = json.loads(path.read_text())
    end = document["model"]["vocab"]["<|end|>"]
    assert [token["content"] for token in document["added_tokens"]] == ["<|end|>"]
    path.write_text(json.dumps(document | {"added_tokens": []}))
    found = Tokenizer.load(byte_level)
    assert found.eos_id == end
    assert found.is_special(end)
    assert end not in found.encode("a<|end|>")
    assert end in found.encode("a<|end|>", specials="parse")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token="<|end|>")
    assert theirs("a<|end|>")["input_ids"] == found.encode("a<|end|>", specials="parse")
    for piece in ("\u0120two", "one", "!"):  # " two" as byte-level BPE writes it, a word, a byte
        write(byte_level, tokenizer_config={"eos_token": piece})
        with pytest.raises(UserError, match="eos_token of tokenizer_config.json is .*, an ordinary piece that texts"):
            Tokenizer.load(byte_level)


def test_what_a_model_states_is_obeyed_and_our_own_template_ends_turns(merged, tmp_path):
    merged.save(tmp_path)
    end = merged.special_tokens["<|im_end|>"]
    completed = {"bos_token_id": 1, "eos_token_id": [2, end], "pad_token_id": 0}
    assert complete_generation(merged, tmp_path) == completed
    assert stop_ids(merged, tmp_path) == (2, end)
    write(tmp_path, generation_config={"pad_token_id": -1})
    assert complete_generation(merged, tmp_path) == completed
    write(tmp_path, generation_config={"eos_token_id": [2, 9, 11], "pad_token_id": 3, "top_p": 0.9})
    stated = complete_generation(merged, tmp_path)
    assert stated == {"eos_token_id": [2, 9, 11, end], "pad_token_id": 3, "top_p": 0.9, "bos_token_id": 1}
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}<|im_end|>")  # of the model: it knows its ends
    assert stop_ids(merged, tmp_path) == (2, 9, 11)


def test_a_merge_keeps_what_its_base_says(base, merged, tmp_path):
    base.save(tmp_path / "base")
    write(tmp_path / "base", generation_config={"eos_token_id": [2, 4], "temperature": 0.6})
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages }}")
    tools = "additional_chat_templates/tool_use.jinja"
    (tmp_path / "base" / tools).parent.mkdir()
    (tmp_path / "base" / tools).write_text("{{ tools }}")
    merged.save(tmp_path / "merged")
    keep_conversation(tmp_path / "base", to=tmp_path / "merged", vocab_size=10_000)
    copy_tokenizer(tmp_path / "merged", to=tmp_path / "run")  # as into a run and out of it
    copy_tokenizer(tmp_path / "run", to=tmp_path / "export")
    name_pad_token(tmp_path / "export", "<unk>")
    assert read_generation(tmp_path / "export") == {"eos_token_id": [2, 4], "temperature": 0.6}
    settings = json.loads((tmp_path / "export" / "tokenizer_config.json").read_text())
    assert (settings["chat_template"], settings["pad_token"]) == ("{{ messages }}", "<unk>")
    assert Tokenizer.load(tmp_path / "export").fingerprint == merged.fingerprint
    for name, text in ((tools, "{{ tools }}"), ("chat_template.jinja", "{{ messages }}")):
        assert (tmp_path / "export" / name).read_text() == text
        assert name in json.loads((tmp_path / "export" / "files.json").read_text())["files"]
    (tmp_path / "export" / tools).write_text("{{ tolls }}")
    with pytest.raises(UserError, match=r"tool_use\.jinja: its bytes are not those that were written"):
        Tokenizer.load(tmp_path / "export")


def test_a_learned_template_goes_with_the_model(tmp_path):
    """Into both files that versions of transformers read, with the end of its turns."""
    source, to = tmp_path / "base", tmp_path / "run"
    source.mkdir()
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXTS, vocab_size=300, special_tokens=["<|end|>", "<|turn|>"])
    tokenizer.save(str(source / "tokenizer.json"))
    write(source, tokenizer_config={"eos_token": "<|end|>", "chat_template": "old"})
    write(source, generation_config={"temperature": 0.5, "eos_token_id": 0})
    tokenizer = Tokenizer.load(source)
    text = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|turn|>\n{% endfor %}"
    template = ChatTemplate(text, tokenizer=tokenizer, name="a template")
    learned = learned_conversation(template, tokenizer=tokenizer, directory=source)
    copy_tokenizer(source, to=to, changed=learned)
    assert Tokenizer.load(to).fingerprint == tokenizer.fingerprint
    assert read_generation(to) == {"temperature": 0.5, "eos_token_id": [0, 1]}
    assert json.loads((to / "tokenizer_config.json").read_text()) == {"eos_token": "<|end|>", "chat_template": text}
    messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(to)
    assert theirs.apply_chat_template(messages, tokenize=False) == "user: one<|turn|>\nassistant: two<|turn|>\n"
    (to / "chat_template.jinja").unlink()
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(to)
    assert theirs.apply_chat_template(messages, tokenize=False) == "user: one<|turn|>\nassistant: two<|turn|>\n"
    copy_tokenizer(source, to=to, changed=learned)
    assert learned_conversation(template, tokenizer=tokenizer, directory=to) == {}


def test_a_pad_token_changes_no_fingerprint(byte_level, tmp_path):
    copy_tokenizer(byte_level, to=tmp_path / "export")
    before = Tokenizer.load(tmp_path / "export")
    name_pad_token(tmp_path / "export", "<|end|>")
    name_pad_token(tmp_path / "export", "another")  # it has one now
    after = Tokenizer.load(tmp_path / "export")
    assert (before.pad_id, after.pad_id) == (None, before.eos_id)
    assert after.fingerprint == before.fingerprint


# -- tokens that are added in one of the files -------------------------------------------------------------------------


def test_tokens_that_only_tokenizer_json_adds_beside_a_model(base, merged, tmp_path):
    """As transformers 5 saves them beside the `tokenizer.model` of before."""
    merged.save(tmp_path)
    (tmp_path / "files.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(base.model.serialized())
    found = Tokenizer.load(tmp_path)
    assert found.special_tokens == merged.special_tokens
    text = "one <|im_end|> two"
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert found.encode(text, bos=True, specials="parse") == theirs.encode(text).ids


def test_tokenizer_files_that_disagree(base, tmp_path):
    train_sentencepiece([text.upper() for text in TEXTS], vocab_size=300).save(tmp_path)
    (tmp_path / "files.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(base.model.serialized())
    with pytest.raises(
        UserError, match=r"id \d+ is .* in tokenizer.model and .* in the JSON files .*; remove the files"
    ):
        Tokenizer.load(tmp_path)


def test_tokens_that_other_files_add_to_a_tokenizer_json(byte_level):
    plain = Tokenizer.load(byte_level)
    size = plain.vocab_size
    decoder = {"0": {"content": "<|end|>", "special": True}, str(size + 1): {"content": "<fill>", "special": False}}
    write(byte_level, tokenizer_config={"eos_token": "<|end|>", "added_tokens_decoder": decoder})
    write(byte_level, added_tokens={"<|turn|>": size})
    found = Tokenizer.load(byte_level)
    assert found.special_tokens == {**plain.special_tokens, "<|turn|>": size}
    ids = found.encode("one<fill> two<|turn|>", specials="parse")
    assert ids == [*plain.encode("one"), size + 1, *plain.encode(" two"), size]
    assert found.decode(ids) == "one<fill> two<|turn|>"
    write(byte_level, added_tokens={"<|other|>": 5})
    with pytest.raises(UserError, match="id 5 is .* there and '<|other|>' in the files beside it"):
        Tokenizer.load(byte_level)


def test_ids_beyond_the_base_s_pieces_do_not_become_new_ones(base, tmp_path):
    first, second = tmp_path / "base", tmp_path / "merged"
    for directory in (first, second):
        directory.mkdir()
        write(directory, tokenizer_config={})
    new = base.vocab_size  # Llama 2 once padded with the id behind its last piece
    write(first, generation_config={"pad_token_id": new, "eos_token_id": [2, new + 1], "bos_token_id": 1})
    keep_conversation(first, to=second, vocab_size=new)
    assert read_generation(second) == {"eos_token_id": [2], "bos_token_id": 1}
