import io
import json
import pickle

import pytest
import sentencepiece
import tokenizers
from tokenizer_helpers import Corpus, Merge, reference, sentencepiece_model
from tokenizers import decoders, models, pre_tokenizers, trainers

from allam_jax.corpus import catalog
from allam_jax.errors import UserError
from allam_jax.tokenizer.tokenizer import Tokenizer, with_control_tokens


@pytest.fixture(scope="session")
def byte_level_directory(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus):
    """A byte-level BPE of the kind that Llama 3 and SmolLM2 have, trained by the tokenizers library."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus.train["en"] + corpus.train["ar"][:100], trainer=trainer)
    directory = tmp_path_factory.mktemp("byte_level")
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": special[0], "eos_token": {"content": special[1], "lstrip": False}}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def test_ids_are_those_of_sentencepiece(languages: Merge, corpus: Corpus, awkward_lines: list[str]):
    lines = [line for kind in corpus.test.values() for line in kind] + awkward_lines
    documents = ["\n".join(lines[at : at + 50]) for at in range(0, len(lines), 50)]
    for tokenizer in (languages.base, languages.arabic, languages.merged):
        expected = reference(tokenizer).encode(lines + documents)
        assert tokenizer.encode_batch(lines + documents) == expected
        assert [tokenizer.encode(line) for line in lines[::4]] == expected[: len(lines) : 4]


@pytest.mark.parametrize(
    ("pieces", "flags", "cached"),
    [
        ({"a▁": -1.0, "▁b": -2.0, "a▁b": -3.0}, {}, False),  # pieces across a space
        ({"a\n": -1.0, "\nb": -2.0}, {}, False),  # and across a line break
        ({"▁▁": -1.0, "▁▁▁": -2.0, "▁b": -1.5}, {}, True),
        ({"▁b": -1.0, "ab": -2.0}, {"add_dummy_prefix": False}, True),
        ({"▁b": -1.0, "ab": -2.0}, {"remove_extra_whitespaces": True}, False),
        ({"ab": -2.0}, {"treat_whitespace_as_suffix": True}, False),
    ],
)
def test_ids_are_those_of_sentencepiece_for_unusual_models(pieces: dict, flags: dict, cached: bool):
    tokenizer = sentencepiece_model({**pieces, **dict.fromkeys("▁ab\n", -9.0)}, **flags)
    texts = ["a b", "a  b", " a   b ", "a\nb", "ab a\n\nb\n", "   ", "\n", "", "b▁▁a b", "a a a b c\n c"]
    assert tokenizer.encode_batch(texts * 2) == reference(tokenizer).encode(texts * 2)
    assert (tokenizer.model._chunk_pattern is not None) == cached


def test_decode_inverts_encode(languages: Merge, corpus: Corpus, awkward_lines: list[str]):
    lines = [line for kind in corpus.test.values() for line in kind] + awkward_lines
    for line in lines:
        text = line.replace("▁", " ")  # SentencePiece takes one for the other
        assert languages.merged.decode(languages.merged.encode(text)) == text
        assert languages.merged.decode(languages.merged.encode(text, specials="parse")) == text


def test_special_tokens_are_text_unless_parsed(languages: Merge):
    merged = languages.merged
    start, end = merged.special_tokens["<|im_start|>"], merged.special_tokens["<|im_end|>"]
    text = "<|im_start|>user\nمرحبا<|im_end|><s>"
    assert not {start, end, merged.bos_id} & set(merged.encode(text))
    ids = merged.encode(text, specials="parse", bos=True, eos=True)
    assert ids == [1, start, *merged.encode("user\nمرحبا"), end, 1, 2]
    assert merged.decode(ids) == f"<s>{text}</s>"
    assert merged.decode(ids, skip_special=True) == "user\nمرحبا"
    assert merged.encode_batch([text], specials="parse", bos=True, eos=True) == [ids]
    assert merged.encode("", bos=True, eos=True) == [1, 2]


def test_roles_of_ids(mistral: Tokenizer):
    assert (mistral.unk_id, mistral.bos_id, mistral.eos_id, mistral.pad_id) == (0, 1, 2, None)
    assert mistral.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert mistral.vocab_size == 32000
    assert [mistral.is_special(i) for i in range(4)] == [True, True, True, False]
    assert [i for i in range(300) if mistral.is_byte(i)] == list(range(3, 259))
    assert mistral.piece_to_id("▁the") == reference(mistral).piece_to_id("▁the")
    assert mistral.id_to_piece(mistral.piece_to_id("▁the")) == "▁the"
    assert mistral.piece_to_id("no such piece") is None
    padded = with_control_tokens(mistral, ["<pad>"])
    assert (padded.pad_id, padded.vocab_size) == (32000, 32001)


def test_decode_refuses_ids_outside_the_vocabulary(mistral: Tokenizer):
    for ids in ([32000], [-1, 5]):
        with pytest.raises(ValueError, match=r"0\.\.31999"):
            mistral.decode(ids)


def test_bytes_that_are_no_text_decode_to_the_replacement_character(mistral: Tokenizer):
    ids = mistral.encode("😀")
    assert mistral.decode(ids[:-1]).strip("\ufffd") == ""
    assert mistral.decode(ids) == "😀"


def test_a_lone_surrogate_is_named(mistral: Tokenizer):
    with pytest.raises(UserError, match=r"lone surrogate '\\ud800'"):
        mistral.encode("a b\ud800")


def test_fingerprint_is_of_what_decides_the_ids(trained_base: Tokenizer):
    proto = type(trained_base.model.proto)()
    proto.CopyFrom(trained_base.model.proto)
    proto.trainer_spec.input.append("some/path.txt")
    other_path = Tokenizer.from_sentencepiece(proto.SerializeToString(), source="elsewhere")
    proto.pieces[1000].score -= 1.0
    other_score = Tokenizer.from_sentencepiece(proto.SerializeToString())
    assert other_path.fingerprint == trained_base.fingerprint != other_score.fingerprint
    assert pickle.loads(pickle.dumps(trained_base)).fingerprint == trained_base.fingerprint


def test_save_and_load(languages: Merge, tmp_path, awkward_lines: list[str]):
    languages.merged.save(tmp_path)
    names = ["files.json", "special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for path in (tmp_path, tmp_path / "tokenizer.model"):
        loaded = Tokenizer.load(path)
        assert loaded.fingerprint == languages.merged.fingerprint
        assert loaded.special_tokens == languages.merged.special_tokens
    from_json = Tokenizer.load(tmp_path / "tokenizer.json")
    assert from_json.special_tokens == languages.merged.special_tokens
    assert (from_json.bos_id, from_json.eos_id, from_json.unk_id) == (1, 2, 0)
    lines = awkward_lines[-1500:]
    for specials in ("text", "parse"):
        assert from_json.encode_batch(lines, specials=specials) == languages.merged.encode_batch(
            lines, specials=specials
        )
    assert from_json.is_byte(3)
    assert not from_json.is_byte(300)


def test_tokens_that_a_directory_adds_become_control_pieces(mistral: Tokenizer, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(mistral.model.serialized())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 32001, "<|im_start|>": 32000, "<s>": 1}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.special_tokens == {**mistral.special_tokens, "<|im_start|>": 32000, "<|im_end|>": 32001}
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<x>": 32007}))
    with pytest.raises(UserError, match="do not continue the 32000 pieces"):
        Tokenizer.load(tmp_path)


def test_byte_level_bpe_gives_the_ids_of_the_tokenizers_library(byte_level_directory, corpus: Corpus, awkward_lines):
    tokenizer = Tokenizer.load(byte_level_directory)
    truth = tokenizers.Tokenizer.from_file(str(byte_level_directory / "tokenizer.json"))
    lines = corpus.test["en"] + corpus.test["ar"] + awkward_lines
    assert tokenizer.encode_batch(lines) == [e.ids for e in truth.encode_batch(lines)]
    assert all(tokenizer.decode(tokenizer.encode(line)) == line for line in lines)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.pad_id) == (0, 1, None, None)
    text = "<|begin_of_text|>hello<|end_of_text|>"
    assert tokenizer.encode(text, specials="parse") == [0, *tokenizer.encode("hello"), 1]
    assert not {0, 1} & set(tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert sum(map(tokenizer.is_byte, range(tokenizer.vocab_size))) == 256
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(text, specials="parse") == tokenizer.encode(text, specials="parse")


def test_byte_level_bpe_saves_what_it_loaded(byte_level_directory, tmp_path):
    tokenizer = Tokenizer.load(byte_level_directory)
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.bos_id, again.eos_id) == (0, 1)


def _unigram(path):
    model = io.BytesIO()
    lines = iter(["the quick brown fox", "jumps over the lazy dog"] * 20)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, model_type="unigram", vocab_size=30, minloglevel=2
    )
    path.write_bytes(model.getvalue())


def _truncated(path):
    data = sentencepiece_model({"ab": -1.0, "a": -2.0, "b": -3.0}).model.serialized()
    path.write_bytes(data[: len(data) // 2])


def _pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 9\n")


def _word_piece(path):
    tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).save(str(path))


def _twice(path):
    proto = Tokenizer.from_sentencepiece(catalog.read_asset("mistral_tokenizer")).model.proto
    proto.pieces.add(piece=proto.pieces[500].piece, score=-1.0)
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("tokenizer.model", lambda path: None, "no such file"),
        ("tokenizer.model", _twice, "sentencepiece refuses the model (INTERNAL: "),
        (
            "tokenizer.model",
            lambda path: path.mkdir(),
            "no tokenizer here; expected a tokenizer.model, a tokenizer.json",
        ),
        ("tokenizer.model", _unigram, "a SentencePiece UNIGRAM model; expected BPE"),
        ("tokenizer.model", _truncated, "not a SentencePiece model or truncated"),
        ("tokenizer.model", lambda path: path.write_bytes(b""), "not a SentencePiece model or truncated"),
        ("tokenizer.model", _pointer, "a pointer of Git LFS, not the file itself; run `git lfs pull`"),
        ("tokenizer.json", _pointer, "a pointer of Git LFS"),
        (
            "tokenizer.model",
            lambda path: path.write_text("IQ== 0\nIg== 1\n"),
            "a Llama-3 tokenizer.model is a tiktoken",
        ),
        ("tokenizer.json", _word_piece, "a tokenizer of type WordPiece; expected BPE"),
        ("tokenizer.json", lambda path: path.write_text('{"model": {"type": "BPE"'), "not a tokenizer.json"),
        ("tokenizer.json", lambda path: path.write_text("[1, 2]"), "not a tokenizer.json"),
        ("tokenizer.json", lambda path: path.write_text("[" * 100_000), "not a tokenizer.json"),
        ("tokenizer.json", lambda path: path.write_text('{"model": {}, "model": {}}'), "the key 'model' occurs twice"),
        ("tokenizer.json", lambda path: path.write_bytes(b"\xff\xfe\x00"), "not UTF-8"),
        ("tokenizer.json", lambda path: path.write_text('{"model": {"type": "BPE"}}'), "cannot read it"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path, name: str, write, message: str):
    path = tmp_path / name
    write(path)
    with pytest.raises(UserError) as failure:
        Tokenizer.load(path)
    text = str(failure.value)
    assert text.startswith(str(path))
    assert message in text
    assert "\n" not in text


def test_byte_level_bpe_without_a_bos_token_begins_with_its_end(byte_level_directory, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((byte_level_directory / "tokenizer.json").read_bytes())
    tokenizer = Tokenizer.load(tmp_path)
    first, second = tokenizer.id_to_piece(0), tokenizer.id_to_piece(1)
    with pytest.raises(UserError, match="no bos or eos token; name one in tokenizer_config.json"):
        tokenizer.encode("a", bos=True)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": None, "eos_token": second}))  # as Qwen
    assert Tokenizer.load(tmp_path).encode("a", bos=True, eos=True) == [1, *tokenizer.encode("a"), 1]
    (tmp_path / "tokenizer_config.json").unlink()
    named = {"bos_token": first, "eos_token": {"content": second}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))  # all that old models have
    assert (Tokenizer.load(tmp_path).bos_id, Tokenizer.load(tmp_path).eos_id) == (0, 1)


@pytest.mark.parametrize("index", ["b", None, [1], "1.5"])
def test_ids_of_another_kind_beside_a_model_are_told(trained_base, tmp_path, index):
    trained_base.save(tmp_path / "x")
    (tmp_path / "x" / "files.json").unlink(missing_ok=True)
    file = tmp_path / "x" / "tokenizer.json"
    document = json.loads(file.read_text())
    document["model"]["vocab"] = {"a": -1, "b": index}
    file.write_text(json.dumps(document))
    with pytest.raises(UserError, match="tokenizer.json: not a tokenizer.json; remove it"):
        Tokenizer.load(tmp_path / "x")
