"""Whether to begin with one language or with both (ALLaM paper, section 2.3; the talk: the curse of multilinguality).

    python run.py --sweep experiments/curse_of_multilinguality.py --jobs 2

The claim: training from scratch on two languages at once degrades English or slows both languages down. English first
and then the mixture keeps English, and what was learnt transfers. All arms have the same model, bilingual tokenizer,
learning rates and number of tokens. The schedule has two parts: a cosine down to a tenth of the rate, then a constant
rate.

    english first     English alone, then 55 % English
    mixed             55 % English throughout
    same data         one mixture throughout, with as many tokens of each language as `english first` has in all

Laptop: 4,500 steps (9 runs of 300 and 200), 6 minutes with `--jobs 2` on two cores. Paper (`:paper`): 1B parameters, as
in the paper, and 100B tokens, of which 60 % in the first part. The user gives the tokenizer and the corpus:
`--set "stage.*.tokenizer=DIR"`.
"""

from ml_collections import ConfigDict

from allam_jax.ablation.claims import Claim
from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.figures import Curves, Dots
from allam_jax.ablation.languages import bits_curves, curve_names, final_bits, final_names
from allam_jax.ablation.vary import arms, grid, seeds
from allam_jax.model.llama_config import preset
from configs import allam, tiny
from experiments.settings import setting

STAGES = ("first", "then")
FIRST_SHARE = 0.6  # of the steps
STEPS = 500
ENGLISH = 0.55  # of a mixture
FIRST, MIXED, SAME = "english first", "mixed", "same data"


def get_experiment(scale: str = "laptop") -> Experiment:
    """The experiment at a `scale`: laptop or paper."""
    here = setting(scale, config="configs/allam_7b_scratch.py")
    laptop = here.scale == "laptop"
    languages = dict(here.languages)
    english, arabic, *_ = languages
    overall = FIRST_SHARE + (1 - FIRST_SHARE) * ENGLISH
    return Experiment(
        title="English first, or both languages at once",
        claim="Training on two languages from scratch degrades English or slows both; English first, then the mixture, "
        "does not (ALLaM paper, section 2.3; the talk).",
        config=here.config,
        vary=grid(
            arms(
                "order",
                **{
                    FIRST: _weights(languages, first=1.0, then=ENGLISH),
                    MIXED: _weights(languages, first=ENGLISH, then=ENGLISH),
                    SAME: _weights(languages, first=overall, then=overall),
                },
            ),
            seeds(*((0, 1, 2) if laptop else (0, 1)), keys=tuple(f"stage.{stage}.seed" for stage in STAGES)),
        ),
        measures=(*final_bits("then", languages), *bits_curves(STAGES, languages)),
        figures=(
            Curves(
                name="bits_per_byte",
                measures=curve_names(languages),
                by=("order",),
                reference={"order": MIXED},
                log_steps=False,
                caption="Bits per byte of held-out text during training from scratch, by the order of the languages.",
            ),
            Dots(name="end", measures=final_names(languages), by=("order",), caption="Held-out text at the end."),
        ),
        claims=(
            _claim("English first ends with fewer bits per byte of English than mixed", f"final_{english}", MIXED),
            _claim("English first ends with fewer bits per byte of Arabic than mixed", f"final_{arabic}", MIXED),
            _claim(
                "from the same tokens, English first ends with fewer bits per byte of English", f"final_{english}", SAME
            ),
            _claim(
                "from the same tokens, English first ends with fewer bits per byte of Arabic", f"final_{arabic}", SAME
            ),
        ),
        extend=_laptop_stages if laptop else _paper_stages,
    )


def _claim(text: str, measure: str, than: str) -> Claim:
    return Claim(text=text, measure=measure, of={"order": FIRST}, than={"order": than})


def _weights(languages: dict[str, str], **english: float) -> dict[str, float]:
    """Overrides: stage -> share of English; the other languages divide the rest evenly."""
    name, *others = languages
    return {
        f"stage.{stage}.data.sources.{source}.weight": share if source == name else (1 - share) / len(others)
        for stage, share in english.items()
        for source in languages
    }


def _laptop_stages(recipe: ConfigDict) -> dict[str, ConfigDict]:
    stages = {}
    for stage in STAGES:
        stages[stage] = tiny.training(english=ENGLISH, steps=STEPS)
        stages[stage].tokenizer = "@merged_tokenizer"
        stages[stage].eval.every = 25
    return _joined(stages, peak_lr=3e-3, warmup_steps=30)


def _paper_stages(recipe: ConfigDict) -> dict[str, ConfigDict]:
    stages = {}
    for stage in STAGES:
        stages[stage] = allam.pretraining(preset("1b"), tokens=100e9, sources=allam.MIXED)
        stages[stage].eval.every = 1000
        stages[stage].train.z_loss = 1e-5
        stages[stage].plan.nodes = 16
    return _joined(stages, peak_lr=3e-4, warmup_steps=2000)


def _joined(stages: dict[str, ConfigDict], *, peak_lr: float, warmup_steps: int) -> dict[str, ConfigDict]:
    """Lets the second stage continue the first, with its moments, its step and its position in the data."""
    first, then = (stages[stage] for stage in STAGES)
    first.train.steps = round(FIRST_SHARE * then.train.steps)
    first.schedule.update(name="cosine", peak_lr=peak_lr, warmup_steps=warmup_steps, final_fraction=0.1)
    then.init.update(weights="@first", optimizer=True, step=True, data=True)
    then.schedule.update(name="constant", peak_lr=0.1 * peak_lr)
    return stages
