"""A recipe with every task, for storms: `--config tests/tasks/all_tasks.py:ROOT`.

The stages are the small configs of mutated.py, and read each other. ROOT holds what conftest.py has written.
"""

from ml_collections import ConfigDict

from configs import base
from tests.tasks.mutated import config_of

TASKS = {
    "corpus": "corpus",
    "planted": "plant",
    "cleaned": "corpus",
    "checked": "check_planted",
    "quality": "quality_classifier",
    "tokenizer": "tokenizer",
    "target": "tokenizer",
    "merged": "merge_tokenizer",
    "extended": "extend_tokenizer",
    "tokens": "tokenize",
    "mixture": "mixture",
    "planned": "plan",
    "trained": "train",
    "evaluated": "evaluate",
    "expanded": "expand",
    "continued": "train",
    "tuned": "sft",
    "preferred": "dpo",
    "sampled": "preferences",
    "weeded": "sft_quality",
    "damaged": "damage",
    "rewritten": "rewrite",
    "compared": "compare_corpora",
    "pooled": "seed",
    "reviewed": "review",
    "paired": "seed_pairs",
    "asked": "harness",
    "touched": "contamination",
    "suites": "suite_report",
    "generated": "generate",
    "averaged": "merge",
    "exported": "export",
    "report": "expansion_report",
    "verified": "verify",
}


def get_config(root: str) -> ConfigDict:
    """See the module."""
    stages = {name: config_of(task, root) for name, task in TASKS.items()}
    for source in stages["corpus"].corpus.sources.values():
        source.validation_share = 0.05
    cleaned = stages["cleaned"].corpus.sources
    del cleaned.en, cleaned.ar
    cleaned.ar = base.documents(path="@planted/ar", language="ar")
    stages["target"].tokenizer_training.script = "arabic"
    stages["target"].tokenizer_training.sources.en.max_bytes = 1
    for name in ("trained", "continued"):
        stages[name].checkpoint.update(every=1, keep_last=3)
    stages["continued"].tokenizer = "@merged"
    stages["continued"].init.weights = "@expanded/weights"
    for config in stages.values():
        _refer(config, root=root)
    return base.recipe(**stages)


def _refer(config: ConfigDict, *, root: str) -> None:
    """Puts `@STAGE` in place of `ROOT/STAGE` and `ROOT/stages/STAGE` in all strings."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            _refer(value, root=root)
        elif isinstance(value, str) and value.startswith(f"{root}/"):
            rest = value.removeprefix(f"{root}/").removeprefix("stages/")
            if rest.partition("/")[0] in TASKS:
                config[key] = f"@{rest}"
