"""The settings of the experiments on continued pre-training: on a laptop, on a real small model, or the paper's scale.

    python run.py --sweep experiments/NAME.py             # laptop: configs/tiny.py
    python run.py --sweep experiments/NAME.py:smollm2     # some of them on configs/smollm2_arabic.py
    python run.py --sweep experiments/NAME.py:paper       # the same experiment on configs/allam_7b.py

At the paper's scale the user gives the paths of the expanded base and the corpus with `--set`, as in
`--set stage.train.init.weights=DIR` and `--set stage.train.data.sources.arabic.path=DIR`.
"""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from allam_jax.ablation.vary import Choices, always, seeds
from allam_jax.errors import UserError
from configs import allam, base, smollm2_arabic, tiny

ENGLISH, ARABIC, CLASSICAL, TRANSLATED, CODE = "English", "Arabic", "Arabic, classical", "Arabic, translated", "Code"
SCALES = ("laptop", "paper")
REAL = "smollm2"
LAPTOP_STEPS = 300  # of continued pre-training, as in configs/tiny.py
REAL_STEPS, _REAL_EVERY = 250, 50
_PAPER_EVALUATIONS = 20  # of a run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """The properties of the config that an experiment varies.

    Attributes:
        scale: laptop, smollm2 or paper.
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
        """The steps of a run: those of a budget of tokens at the paper's scale, else fixed."""
        return {"laptop": LAPTOP_STEPS, REAL: REAL_STEPS}.get(self.scale) or allam.steps_for(tokens)

    def budget(self, tokens: float) -> Choices:
        """Choices for the grid: runs of as many steps as `steps` says; on the laptop, no change."""
        if self.scale == "laptop":
            return always({})
        steps = self.steps(tokens)
        every = _REAL_EVERY if self.scale == REAL else max(steps // _PAPER_EVALUATIONS, 1)
        fixed = {self.key("train.steps"): steps, self.key("eval.every"): every}
        return always(fixed | ({self.key("optimizer.average_decay"): 0.0} if self.scale == REAL else {}))


def setting(scale: str, *, stage: str = "", config: str = "configs/allam_7b.py", real: bool = False) -> Setting:
    """The setting of a scale. Raises UserError for one that there is not.

    Args:
        scale: the text that the user gives.
        stage: on the laptop, the stage that the experiment adds and varies; empty means `continued` in configs/tiny.py.
        config: at the paper's scale, the config file, whose stage is called train.
        real: whether the experiment also has the scale smollm2.
    """
    scales = (*SCALES, REAL) if real else SCALES
    if scale not in scales:
        raise UserError(f"{scale}: expected {' or '.join(scales)}")
    if scale == REAL:
        return Setting(
            scale=scale,
            config="configs/smollm2_arabic.py:best",
            stage=smollm2_arabic.BEST_STAGE,
            languages={"en": ENGLISH, "ar": ARABIC, "classical": CLASSICAL},
            base_lr=3e-5,
            seeds=seeds(0, 1, keys=(f"stage.{smollm2_arabic.BEST_STAGE}.seed",)),
        )
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
