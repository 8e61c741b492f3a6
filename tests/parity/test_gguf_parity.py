"""GGUF files that llama.cpp's users have: as transformers and torch read them, and as the gguf package reads ours."""

import dataclasses
import itertools

import byte_level
import jax
import numpy as np
import pytest
from gguf_models import byte_level_metadata, sentencepiece_metadata, write_llama
from llama_pair import SHAPES, our_logits, random_torch_llama, torch_logits
from tokenizers import pre_tokenizers

from allam_jax.corpus import catalog
from allam_jax.errors import UserError
from allam_jax.files import CACHE_VARIABLE
from allam_jax.gguf_file import read_gguf
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.tokenizer.chat_template import stored_template
from allam_jax.tokenizer.generation_config import complete_generation
from allam_jax.tokenizer.tokenizer import Tokenizer, directory_of
from allam_jax.training.load import load_model, open_stored
from allam_jax.weights.gguf_export import export_gguf
from allam_jax.weights.huggingface import import_huggingface
from allam_jax.weights.orbax_arrays import flatten

pytestmark = pytest.mark.parity

TOKENS = np.random.default_rng(0).integers(0, 251, (2, 48))
TEXTS = ["Hello  world, it's 2023!\n\n  x = [1, 22]", "كَتَبَ الوَلَدُ الدرسَ ٢٠٢٣", "日本語 and naïve — 😀", " ", "<|end|>x"]
TEMPLATE = "{% for m in messages %}<|im|>{{ m['content'] }}<|end|>{% endfor %}"
QUANTISED = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "num_key_value_heads": 2}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def of_library():
    return byte_level.train([text * 3 for text in TEXTS] + ["the cat sat on the mat, it's that"] * 9, size=400)


@pytest.fixture(scope="module")
def mistral() -> Tokenizer:
    """The first pieces of Mistral's tokenizer, and its letters."""
    proto = Tokenizer.from_sentencepiece(catalog.read_asset("mistral_tokenizer")).model.proto
    kept = [piece for index, piece in enumerate(proto.pieces) if index < 3000 or len(piece.piece) == 1]
    del proto.pieces[:]
    proto.pieces.extend(kept)
    return Tokenizer.from_sentencepiece(proto.SerializeToString())


@pytest.fixture(scope="module")
def smollm2() -> bytes:
    return catalog.read_asset("smollm2")


def assert_close(found, expected):
    assert np.abs(found - expected).max() < 3e-5 * np.abs(expected).max()


def logits_of(params, config: LlamaConfig):
    return np.asarray(our_logits(params, TOKENS, config=config))[..., : config.vocab_size]


@pytest.mark.parametrize(
    "shape",
    ["gqa_tied", "wider_heads", "odd_vocabulary", "llama3_rope", "theta_and_eps", "qwen2_yarn", "qwen3_linear_tied"],
)
def test_a_whole_file_gives_the_logits_of_the_model_that_was_written(tmp_path, shape):
    """Row order, biases, norms of heads, tied tables and each scaling of RoPE; and our export of it reads the same."""
    torch_model = random_torch_llama(**SHAPES[shape])
    write_llama(tmp_path / "x.gguf", torch_model)
    params, config = import_huggingface(tmp_path / "x.gguf", vocab_multiple=32)
    expected = torch_logits(torch_model, TOKENS)
    assert_close(logits_of(params, config), expected)
    for path, stored in flatten(open_stored(tmp_path).params).items():
        assert stored.dtype == np.float32, path


@pytest.mark.parametrize(
    "kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
)
def test_quantised_files_are_read_as_by_transformers(tmp_path, kind):
    import transformers

    write_llama(tmp_path / "x.gguf", random_torch_llama(std=0.05, **QUANTISED), kind=kind)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", dtype="float32")
    params, config = import_huggingface(tmp_path, vocab_multiple=32, param_dtype="float32")
    assert config.norm_eps == 1e-6
    assert_close(logits_of(params, config), torch_logits(theirs, TOKENS))


def test_byte_level_tokenizer_is_that_of_transformers(tmp_path, of_library):
    import transformers

    special = {"bos": 1, "eos": 2, "padding": 0}
    metadata = byte_level_metadata(of_library, pre="smollm", special=special, template=TEMPLATE)
    write_llama(tmp_path / "x.gguf", random_torch_llama(vocab_size=of_library.get_vocab_size()), tokenizer=metadata)
    loaded = load_model(tmp_path / "x.gguf")
    ours = Tokenizer.load(loaded.tokenizer_dir)
    assert ours.fingerprint == Tokenizer.load(tmp_path).fingerprint  # the directory and the file name the same
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    for text in TEXTS:
        assert ours.encode(text) == of_library.encode(text).ids or "<|" in text
        assert ours.encode(text, specials="parse") == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ours.encode(text)) == text
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (1, 2, 0)
    assert stored_template(loaded.tokenizer_dir) == TEMPLATE == theirs.chat_template
    assert complete_generation(ours, loaded.tokenizer_dir)["eos_token_id"] == 2


def test_sentencepiece_tokenizer_is_the_one_that_was_written(tmp_path, mistral):
    import transformers

    base, proto = mistral, mistral.model.proto
    metadata = sentencepiece_metadata(proto)
    torch_model = random_torch_llama(vocab_size=mistral.vocab_size, hidden_size=32)
    write_llama(tmp_path / "x.gguf", torch_model, tokenizer=metadata)
    ours = Tokenizer.load(tmp_path / "x.gguf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    for text in TEXTS[:4]:
        assert ours.encode(text) == base.encode(text)
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"] or text[0] == " "
    found = [(piece.piece, piece.score, piece.type) for piece in ours.model.proto.pieces]
    assert found == [(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    assert ours.model.proto.trainer_spec.split_digits
    assert directory_of(tmp_path / "x.gguf") == directory_of(tmp_path)


@pytest.mark.parametrize("shape", ["gqa_tied", "llama3_rope", "qwen2_yarn", "qwen3_linear_tied"])
@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_exported_files_are_read_by_others_and_here(tmp_path, of_library, shape, kind):
    import gguf
    import transformers

    torch_model = random_torch_llama(vocab_size=of_library.get_vocab_size(), intermediate_size=192, **SHAPES[shape])
    write_llama(
        tmp_path / "x.gguf", torch_model, tokenizer=byte_level_metadata(of_library, pre="smollm", special={"eos": 2})
    )
    params, config = import_huggingface(tmp_path / "x.gguf", vocab_multiple=32)
    tokenizer = Tokenizer.load(tmp_path / "x.gguf")
    given = {"tokenizer": tokenizer, "generation": {"eos_token_id": [2, 1]}, "template": TEMPLATE}
    export_gguf(tmp_path / "out", params=params, config=config, kind=kind, **given)
    again, config_again = import_huggingface(tmp_path / "out", vocab_multiple=32)
    assert config_again == config
    target = gguf.GGMLQuantizationType[kind]
    for path, found in flatten(again).items():
        expected = np.asarray(flatten(params)[path])
        if kind != "Q8_0":
            expected = expected.astype(found.dtype)
        elif "norm" not in path[-2] and "bias" not in path:
            # Half a step of the largest block, whose size is rounded to float16.
            assert np.abs(np.asarray(found) - expected).max() <= np.abs(expected).max() / 127 / 2 * 1.15
            continue
        np.testing.assert_array_equal(np.asarray(found), expected)
    reader = gguf.GGUFReader(next((tmp_path / "out").glob("*.gguf")))
    assert {t.tensor_type for t in reader.tensors if len(t.shape) > 1} == {target}
    exported = Tokenizer.load(tmp_path / "out")
    assert exported.fingerprint == tokenizer.fingerprint
    assert complete_generation(exported, directory_of(tmp_path / "out"))["eos_token_id"] == [2, 1]
    assert stored_template(directory_of(tmp_path / "out")) == TEMPLATE
    if shape == "gqa_tied":
        file = next((tmp_path / "out").glob("*.gguf")).name
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file=file, dtype="float32")
        widened, _ = import_huggingface(tmp_path / "out", vocab_multiple=32, param_dtype="float32")
        assert_close(logits_of(widened, config), torch_logits(theirs, TOKENS))


def test_what_llama_cpp_lacks_is_refused(tmp_path, of_library):
    config = dataclasses.replace(
        LlamaConfig.default(), vocab_size=300, rope_scaling="dynamic", rope_scaling_factor=2.0, dim=32
    )
    with pytest.raises(UserError, match="llama.cpp has no dynamic scaling of RoPE; export to huggingface"):
        export_gguf(tmp_path / "x", params={}, config=config, tokenizer=None, kind="F16", generation={}, template=None)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory, of_library):
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    metadata = byte_level_metadata(of_library, pre="smollm", special={"eos": 2})
    model = random_torch_llama(vocab_size=of_library.get_vocab_size(), hidden_size=32, num_hidden_layers=1)
    write_llama(path, model, tokenizer=metadata)
    return path


def test_damaged_files_are_named_in_one_line(tmp_path, small_file):
    """Cut anywhere, or with bytes changed in the header: an error of one line, or values that are still numbers."""
    whole = small_file.read_bytes()
    rng = np.random.default_rng(0)
    data = min(entry.offset for entry in read_gguf(small_file).tensors.values())
    cases = [whole[:size] for size in (0, 3, 4, 20, 100, data // 2, data, len(whole) - 1)]
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, data, 2):
            damaged[place] = rng.integers(0, 256)
        cases.append(bytes(damaged))
    errors = []
    for case in cases:
        (tmp_path / "x.gguf").write_bytes(case)
        try:
            open_stored(tmp_path / "x.gguf")
        except UserError as error:
            errors.append(str(error))
    assert len(errors) > 40
    assert all("x.gguf" in error and "\n" not in error for error in errors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "gemma"}, "general.architecture = 'gemma' is another network; llama, qwen2, qwen3"),
        ({"llama.expert_count": 8}, "a mixture of experts"),
        ({"llama.embedding_length": ...}, "lacks the metadata llama.embedding_length"),
        ({"llama.embedding_length": "x"}, "llama.embedding_length = 'x'; expected a value of type int"),
        ({"llama.feed_forward_length": 17}, "but its metadata implies"),
        ({"llama.block_count": 3}, "18 missing tensors: .*; its metadata does not fit the tensors"),
        ({"llama.rope.dimension_count": 4}, "partial rotary embeddings"),
        ({"llama.attention.sliding_window": 16}, "attention in windows"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, "rope_type = 'longrope'"),
    ],
)
def test_networks_of_others_are_refused(small_file, monkeypatch, change, message):
    from allam_jax.weights import huggingface

    def changed(path):
        file = read_gguf(path)
        metadata = {**file.metadata, **change}
        return dataclasses.replace(file, metadata={key: value for key, value in metadata.items() if value is not ...})

    monkeypatch.setattr(huggingface, "read_gguf", changed)
    with pytest.raises(UserError, match=message):
        import_huggingface(small_file)


@pytest.mark.long
def test_smollm2_is_what_transformers_loads(tmp_path, smollm2):
    """The real SmolLM2-135M-Instruct: logits, greedy text of 20 prompts, ids of lines of each kind, its template."""
    import torch
    import transformers

    (tmp_path / "x.gguf").write_bytes(smollm2)
    params, config = import_huggingface(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", dtype="float32").eval()
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    # transformers leaves out that `smollm` cuts digits apart before anything else, as the model's tokenizer.json does.
    cuts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    reader.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer = Tokenizer.load(tmp_path)
    for source in ("python_topics", "python_code"):
        documents = itertools.islice(catalog.documents(source), 40)
        lines = [line for document in documents for line in document.text.split("\n")] + TEXTS
        assert tokenizer.encode_batch(lines) == reader(lines, add_special_tokens=False)["input_ids"]
    prompts = [
        f"{beginning} {topic}"
        for beginning in ("The history of", "def read", "Q: What is", "Once there was a")
        for topic in ("Rome", "water", "a king", "music", "x")
    ]
    beginnings = [tokenizer.encode(prompt) for prompt in prompts]
    longest, end = max(map(len, beginnings)), 2
    padded_BT = torch.tensor([[end] * (longest - len(ids)) + ids for ids in beginnings])
    real_BT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in beginnings])
    asked = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": end}
    longer = theirs.generate(padded_BT, attention_mask=real_BT, **asked).tolist()
    # Padding goes behind, where causal attention does not see it.
    starts = [longest - len(ids) for ids in beginnings]
    texts = [row[start:] + [end] * start for row, start in zip(longer, starts, strict=True)]
    with torch.no_grad():
        expected_BTV = theirs(torch.tensor(texts)).logits.numpy()
    found_BTV = np.asarray(our_logits(params, np.array(texts), config=config))[..., : config.vocab_size]
    assert_close(found_BTV, expected_BTV)
    for found_TV, text, ids in zip(found_BTV, texts, beginnings, strict=True):
        until = text.index(end, len(ids)) if end in text[len(ids) :] else len(text)
        assert found_TV[len(ids) - 1 : until - 1].argmax(-1).tolist() == text[len(ids) : until]
    messages = [{"role": "user", "content": "Hi"}]
    assert stored_template(directory_of(tmp_path)) == reader.chat_template
    assert reader.apply_chat_template(messages, tokenize=False).startswith("<|im_start|>system")
    assert jax.tree.leaves(params)[0].dtype == np.float32
