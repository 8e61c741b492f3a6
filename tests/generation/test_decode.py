"""Decoding against brute force: a forward pass in numpy for each token, and filters written with sorted lists."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpy_llama
import pytest
from llama_pair import make_pair
from small_models import TINY

from allam_jax.errors import UserError
from allam_jax.generation import decode
from allam_jax.generation.decode import filter_logits
from allam_jax.generation.settings import GenerateSettings
from allam_jax.model.llama import init_params, param_axes
from allam_jax.model.llama_config import ComputeOptions
from allam_jax.parallel.mesh import make_mesh
from allam_jax.parallel.sharding import parameter_shardings

CONFIG = dataclasses.replace(TINY, init_std=0.4)
OPTIONS = ComputeOptions()
PROMPTS = [[1, 5, 9], [1], [1, 7, 7, 3, 2, 28, 0, 11], [1, 4, 4, 4, 4]]
SIZES = {"config": CONFIG, "options": OPTIONS}


def generate(params, *, config, options, prompts, eos_id=None, seed=0, mesh=None, **settings):
    settings = GenerateSettings(**settings)
    return decode.generate(
        params, config=config, options=options, prompts=prompts, settings=settings, eos_id=eos_id, seed=seed, mesh=mesh
    )


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: init_params(jax.random.key(3), config=CONFIG))()


def logits_after(params, tokens):
    """Logits over the real vocabulary after a sequence."""
    return numpy_llama.logits(params, tokens, config=CONFIG)[-1]


def greedy_by_hand(params, prompt, *, max_new_tokens, eos_id=None):
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        tokens.append(int(np.argmax(logits_after(params, tokens))))
        if tokens[-1] == eos_id:
            return tokens[len(prompt) : -1]
    return tokens[len(prompt) :]


def filtered_by_hand(logits, *, top_k, top_p):
    """Probabilities after top-k, then top-p."""
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    ranked = ranked[: top_k or len(ranked)]
    weights = [math.exp(logits[i] - logits[ranked[0]]) for i in ranked]
    total = sum(weights)
    kept, mass = [], 0.0
    for token, weight in zip(ranked, weights, strict=True):
        if mass / total >= top_p and kept:
            break
        kept.append(token)
        mass += weight
    result = np.zeros(len(logits))
    result[kept] = [weights[ranked.index(token)] for token in kept]
    return result / result.sum()


def test_greedy_takes_the_likeliest_token_each_time(params):
    new = generate(params, **SIZES, prompts=PROMPTS, max_new_tokens=9)
    assert new == [greedy_by_hand(params, prompt, max_new_tokens=9) for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in new}) > 1


@pytest.mark.parity
@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_greedy_is_that_of_transformers(tmp_path, tie_embeddings):
    import torch

    sizes = {"vocab_size": 211, "hidden_size": 32, "num_key_value_heads": 2, "tie_word_embeddings": tie_embeddings}
    pair = make_pair(tmp_path, std=0.3, **sizes)
    model, params, config = pair.torch_model, pair.params, pair.config
    prompts = [[1, *prompt] for prompt in np.random.default_rng(0).integers(0, 211, size=(4, 7)).tolist()]
    free = generate(params, config=config, options=OPTIONS, prompts=prompts, max_new_tokens=40)
    eos_id = free[0][10]  # which ends some rows early
    ours = generate(params, config=config, options=OPTIONS, prompts=prompts, max_new_tokens=40, eos_id=eos_id)
    for prompt, new in zip(prompts, ours, strict=True):
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=40,
            eos_token_id=eos_id,
            pad_token_id=0,
        )
        theirs = output[0, len(prompt) :].tolist()
        assert [*new, *([eos_id] if len(new) < 40 else [])] == theirs
    assert min(map(len, ours)) < 40


def test_eos_ends_its_row_only_and_is_not_returned(params):
    free = generate(params, **SIZES, prompts=PROMPTS, max_new_tokens=9)
    eos_id = free[0][4]
    stopped = generate(params, **SIZES, prompts=PROMPTS, max_new_tokens=9, eos_id=eos_id)
    expected = [row[: row.index(eos_id)] if eos_id in row else row for row in free]
    assert stopped == expected
    assert len(stopped[0]) <= 4
    assert stopped == [greedy_by_hand(params, p, max_new_tokens=9, eos_id=eos_id) for p in PROMPTS]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_k": 12, "top_p": 0.95, "seed": 5}])
def test_a_prompt_gets_the_same_alone_and_among_others(params, sampling):
    together = generate(params, **SIZES, prompts=PROMPTS, max_new_tokens=9, **sampling)
    alone = [generate(params, **SIZES, prompts=[p], max_new_tokens=9, **sampling)[0] for p in PROMPTS]
    backwards = generate(params, **SIZES, prompts=PROMPTS[::-1], max_new_tokens=9, **sampling)[::-1]
    assert together == alone == backwards


def test_a_longer_continuation_starts_with_the_shorter(params):
    sampling = {"temperature": 1.0, "seed": 1}
    short = generate(params, **SIZES, prompts=PROMPTS, max_new_tokens=4, **sampling)
    long = generate(params, **SIZES, prompts=PROMPTS, max_new_tokens=70, **sampling)
    assert [row[:4] for row in long] == short
    assert all(len(row) == 70 for row in long)


def test_the_seed_decides_the_samples(params):
    first, again, other = (
        generate(params, **SIZES, prompts=PROMPTS, max_new_tokens=20, temperature=1.0, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_equal_prompts_get_different_samples(params):
    new = generate(params, **SIZES, prompts=[[1, 2]] * 6, max_new_tokens=20, temperature=1.0)
    assert len({tuple(row) for row in new}) == 6


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0},
        {"temperature": 0.5, "top_k": 6},
        {"temperature": 1.5, "top_p": 0.7},
        {"temperature": 2.0, "top_k": 9, "top_p": 0.8},
    ],
)
def test_samples_follow_the_filtered_softmax(params, sampling):
    draws, prompt = 4000, [1, 5, 9]
    new = generate(params, **SIZES, prompts=[prompt] * draws, max_new_tokens=1, seed=11, **sampling)
    counts = np.bincount([row[0] for row in new], minlength=CONFIG.vocab_size)
    expected = draws * filtered_by_hand(
        logits_after(params, prompt) / sampling["temperature"],
        top_k=sampling.get("top_k", 0),
        top_p=sampling.get("top_p", 1.0),
    )
    assert np.all(counts[expected == 0] == 0)
    rare = expected < 5  # pooled, as the chi-square approximation asks for
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    statistic = np.sum((observed - wanted) ** 2 / wanted)
    freedom = len(wanted) - 1
    assert freedom >= 2
    # Wilson and Hilferty's normal approximation; 4 sigma is one failure in 30,000 seeds.
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert z < 4


@pytest.mark.parametrize("top_k", [0, 1, 5, 40, 100])
@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.9, 1.0])
def test_filter_equals_brute_force(top_k, top_p):
    rng = np.random.default_rng(7)
    logits_BV = np.concatenate(
        [
            rng.normal(size=(20, 40)) * 3,
            np.zeros((1, 40)),  # ties: the lower id counts as likelier
            rng.integers(0, 3, size=(5, 40)),
            np.where(rng.random((5, 40)) < 0.5, -np.inf, rng.normal(size=(5, 40))),  # masked ids
        ]
    ).astype(np.float32)
    filtered_BV = filter_logits(jnp.asarray(logits_BV), top_k=top_k, top_p=top_p)
    actual = np.asarray(jax.nn.softmax(filtered_BV, axis=-1))
    expected = np.stack([filtered_by_hand(row.astype(np.float64), top_k=top_k, top_p=top_p) for row in logits_BV])
    np.testing.assert_array_equal(actual > 0, expected > 0)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_a_tail_too_small_for_float32_survives_top_p_of_one():
    logits_BV = jnp.asarray([[0.0] * 3 + [-20.0] * 30])
    assert np.isfinite(np.asarray(filter_logits(logits_BV, top_p=1.0))).all()


@pytest.mark.parametrize("temperature", [0.0, 1e3])
def test_padding_rows_of_the_head_are_never_chosen(params, temperature):
    assert CONFIG.padded_vocab_size > CONFIG.vocab_size
    kernel = np.array(params["head"]["kernel"])
    kernel[:, CONFIG.vocab_size :] = 10.0 * np.sign(kernel[:, :1])  # as if they had been trained
    spoiled = params | {"head": {"kernel": jnp.asarray(kernel)}}
    new = generate(spoiled, **SIZES, prompts=PROMPTS * 4, max_new_tokens=20, temperature=temperature)
    assert max(max(row) for row in new) < CONFIG.vocab_size


def test_nothing_to_do(params):
    assert generate(params, **SIZES, prompts=[], max_new_tokens=5) == []


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}])
def test_sharded_parameters_give_the_same_text(params, sampling):
    expected = generate(params, **SIZES, prompts=PROMPTS, max_new_tokens=9, **sampling)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    shardings = parameter_shardings(param_axes(CONFIG), abstract_params=params, mesh=mesh)
    sharded = jax.device_put(params, shardings)
    assert generate(sharded, **SIZES, prompts=PROMPTS, max_new_tokens=9, mesh=mesh, **sampling) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": [[1], []]}, "prompt 2 has no tokens"),
        ({"prompts": [[1, 29]]}, "vocabulary has 29"),
        ({"prompts": [[-1]]}, "vocabulary has 29"),
        ({"prompts": [[1] * 120]}, "context of 128"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"top_p": 1.1}, "top_p = 1.1"),
    ],
)
def test_bad_arguments_are_named(params, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        generate(params, **SIZES, **({"prompts": [[1]], "max_new_tokens": 9} | arguments))
    assert "\n" not in str(error.value)
