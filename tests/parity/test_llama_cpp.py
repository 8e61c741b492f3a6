"""Our GGUF exports in llama.cpp itself: ids of texts, logits, greedy text and the tokens that end it."""

import byte_level
import jax.numpy as jnp
import numpy as np
import pytest
from llama_pair import SHAPES, make_pair, our_logits

from allam_jax.corpus import catalog
from allam_jax.tokenizer.tokenizer import Tokenizer
from allam_jax.weights.gguf_export import export_gguf
from allam_jax.weights.huggingface import import_huggingface

cyllama = pytest.importorskip("cyllama.llama.llama_cpp")
pytestmark = pytest.mark.parity

TEXTS = [
    "Hello  world, it's 2023!\n\n  x = [1, 22]",
    "كَتَبَ الوَلَدُ الدرسَ ٢٠٢٣",
    "日本語 and naïve — 😀",
    " the  cat sat ",
]
# llama.cpp rounds what meets a matrix to the type of the matrix, which only F32 leaves as it is.
BOUND = {"F32": 5e-6, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 6e-2}
PLAIN = {"hidden_size": 128, "intermediate_size": 192, "num_key_value_heads": 2}


class Model(cyllama.LlamaModel):
    """cyllama 0.2.18 reads `n_vocab` of the model, which is its vocabulary's."""

    @property
    def n_vocab(self):
        return self.get_vocab().n_vocab


class Reader:
    """A model in llama.cpp, its cache in float32."""

    def __init__(self, path):
        cyllama.disable_logging()
        cyllama.ggml_backend_load_all()
        self.model = Model(str(path))
        options = cyllama.LlamaContextParams()
        options.n_ctx = options.n_batch = options.n_ubatch = 256
        options.type_k = options.type_v = options.flash_attn_type = 0  # float32, off
        self.context, self.vocabulary = cyllama.LlamaContext(self.model, options), self.model.get_vocab()

    def tokenize(self, text):
        return list(self.vocabulary.tokenize(text, False, False))

    def logits(self, ids):
        """Of every position, [T, V]."""
        self.context.kv_cache_clear()
        batch = cyllama.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
        batch.set_batch(ids, 0, True)
        self.context.decode(batch)
        return np.stack([np.array(self.context.get_logits_ith(place), np.float32) for place in range(len(ids))])

    def ends(self):
        return [token for token in range(self.model.n_vocab) if self.vocabulary.is_eog(token)]


@pytest.fixture(scope="module")
def tokenizers():
    proto = Tokenizer.from_sentencepiece(catalog.read_asset("mistral_tokenizer")).model.proto
    kept = [piece for index, piece in enumerate(proto.pieces) if index < 3000 or len(piece.piece) == 1]
    del proto.pieces[:]
    proto.pieces.extend(kept)
    lines = [text * 3 for text in TEXTS] + ["the cat sat on the mat, it's that"] * 9
    found = {
        pre: byte_level.as_tokenizer(byte_level.train(lines, size=400, pre=pre)) for pre in ("smollm", "llama-bpe")
    }
    return found | {"sentencepiece": Tokenizer.from_sentencepiece(proto.SerializeToString())}


@pytest.mark.parametrize("kind", BOUND)
@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        ("gqa_tied", "sentencepiece"),
        ("llama3_rope", "llama-bpe"),
        ("wider_heads", "smollm"),
        ("qwen2_yarn", "smollm"),
        ("qwen3_linear_tied", "llama-bpe"),
    ],
)
def test_llama_cpp_reads_our_exports(tmp_path, tokenizers, shape, kept, kind):
    tokenizer = tokenizers[kept]
    sizes = {**PLAIN, **SHAPES[shape]}
    pair = make_pair(tmp_path / "torch", **(sizes | {"vocab_size": tokenizer.vocab_size}))
    generation = {"eos_token_id": [tokenizer.eos_id]}
    given = {"tokenizer": tokenizer, "kind": kind, "generation": generation, "template": None}
    export_gguf(tmp_path / "out", params=pair.params, config=pair.config, **given)
    params, config = import_huggingface(tmp_path / "out", vocab_multiple=32, param_dtype="float32")
    reader = Reader(next((tmp_path / "out").glob("*.gguf")))
    for text in TEXTS:
        assert reader.tokenize(text) == tokenizer.encode(text)
    assert reader.ends() == [tokenizer.eos_id]

    ids = [tokenizer.bos_id, *tokenizer.encode(" ".join(TEXTS))]
    start, steps = len(ids), 12
    for _ in range(steps):
        ids.append(int(reader.logits(ids)[-1].argmax()))
    theirs = reader.logits(ids)
    ours = np.asarray(our_logits(params, jnp.asarray([ids]), config=config))[0, :, : config.vocab_size]
    difference = np.abs(theirs - ours).max() / np.abs(ours).max()
    print(f"{shape} {kept} {kind}: {len(ids)} tokens, logits {difference:.1e}")
    assert difference < BOUND[kind]
    if kind in ("F32", "F16"):
        assert ours[start - 1 : -1].argmax(-1).tolist() == ids[start:]
