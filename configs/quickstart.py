"""An English Llama becomes an Arabic-English one, on real text, on a laptop: the paper's central experiment, small.

    python run.py --config configs/quickstart.py

English text -> base tokenizer -> a tiny Llama trained on English -> Arabic tokenizer -> merge -> expand -> continued
pre-training on 55 % English and 45 % Arabic, once with new embeddings averaged from the base's pieces (subword_mean)
and once drawn at random -> evaluate -> export -> report.md with figures. ALLaM paper, sections 2.1 and 2.2.

It takes 4 to 8 minutes and 1.5 GB on two cores, and downloads 3.3 MB (hadith in English, a modern Arabic commentary).
docs/quickstart.md says what to expect. `--config configs/quickstart.py:smoke` runs every stage with a few steps, only
to show that it runs.
"""

from ml_collections import ConfigDict

from allam_jax.errors import UserError
from configs import base, bilingual

METHODS = ("subword_mean", "random")
VOCABULARY = 4096  # pieces of the English, and of the Arabic tokenizer


def get_config(arg: str = "full") -> ConfigDict:
    """`arg`: full, or smoke for a run of a few steps."""
    if arg not in ("full", "smoke"):
        raise UserError(f"--config configs/quickstart.py:{arg}: expected full or smoke")
    smoke = arg == "smoke"
    stages = {
        "corpus": bilingual.corpus(code_bytes=2_000_000),
        "base_tokenizer": bilingual.base_tokenizer(vocab_size=VOCABULARY),
        "base": _base(steps=12 if smoke else 300),
        "arabic_tokenizer": bilingual.arabic_tokenizer(vocab_size=VOCABULARY),
        "merged_tokenizer": bilingual.merged_tokenizer(),
    }
    for method in METHODS:
        stages[f"expand_{method}"] = _expand(method)
        stages[f"continued_{method}"] = _continued(method, steps=10 if smoke else 200)
    stages["export"] = _export()
    stages["report"] = _report()
    return base.recipe(**stages)


def _training(*, english: float, tokenizer: str, steps: int) -> ConfigDict:
    config = base.get_config("train")
    config.tokenizer = tokenizer
    bilingual.mix(config, english=english)
    bilingual.hold_out(config)
    config.train.steps = steps
    return config


def _base(*, steps: int) -> ConfigDict:
    config = _training(english=0.98, tokenizer="@base_tokenizer", steps=steps)
    config.schedule.update(name="cosine", peak_lr=1.5e-3, warmup_steps=steps // 15, final_fraction=0.1)
    return config


def _expand(method: str) -> ConfigDict:
    config = base.get_config("expand")
    config.init.weights = "@base"
    config.tokenizer = "@merged_tokenizer"
    config.expand.method = method
    bilingual.hold_out(config)
    return config


def _continued(method: str, *, steps: int) -> ConfigDict:
    config = _training(english=0.55, tokenizer="@merged_tokenizer", steps=steps)
    config.init.weights = f"@expand_{method}/weights"
    config.schedule.update(name="constant", peak_lr=5e-4)
    config.optimizer.rewarm_steps = 5
    config.eval.every = max(steps // 20, 1)
    return config


def _export() -> ConfigDict:
    config = base.get_config("export")
    config.init.weights = "@continued_subword_mean"
    return config


def _report() -> ConfigDict:
    config = base.get_config("expansion_report")
    config.report.base = "@base"
    config.report.tokenizers = "@merged_tokenizer"
    config.report.export = "@export"
    for method in METHODS:
        config.report.arms[method] = base.arm(expand=f"@expand_{method}", continued=f"@continued_{method}")
    return config
