"""What `config.json` says: model types, windows, RoPE in both spellings, and what is refused in one line."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from allam_jax.errors import UserError
from allam_jax.model.llama_config import FAMILIES, PRESETS, LlamaConfig
from allam_jax.model.rope import rope_magnitude
from allam_jax.weights.huggingface_config import config_from_huggingface, config_to_huggingface

LLAMA_31 = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}


def read(values) -> LlamaConfig:
    return config_from_huggingface(values, file=Path("dir/config.json"), vocab_multiple=128)


def test_both_spellings_of_rope():
    config = read(LLAMA_31)
    assert (config.rope_theta, config.rope_scaling_factor, config.rope_original_max_position) == (5e5, 8.0, 8192)
    new = {key: value for key, value in LLAMA_31.items() if key not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = LLAMA_31["rope_scaling"] | {"rope_theta": 5e5}
    assert read(new) == config
    plain = {key: value for key, value in LLAMA_31.items() if key != "rope_scaling"}
    assert read(plain).rope_scaling_factor == 1.0
    assert read(plain | {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}).rope_theta == 7.0
    assert read(plain | {"rope_scaling": None}).rope_theta == 5e5


def test_defaults_of_old_files():
    config = read({key: LLAMA_31[key] for key in list(LLAMA_31)[:6]})
    assert (config.num_kv_heads, config.head_dim, config.tie_embeddings) == (32, 128, False)
    assert (config.norm_eps, config.rope_theta) == (1e-6, 10_000.0)


SCALINGS: dict[str, dict] = {
    "linear": {"rope_scaling": "linear", "rope_scaling_factor": 2.5},
    "dynamic": {"rope_scaling": "dynamic", "rope_scaling_factor": 1.0},
    "llama3": {"rope_scaling_factor": 8.0, "rope_low_freq_factor": 1.5},
    "yarn": {"rope_scaling": "yarn", "rope_scaling_factor": 4.0, "rope_beta_fast": 16.0, "rope_truncate": False},
    "yarn_factor": {"rope_scaling": "yarn", "rope_scaling_factor": 4.0, "rope_attention_factor": 0.9},
}
CONFIGS = PRESETS | {
    name: dataclasses.replace(PRESETS["llama3_8b"], model_type=model_type, **scaling)
    for (name, scaling), model_type in zip(SCALINGS.items(), ("mistral", *list(FAMILIES)[:3], "qwen3"), strict=True)
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_survive_the_config_file(name):
    config = dataclasses.replace(CONFIGS[name], vocab_multiple=128)
    values = json.loads(json.dumps(config_to_huggingface(config, dtype="float32", token_ids={})))
    assert read(values) == config


def test_windows_that_cover_the_context_are_none():
    for change in (
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "mistral", "sliding_window": 131_072},
        {"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False},
        {"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True, "max_window_layers": 32},
        {"model_type": "qwen3", "sliding_window": None, "layer_types": ["full_attention"] * 32, "head_dim": 128},
    ):
        assert read(LLAMA_31 | change).model_type == change["model_type"]


def test_yarn_as_models_state_it():
    def yarn(**values):
        plain = {key: value for key, value in LLAMA_31.items() if key != "rope_scaling"}
        rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768} | values
        return read(plain | {"rope_scaling": rope, "max_position_embeddings": 131_072})

    qwen = yarn()
    assert (qwen.rope_scaling, qwen.rope_scaling_factor, qwen.rope_original_max_position) == ("yarn", 4.0, 32_768)
    assert (qwen.rope_beta_fast, qwen.rope_beta_slow, qwen.rope_truncate) == (32, 1, True)
    assert rope_magnitude(qwen) == pytest.approx(1 + 0.1 * math.log(4), rel=1e-15)
    assert yarn(factor=None) == qwen  # the longest context over the original one
    assert rope_magnitude(yarn(attention_factor=1.25)) == 1.25
    assert [yarn(truncate=value).rope_truncate for value in (True, False, None, 0)] == [True, False, False, False]
    both = yarn(mscale=2.0, mscale_all_dim=1.0)
    expected = (1 + 0.2 * math.log(4)) / (1 + 0.1 * math.log(4))
    assert rope_magnitude(both) == pytest.approx(expected, rel=1e-15)
    assert yarn(factor=1.0).rope_scaling == "llama3"  # which with a factor of 1 is plain RoPE
    assert rope_magnitude(yarn(mscale=2.0)) == rope_magnitude(qwen)  # as transformers, which needs both


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, "model_type = 'mixtral' has a mixture of experts; llama, .* can be imported"),
        ({"model_type": "nameless"}, "model_type = 'nameless' is another network"),
        ({"model_type": ["llama"]}, "is another network"),
        ({"model_type": None}, "model_type = 'None' is not stated; llama"),
        ({"model_type": "mistral"}, "sliding_window = 4096: .*set max_position_embeddings"),  # its default
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64}, "sliding_window = 64"),
        ({"model_type": "qwen3", "layer_types": ["linear_attention"]}, "layer_types has linear_attention"),
        ({"model_type": "seed_oss", "attention_out_bias": True}, "attention_out_bias"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        (
            {"quantization_config": {"bits": 4, "quant_method": "gptq"}},
            r"are quantised \(gptq\).*give the .*unquantised",
        ),
        (
            {"rope_scaling": {"type": "longrope", "factor": 2.0}},
            "rope_type = 'longrope'; supported are default, linear",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor = None; expected a number"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 0.5}}, "rope_beta_slow"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 0}},
            "attention_factor = 0; expected",
        ),
        ({"rope_scaling": LLAMA_31["rope_scaling"] | {"original_max_position_embeddings": 32.5}}, "a whole number"),
        ({"rope_theta": 10**400, "rope_scaling": None}, "rope_theta is too large"),
        ({"num_hidden_layers": 10**7}, "num_layers = 10000000"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is too large"),
        ({"rope_parameters": 7, "rope_scaling": None}, "rope_parameters = 7"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_size": None}, "hidden_size = None"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers = '32'"),
        ({"vocab_size": True}, "vocab_size = True"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1"),
        ({"num_key_value_heads": 5}, "num_heads"),
    ],
)
def test_unsupported_configurations(change, message):
    with pytest.raises(UserError, match=message) as error:
        read(LLAMA_31 | change)
    assert "\n" not in str(error.value)
