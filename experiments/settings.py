"""Where the experiments on continued pre-training run: on a laptop with configs/tiny.py, or at the paper's scale.

    python run.py --sweep experiments/NAME.py             # laptop
    python run.py --sweep experiments/NAME.py:paper       # the same experiment on configs/allam_7b.py

At the paper's scale the expanded base and the corpus are the user's: give their paths with `--set`, as in
`--set stage.train.init.weights=DIR` and `--set stage.train.data.sources.arabic.path=DIR`.
"""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from allam_jax.ablation.vary import Choices, always, seeds
from allam_jax.errors import UserError
from configs import allam, base, tiny

ENGLISH, ARABIC, TRANSLATED, CODE = "English", "Arabic", "Arabic, translated", "Code"
SCALES = ("laptop", "paper")
LAPTOP_STEPS = 300  # of continued pre-training, as in configs/tiny.py
_PAPER_EVALUATIONS = 20  # of a run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What an experiment needs to know of the config that it varies.

    Attributes:
        scale: laptop or paper.
        config: the file.
        stage: the stage that continues pre-training.
        languages: key in `eval.sources` -> name, English first, then Arabic.
        base_lr: the learning rate that the base ended with.
        seeds: of everything that is random.
    """

    scale: str
    config: str
    stage: str
    languages: Mapping[str, str]
    base_lr: float
    seeds: Choices

    def key(self, rest: str) -> str:
        """The dotted key of `rest` in the stage's config."""
        return f"stage.{self.stage}.{rest}"

    def steps(self, tokens: float) -> int:
        """Steps of a run: those of the laptop, or at the paper's scale those of a budget of tokens."""
        return LAPTOP_STEPS if self.scale == "laptop" else allam.steps_for(tokens)

    def budget(self, tokens: float) -> Choices:
        """For the grid: at the paper's scale, runs of so many tokens; the laptop's length is the config's."""
        if self.scale == "laptop":
            return always({})
        steps = self.steps(tokens)
        every = max(steps // _PAPER_EVALUATIONS, 1)
        return always({self.key("train.steps"): steps, self.key("eval.every"): every})


def setting(scale: str, *, stage: str = "", config: str = "configs/allam_7b.py") -> Setting:
    """The setting of a scale. UserError unless it is laptop or paper.

    Args:
        scale: as the user gives it.
        stage: on the laptop, the stage that the experiment adds and varies; empty: `continued`, of configs/tiny.py.
        config: at the paper's scale, the file; its stage is called train.
    """
    if scale not in SCALES:
        raise UserError(f"{scale}: expected {' or '.join(SCALES)}")
    if scale == "laptop":
        return Setting(
            scale=scale,
            config="configs/tiny.py",
            stage=stage or "continued",
            languages={"en": ENGLISH, "ar": ARABIC},
            base_lr=3e-4,
            seeds=every_seed(stage or "continued"),
        )
    return Setting(
        scale=scale,
        config=config,
        stage="train",
        languages={"english": ENGLISH, "arabic": ARABIC, "translated": TRANSLATED},
        base_lr=3e-5,
        seeds=seeds(0, 1, keys=("stage.train.seed",)),
    )


def every_seed(*stages: str) -> Choices:
    """Three seeds of the laptop's base, of the expansion and of these stages."""
    return seeds(0, 1, 2, keys=tuple(f"stage.{stage}.seed" for stage in ("base", "expand", *stages)))


def continuing(*, weights: str, steps: int) -> ConfigDict:
    """A stage like `continued` of configs/tiny.py, from these weights and without ramping up, for the laptop."""
    config = tiny.training(english=0.55, steps=steps)
    config.tokenizer = "@merged_tokenizer"
    config.init.weights = weights
    config.schedule.update(name="constant", peak_lr=1e-3)
    config.eval.every = 20
    return config


def replaced(sources: Mapping[str, float], *, corpus: Mapping[str, str] | None = None) -> ConfigDict:
    """A whole `data.sources` section for the laptop: dataset -> share of the tokens.

    `corpus` names the stage that holds a dataset, where that is not `corpus`.
    """
    where = corpus or {}
    return ConfigDict(
        {
            name: base.mixture(path=f"@{where.get(name, 'corpus')}/{name}", weight=weight)
            for name, weight in sources.items()
        }
    )
