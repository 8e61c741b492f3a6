"""What the experiments on fine-tuning and preferences share: the recipe, the stages that they vary, and measures.

    python run.py --sweep experiments/NAME.py             # laptop: configs/posttrain.py:tiny
    python run.py --sweep experiments/NAME.py:smollm2     # the same on configs/posttrain.py, a model of 135 million

All of them begin with the recipe's bilingual model after mid-training, `instructed`, and with its checked instruction
data; both are made once. Then come `tuned` (SFT) and `aligned` (DPO), and before them what arms may need: `damaged` and
`part` (rows with planted faults, or fewer rows), `checked` (what task sft_quality leaves of `damaged`), `other` (a
model whose answers are off-policy), `damaged_pairs`. An arm that changes nothing is the same run in every experiment.

Seeds are those of what comes behind `instructed`: the order of the data, which rows are damaged, and sampling. So a
verdict is one about this base, and the held-out prompts are the same for all seeds.
"""

import dataclasses

from ml_collections import ConfigDict

from allam_jax.ablation.answered import right, wins
from allam_jax.ablation.languages import NATS, final_bits
from allam_jax.ablation.measures import Measure, metric, result
from allam_jax.ablation.vary import Choices, seeds
from allam_jax.errors import UserError
from configs import base, posttrain
from experiments.settings import ARABIC, ENGLISH, REAL

LANGUAGES = {"en": ENGLISH, "ar": ARABIC}
# Prompts for pairs, and all held-out prompts.
_ARGUMENTS = "preferences=640&prompts=600&epochs=2"
_SEEDED = ("damaged", "part", "tuned", "other", "sampled", "damaged_pairs", "aligned")
_OTHER_EPOCHS = 1.0  # of the model whose answers are off-policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """The config file of an experiment, the learning rate of its SFT, and its seeds."""

    config: str
    sft_lr: float
    seeds: Choices


def setting(scale: str) -> Setting:
    """The setting of a scale, laptop or smollm2; UserError for another one."""
    variants = {"laptop": ("tiny", 3), REAL: ("full", 2)}
    if scale not in variants:
        raise UserError(f"{scale}: expected {' or '.join(variants)}")
    variant, count = variants[scale]
    keys = tuple(f"stage.{stage}.seed" for stage in _SEEDED)
    return Setting(
        config=f"configs/posttrain.py:{variant}?{_ARGUMENTS}",
        sft_lr=posttrain.INPUTS[variant].sft_lr,
        seeds=seeds(*range(count), keys=keys),
    )


# ---- the stages ----


def stages(recipe: ConfigDict) -> dict[str, ConfigDict]:
    """The recipe's stages from SFT on, with those that arms may put before them."""
    return _tuning(recipe) | _preferring(recipe)


def from_stage(stage: str, folder: str = "") -> dict[str, str]:
    """Overrides with which `tuned` reads the conversations of another stage."""
    return {f"stage.tuned.conversations.sources.{name}.path": f"@{stage}/{folder}{name}.jsonl" for name in LANGUAGES}


def _tuning(recipe: ConfigDict) -> dict[str, ConfigDict]:
    damaged, part = (base.get_config("damage_chats") for _ in range(2))
    checked = _copy(recipe, "quality")
    for name in LANGUAGES:
        clean = base.conversations(path=f"@quality/clean/{name}.jsonl", language=name)
        damaged.damage_chats.sources[name], part.damage_chats.sources[name] = clean, clean.copy_and_resolve_references()
        checked.chat_quality.sources[name].path = f"@damaged/{name}.jsonl"
    tuned = _copy(recipe, "sft")
    measured = _measuring(recipe, "tuned")
    return {"damaged": damaged, "checked": checked, "part": part, "tuned": tuned} | measured


def _preferring(recipe: ConfigDict) -> dict[str, ConfigDict]:
    other = _copy(recipe, "sft")
    other.conversations.epochs = _OTHER_EPOCHS
    sampled = _copy(recipe, "preferences")
    sampled.init.weights = "@tuned"
    # Pairs whose sides do not fit into a row are left out; of so many, one percent are ten that do.
    sampled.preferences.update(samples=2 if len(sampled.preferences.temperatures) == 1 else 1, pairs_of_prompt=4)
    pairs = _copy(recipe, "pair_quality")
    pairs.chat_quality.sources.pairs.path = "@sampled/pairs.jsonl"
    damaged = base.get_config("damage_chats")
    damaged.damage_chats.kinds = ("flipped",)
    damaged.damage_chats.sources.pairs = base.conversations(path="@pairs/clean/pairs.jsonl")
    aligned = _copy(recipe, "dpo")
    aligned.init.weights = "@tuned"
    aligned.conversations.sources.pairs.path = "@pairs/clean/pairs.jsonl"
    aligned.conversations.held_out_share = 0.05
    found = {"other": other, "sampled": sampled, "pairs": pairs, "damaged_pairs": damaged, "aligned": aligned}
    return found | _measuring(recipe, "aligned")


def _measuring(recipe: ConfigDict, model: str) -> dict[str, ConfigDict]:
    """Losses of held-out replies and answers to held-out prompts."""
    found = {f"{kind}_{model}": _copy(recipe, f"{kind}_sft") for kind in ("losses", "answers")}
    for config in found.values():
        config.init.weights = f"@{model}"
    return found


def _copy(recipe: ConfigDict, stage: str) -> ConfigDict:
    return recipe.stage[stage].copy_and_resolve_references()


# ---- the measures ----


def measures(model: str) -> tuple[Measure, ...]:
    """Of `tuned` or `aligned`: `exact`, `replies_LANGUAGE` and `final_LANGUAGE` (bits per byte of held-out text)."""
    losses = tuple(
        result(f"replies_{key}", path=f"{key}/loss", stage=f"losses_{model}", title=f"{name} replies", unit=NATS)
        for key, name in LANGUAGES.items()
    )
    return (right("exact", stage=f"answers_{model}"), *losses, *final_bits(model, LANGUAGES))


def preference_measures() -> tuple[Measure, ...]:
    """Of `aligned`, also: `wins` over `tuned`, and `kl` and `accuracy` of held-out pairs."""
    pairs = "eval/preferences/held_out"
    return (
        *measures("aligned"),
        wins("wins", stage="answers_aligned", over="answers_tuned", title="Win rate against SFT"),
        metric("kl", key=f"{pairs}/kl", stage="aligned", title="KL to the reference", unit=NATS),
        metric("accuracy", key=f"{pairs}/accuracy", stage="aligned", title="Held-out pairs in order"),
    )


MEASURED = ("exact", *(f"replies_{key}" for key in LANGUAGES), *(f"final_{key}" for key in LANGUAGES))
OF_PAIRS = ("exact", "wins", "kl", "accuracy")
