"""The settings of the experiments on continued pre-training: configs/tiny.py on a laptop, or the paper's scale.

    python run.py --sweep experiments/NAME.py             # laptop
    python run.py --sweep experiments/NAME.py:paper       # the same experiment on configs/allam_7b.py

At the paper's scale the user gives the paths of the expanded base and the corpus with `--set`, as in
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
    """The properties of the config that an experiment varies.

    Attributes:
        scale: laptop or paper.
        config: the config file.
        stage: the name of the stage that continues pre-training.
        languages: key in `eval.sources` -> name, English first, then Arabic.
        base_lr: the last learning rate of the base.
        seeds: the seeds of everything random.
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
        """The steps of a run: fixed on the laptop, and those of a budget of tokens at the paper's scale."""
        return LAPTOP_STEPS if self.scale == "laptop" else allam.steps_for(tokens)

    def budget(self, tokens: float) -> Choices:
        """Choices for the grid: at the paper's scale, runs of this many tokens; on the laptop, no change."""
        if self.scale == "laptop":
            return always({})
        steps = self.steps(tokens)
        every = max(steps // _PAPER_EVALUATIONS, 1)
        return always({self.key("train.steps"): steps, self.key("eval.every"): every})


def setting(scale: str, *, stage: str = "", config: str = "configs/allam_7b.py") -> Setting:
    """The setting of a scale. Raises UserError unless it is laptop or paper.

    Args:
        scale: the text that the user gives.
        stage: on the laptop, the stage that the experiment adds and varies; empty means `continued` in configs/tiny.py.
        config: at the paper's scale, the config file, whose stage is called train.
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
    """A stage for the laptop like `continued` in configs/tiny.py, from these weights and without a ramp of the rate."""
    config = tiny.training(english=0.55, steps=steps)
    config.tokenizer = "@merged_tokenizer"
    config.init.weights = weights
    config.schedule.update(name="constant", peak_lr=1e-3)
    config.eval.every = 20
    return config


def replaced(sources: Mapping[str, float], *, corpus: Mapping[str, str] | None = None) -> ConfigDict:
    """A whole `data.sources` section for the laptop, from dataset -> share of the tokens.

    `corpus` gives the stage of a dataset if that is not the stage `corpus`.
    """
    where = corpus or {}
    return ConfigDict(
        {
            name: base.mixture(path=f"@{where.get(name, 'corpus')}/{name}", weight=weight)
            for name, weight in sources.items()
        }
    )
