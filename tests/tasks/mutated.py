"""Random damage to configs: `--config tests/tasks/mutated.py:ROOT,TASK,SEED` is a small config of TASK with some values
replaced, all by the seed; none with the seed `none`. ROOT holds what `mutation_runs.prepare` has written.
"""

import math
import random
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import base
from tests.tasks import tiny

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
    """A config of seconds for any task."""
    if task in ("train", "tokenize", "mixture", "plan"):
        config = tiny.get_config(root)
        config.task = task
        config.train.steps = 3
        config.schedule.update(decay_start=2, decay_steps=1, warmup_steps=1)
        config.plan.compile = False
        return config
    config = base.get_config(task)
    texts = {language: base.texts(path=f"{root}/corpus/{language}") for language in ("en", "ar")}
    if "tokenizer" in config:
        config.tokenizer = f"{root}/tokenizer"
    if "init" in config:
        config.init.weights = f"{root}/trained"
    if "eval" in config:
        config.eval.sources.en = base.mixture(path=f"{root}/corpus/en", split="validation")
        config.eval.max_bytes = 2000
    match task:
        case "corpus":
            for language in ("en", "ar"):
                config.corpus.sources[language] = base.documents(
                    path=f"{root}/text/{language}.txt", language=language, rules="some", redact=("phone",)
                )
            config.corpus.rules.some = ConfigDict({"short": base.rule("words", "<", 3)})
            config.corpus.dedup.minhash = True
        case "plant":
            config.planted.sources.ar = ("quran_ar",)
        case "check_planted":
            config.planted.update(crawl=f"{root}/nothing", corpus=f"{root}/nothing")
        case "quality_classifier":
            config.quality.update(epochs=1, dim=4, buckets=64)
            config.quality.positives.en, config.quality.negatives.ar = texts["en"], texts["ar"]
        case "tokenizer":
            config.tokenizer_training.vocab_size = 384
            config.tokenizer_training.sources.update(texts)
        case "merge_tokenizer":
            config.tokenizer_merge.update(base=f"{root}/tokenizer", target=f"{root}/target")
            config.tokenizer_merge.sources.update(texts)
        case "expand":
            config.tokenizer = f"{root}/merged"
        case "generate":
            config.generate.update(prompts=("ab cd",), max_new_tokens=3)
        case "merge":
            config.merge.models.a = base.merge_input(path=f"{root}/trained", steps=(2, 3))
    return config


def get_config(argument: str) -> ConfigDict:
    """See the module."""
    root, task, seed = argument.rsplit(",", 2)
    config = config_of(task, root)
    for section, key, value in mutations(config, random.Random(f"{task} {seed}")) if seed != "none" else ():
        with section.unlocked():
            section[key] = value
    return config


def mutations(config: ConfigDict, rng: random.Random) -> Iterator[tuple[ConfigDict, str, Any]]:
    """One to three places, each with a new value."""
    places = list(_places(config))
    for section, key in rng.sample(places, rng.choice((1, 1, 1, 2, 3))):
        yield section, key, _new_value(section[key], rng)


def _places(config: ConfigDict) -> Iterator[tuple[ConfigDict, str]]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _places(value)
        elif (key, value) != ("task", config.get("task")):
            yield config, key


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
