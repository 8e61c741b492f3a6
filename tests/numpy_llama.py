"""A Llama in numpy and float64, one document at a time, written from the equations: a truth that shares no code."""

import numpy as np


def logits(params, tokens, *, config):
    """[T, vocab_size] logits of one document. Plain rotary positions only."""
    assert config.rope_scaling_factor == 1.0
    table = np.asarray(params["embedding"]["table"], np.float64)
    x = table[np.asarray(tokens)]
    layers = params["layers"]
    for index in range(config.num_layers):

        def weight(*path, index=index):
            node = layers
            for key in path:
                node = node[key]
            return np.asarray(node[index], np.float64)

        h = norm(x, weight("attention_norm", "scale"), config.norm_eps)
        q, k, v = (np.tensordot(h, weight("attention", name), 1) for name in ("query", "key", "value"))
        q, k = rotate(q, config.rope_theta), rotate(k, config.rope_theta)
        mixed = np.empty_like(q)
        for head in range(config.num_heads):
            group = head // (config.num_heads // config.num_kv_heads)
            scores = q[:, head] @ k[:, group].T / np.sqrt(config.head_dim)
            scores[np.triu_indices(len(tokens), 1)] = -np.inf
            mixed[:, head] = np.exp(log_softmax(scores)) @ v[:, group]
        x = x + np.tensordot(mixed, weight("attention", "output"), 2)
        h = norm(x, weight("mlp_norm", "scale"), config.norm_eps)
        gate = h @ weight("mlp", "gate")
        x = x + (gate / (1 + np.exp(-gate)) * (h @ weight("mlp", "up"))) @ weight("mlp", "down")
    x = norm(x, np.asarray(params["final_norm"]["scale"], np.float64), config.norm_eps)
    head = table.T if config.tie_embeddings else np.asarray(params["head"]["kernel"], np.float64)
    return (x @ head)[:, : config.vocab_size]


def nats(params, tokens, *, config, window):
    """Negative log-likelihood of all tokens but the first, read in windows that begin behind the one before."""
    total = 0.0
    for start in range(0, len(tokens) - 1, window):
        some = tokens[start : start + window + 1]
        found_TV = log_softmax(logits(params, some[:-1], config=config))
        total -= found_TV[np.arange(len(some) - 1), some[1:]].sum()
    return total


def norm(x, scale, eps):
    """Root-mean-square norm."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * scale


def rotate(x, theta):
    """[T, N, H]: pair (i, i + H/2), as a complex number, turns by t * theta^(-2i/H)."""
    half = x.shape[-1] // 2
    turns = np.outer(np.arange(len(x)), theta ** (-np.arange(half) / half))
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * turns)[:, None]
    return np.concatenate([turned.real, turned.imag], axis=-1)


def log_softmax(scores):
    """Over the last axis."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
