"""Our parameters inside transformers' LlamaForCausalLM, mapped by hand (not by the exporter)."""

import numpy as np


def torch_llama(params, *, config):
    """A float32 model in evaluation mode on CPU. Plain rotary positions only."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    assert config.rope_scaling_factor == 1.0
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.mlp_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm_eps,
            rope_theta=config.rope_theta,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=config.max_position,
            tie_word_embeddings=config.tie_embeddings,
            attn_implementation="eager",
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )
    D = config.dim
    state = {
        "model.embed_tokens.weight": params["embedding"]["table"][: config.vocab_size],
        "model.norm.weight": params["final_norm"]["scale"],
    }
    if not config.tie_embeddings:
        state["lm_head.weight"] = params["head"]["kernel"][:, : config.vocab_size].T
    layers = params["layers"]
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        for name, letter in (("query", "q"), ("key", "k"), ("value", "v")):
            state[f"{prefix}self_attn.{letter}_proj.weight"] = layers["attention"][name][index].reshape(D, -1).T
        state[f"{prefix}self_attn.o_proj.weight"] = layers["attention"]["output"][index].reshape(-1, D).T
        for name in ("gate", "up", "down"):
            state[f"{prefix}mlp.{name}_proj.weight"] = layers["mlp"][name][index].T
        state[f"{prefix}input_layernorm.weight"] = layers["attention_norm"]["scale"][index]
        state[f"{prefix}post_attention_layernorm.weight"] = layers["mlp_norm"]["scale"][index]
    tensors = {name: torch.tensor(np.array(value, np.float32)) for name, value in state.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if config.tie_embeddings else set())
    model.tie_weights()
    return model.eval()
