"""What the paper-scale ALLaM configs share: the batch, the mixture of languages, mixed precision, a cluster to plan on.

From the paper (2407.15390): mixture (Table 1), no dropout, bfloat16 mixed precision, constant 3e-5 for everything that
continues a base model, 128 to 1,024 A100 80GB (appendix G). The batch of 4 million tokens is Llama-2's (2307.09288);
the paper does not give its own.

Sources are dataset directories that the corpus task writes; `--config.data.sources.english.path=DIR` says where.
"""

from ml_collections import ConfigDict

from allam_jax.model.llama_config import LlamaConfig
from configs import base

BATCH, SEQ_LEN = 1024, 4096  # sequences, tokens: 4.2 million tokens a step
VOCABULARY = 64_000  # ids of a merged English and Arabic tokenizer; the tokenizer itself or the weights decide
MIXED = {"english": 0.55, "arabic": 0.225, "translated": 0.225}


def steps_for(tokens: float) -> int:
    """Steps of a token budget."""
    return round(tokens / (BATCH * SEQ_LEN))


def pretraining(model: LlamaConfig, *, tokens: float, sources: dict[str, float]) -> ConfigDict:
    """A run of `tokens` over sources with these weights; learning rate, start and layout are the caller's."""
    config = base.get_config("train")
    config.model = base.model(model)
    config.model.update(vocab_size=VOCABULARY, max_position=SEQ_LEN)
    config.compute.update(compute_dtype="bfloat16", remat="dots")
    config.data.update(seq_len=SEQ_LEN, batch_size=BATCH)
    for name, weight in sources.items():
        config.data.sources[name] = base.mixture(path=f"corpus/{name}", weight=weight)
        config.eval.sources[name] = base.mixture(path=f"corpus/{name}", split="validation")
    config.train.update(steps=steps_for(tokens), loss_chunks=1, log_every=10)
    config.eval.update(every=2000, max_bytes=2_000_000, batch_size=64)
    config.checkpoint.update(every=1000, keep_last=3, keep_every=20_000)
    config.plan.gpu = "a100"
    return config


def continued(model: LlamaConfig, *, tokens: float, weights: str) -> ConfigDict:
    """Continues a base model with an expanded vocabulary at the constant learning rate that the base ended with."""
    config = pretraining(model, tokens=tokens, sources=MIXED)
    config.init.weights = weights
    config.schedule.update(name="constant", peak_lr=3e-5)
    config.optimizer.rewarm_steps = 200  # open weights come without moments (paper, section 2.2)
    return config
