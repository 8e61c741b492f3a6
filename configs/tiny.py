"""The smallest real run from raw text to a bilingual model: the base of the laptop-scale experiments.

    python run.py --config configs/tiny.py

The quickstart's path with a smaller model, smaller tokenizers and one arm: English text -> tokenizer -> a small Llama
trained on English -> Arabic tokenizer -> merge -> expand -> continued pre-training on 55 % English and 45 % Arabic.
`experiments/*.py` vary it (docs/sweeps.md); all of them share its first stages.

It takes a minute and a half on two cores, and downloads 3.3 MB.
"""

from ml_collections import ConfigDict

from configs import base, bilingual

VOCABULARY = 2048  # pieces of the English, and of the Arabic tokenizer


def get_config() -> ConfigDict:
    return base.recipe(
        corpus=bilingual.corpus(code_bytes=500_000),
        base_tokenizer=bilingual.base_tokenizer(vocab_size=VOCABULARY),
        base=_base(),
        arabic_tokenizer=bilingual.arabic_tokenizer(vocab_size=VOCABULARY),
        merged_tokenizer=bilingual.merged_tokenizer(),
        expand=_expand(),
        continued=_continued(),
    )


def training(*, english: float, steps: int) -> ConfigDict:
    """A training stage on the corpus, with this share of English; also for the stages that experiments add."""
    config = base.get_config("train")
    config.model.update(dim=128, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=32, mlp_dim=384)
    config.data.update(seq_len=128, batch_size=8)
    bilingual.mix(config, english=english)
    bilingual.hold_out(config)
    config.train.steps = steps
    config.checkpoint.update(every=0, keep_last=1)
    config.metrics.tensorboard = False
    return config


def _base() -> ConfigDict:
    config = training(english=0.98, steps=800)
    config.tokenizer = "@base_tokenizer"
    config.schedule.update(name="cosine", peak_lr=3e-3, warmup_steps=40, final_fraction=0.1)
    return config


def _expand() -> ConfigDict:
    config = base.get_config("expand")
    config.init.weights = "@base"
    config.tokenizer = "@merged_tokenizer"
    config.eval.seq_len = 128
    bilingual.hold_out(config)
    return config


def _continued() -> ConfigDict:
    config = training(english=0.55, steps=300)
    config.tokenizer = "@merged_tokenizer"
    config.init.weights = "@expand/weights"
    config.schedule.update(name="constant", peak_lr=1e-3)
    config.optimizer.rewarm_steps = 5
    config.eval.every = 20
    return config
