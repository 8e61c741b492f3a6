"""Our network against those of transformers, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generated import generate
from llama_pair import SHAPES, make_pair, our_logits, torch_logits

from allam_jax.model.llama_config import ComputeOptions
from allam_jax.weights.huggingface import export_huggingface, import_huggingface

pytestmark = pytest.mark.parity


def random_tokens(vocab_size: int, *, batch: int = 2, length: int = 96) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab_size, (batch, length))


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Within 1e-4 of the largest logit of each position."""
    scale = np.abs(theirs).max(axis=-1, keepdims=True)
    assert (np.abs(ours - theirs) / scale).max() < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_logits(tmp_path, shape):
    pair = make_pair(tmp_path / "torch", **SHAPES[shape])
    tokens_BT = random_tokens(pair.config.vocab_size)
    theirs = pair.torch_logits(tokens_BT)
    assert np.abs(theirs).max() > 1  # there is something to compare
    assert_close(pair.logits(tokens_BT), theirs)


@pytest.mark.long
@pytest.mark.parametrize("shape", ["llama3_rope", "mistral_dynamic", "qwen2_yarn", "qwen3_linear_tied"])
@pytest.mark.parametrize("length", [2048, 8192])
def test_logits_of_long_texts(tmp_path, shape, length):
    """The angles are float32 on both sides: 8,000 turns leave an error of some 1e-3 in the fastest pairs."""
    changes = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": length}
    if SHAPES[shape].get("rope_parameters", {}).get("rope_type") == "dynamic":
        changes["max_position_embeddings"] = length // 4
    pair = make_pair(tmp_path / "torch", **(SHAPES[shape] | changes))
    tokens_BT = random_tokens(pair.config.vocab_size, batch=1, length=length)
    ours, theirs = pair.logits(tokens_BT), pair.torch_logits(tokens_BT)
    assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 3e-5


def test_sharded_import_and_bfloat16(tmp_path):
    import torch

    pair = make_pair(tmp_path / "torch", max_shard_size="100KB", num_key_value_heads=2)
    assert len(list(pair.directory.glob("*.safetensors"))) > 2
    assert_close(pair.logits(random_tokens(256)), pair.torch_logits(random_tokens(256)))

    pair.torch_model.to(torch.bfloat16).save_pretrained(pair.directory / "bf16")
    kept, _ = import_huggingface(pair.directory / "bf16")
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("bfloat16")}
    widened, _ = import_huggingface(pair.directory / "bf16", param_dtype="float32")
    query = pair.torch_model.model.layers[1].self_attn.q_proj.weight.detach().float().numpy()
    np.testing.assert_array_equal(np.asarray(widened["layers"]["attention"]["query"][1]).reshape(64, 64), query.T)


@pytest.mark.parametrize("shape", SHAPES)
def test_export_gives_transformers_the_same_model(tmp_path, shape):
    import transformers

    pair = make_pair(tmp_path / "torch", **SHAPES[shape])
    target = tmp_path / "exported"
    export_huggingface(target, params=pair.params, config=pair.config, max_shard_bytes=200_000)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
    assert not any(report.values()), report
    assert type(theirs) is type(pair.torch_model)
    tokens_BT = random_tokens(pair.config.vocab_size)
    np.testing.assert_array_equal(torch_logits(theirs.eval(), tokens_BT), pair.torch_logits(tokens_BT))

    again, config = import_huggingface(target, vocab_multiple=32)
    assert config == pair.config
    jax.tree.map(np.testing.assert_array_equal, again, pair.params)


def test_greedy_text(tmp_path):
    import torch
    import transformers

    pair = make_pair(tmp_path / "torch", num_key_value_heads=2)
    target = tmp_path / "exported"
    export_huggingface(
        target, params=pair.params, config=pair.config, generation={"bos_token_id": 1, "eos_token_id": 2}
    )
    theirs = transformers.LlamaForCausalLM.from_pretrained(target).eval()
    assert theirs.generation_config.eos_token_id == 2
    prompts = [[1, 17, 99, 4], [1, 200, 5], [1, 30]]
    ours = generate(
        pair.params, config=pair.config, options=ComputeOptions(), prompts=prompts, max_new_tokens=40, eos_id=2
    )
    for prompt, continuation in zip(prompts, ours, strict=True):
        text = theirs.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[0, len(prompt) :].tolist()
        assert continuation == (text[: text.index(2)] if 2 in text else text)
        assert len(set(continuation)) > 3  # not one token over and over


def packed_row(documents: list[np.ndarray], *, padding: int) -> dict[str, np.ndarray]:
    def row(parts, fill):
        return np.concatenate([*parts, np.full(padding, fill)])[None].astype(np.int32)

    return {
        "tokens": row(documents, 0),
        "segment_ids_BT": row([np.full(len(d), number) for number, d in enumerate(documents, 1)], 0),
        "positions_BT": row([np.arange(len(d)) for d in documents], 0),
    }


def test_packed_rows_equal_documents_alone(tmp_path):
    pair = make_pair(tmp_path / "torch", num_key_value_heads=2)
    rng = np.random.default_rng(1)
    documents = [rng.integers(0, 256, length) for length in (17, 1, 40, 25)]
    packed = packed_row(documents, padding=13)
    logits = np.asarray(our_logits(pair.params, packed.pop("tokens"), config=pair.config, **packed))[0]
    start = 0
    for document in documents:
        alone = pair.torch_logits(document[None])[0]
        assert_close(logits[start : start + len(document), :256], alone)
        start += len(document)


def test_packed_gradients_equal_documents_alone(tmp_path):
    """A gradient that leaks between documents would be as wrong as a logit that does."""
    pair = make_pair(tmp_path / "torch", num_key_value_heads=2)
    rng = np.random.default_rng(2)
    documents = [rng.integers(0, 256, length) for length in (20, 20)]
    packed = packed_row(documents, padding=5)
    weights_BT = packed["segment_ids_BT"] > 0

    def summed(params, tokens, weights, **inputs):
        logits = our_logits(params, tokens, config=pair.config, **inputs)[..., : pair.config.vocab_size]
        return jnp.sum(jax.nn.logsumexp(logits, axis=-1) * weights)

    gradient = jax.jit(jax.grad(summed))
    together = gradient(pair.params, packed.pop("tokens"), weights_BT, **packed)
    apart = [gradient(pair.params, document[None], 1.0) for document in documents]
    total = jax.tree.map(jnp.add, *apart)
    for ours, expected in zip(jax.tree.leaves(together), jax.tree.leaves(total), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * float(jnp.abs(expected).max()))


def test_padding_ids_have_no_probability(tmp_path):
    pair = make_pair(tmp_path / "torch", vocab_size=251)
    assert pair.config.padded_vocab_size == 256
    logits = np.asarray(our_logits(pair.params, random_tokens(251), config=pair.config))
    assert np.isneginf(logits[..., 251:]).all()
    assert np.isfinite(logits[..., :251]).all()
    assert not np.asarray(pair.params["embedding"]["table"][251:]).any()
    assert not np.asarray(pair.params["head"]["kernel"][:, 251:]).any()


def embedding_gradients(pair, segment_ids_T) -> np.ndarray:
    """Largest |d logits[t] / d embedded token[s]| for each t, s: [T, T]."""
    length = len(segment_ids_T)
    # One table row for every position, so that the gradient of the row is that of the position.
    tokens_BT = np.arange(length)[None]
    model_inputs = {"segment_ids_BT": jnp.asarray(segment_ids_T)[None]}

    def logits_of(table):
        params = {**pair.params, "embedding": {"table": table}}
        return our_logits(params, tokens_BT, config=pair.config, **model_inputs)[0, :, : pair.config.vocab_size]

    table = pair.params["embedding"]["table"]
    _, pullback = jax.vjp(logits_of, table)
    rng = np.random.default_rng(0)
    rows = []
    for t in range(length):
        cotangent = np.zeros((length, pair.config.vocab_size), np.float32)
        cotangent[t] = rng.standard_normal(pair.config.vocab_size)
        rows.append(np.abs(np.asarray(pullback(jnp.asarray(cotangent))[0])[:length]).max(axis=-1))
    return np.stack(rows)


def test_causality_by_gradients(tmp_path):
    pair = make_pair(tmp_path / "torch", num_key_value_heads=2)
    gradients = embedding_gradients(pair, np.ones(24, np.int32))
    future = np.triu(np.ones((24, 24), bool), k=1)
    assert (gradients[future] == 0).all()
    assert (gradients[~future] > 0).all()


def test_documents_do_not_see_each_other_by_gradients(tmp_path):
    pair = make_pair(tmp_path / "torch", num_key_value_heads=2)
    segments = np.asarray([1] * 7 + [2] * 1 + [3] * 10 + [0] * 6)
    gradients = embedding_gradients(pair, segments)
    seen = np.tril(segments[:, None] == segments[None, :]) & (segments[:, None] > 0)
    seen |= np.eye(24, dtype=bool)  # the residual stream of a padding position carries itself
    assert (gradients[~seen] == 0).all()
    assert (gradients[seen] > 0).all()


def test_bfloat16_compute_stays_close(tmp_path):
    """Not parity, but a wrong cast (of positions, say) shows at once: at position 400 bfloat16 counts in twos."""
    pair = make_pair(tmp_path / "torch", num_key_value_heads=2)
    tokens_BT = random_tokens(256, batch=1, length=448)
    logits = our_logits(pair.params, tokens_BT, config=pair.config, compute_dtype="bfloat16")
    theirs = pair.torch_logits(tokens_BT)
    error = np.abs(np.asarray(logits)[..., :256] - theirs).mean(axis=(0, 2)) / np.abs(theirs).mean()
    assert error[-48:].mean() < 0.05
