"""How much English continued pre-training should keep (ALLaM paper, Figure 4).

    python run.py --sweep experiments/language_mix.py --jobs 2

The claim: among shares of English from 100 % to none, 55 % English and 45 % Arabic is the best compromise between
learning Arabic and keeping English. The paper judges by MMLU in both languages. This experiment judges by the mean over
the languages of bits per byte of held-out text, and shows each language too.

Shares of 100, 75, 55, 45, 25 and 0 % English. Laptop: the tiny base. Paper (`:paper`): 7B, 20B tokens each as in the
paper, Arabic half natural and half translated.

On a real base (`:smollm2`): SmolLM2-135M, 250 steps of 2,048 tokens, two seeds; half of the Arabic is classical.

Laptop: 4,500 steps (15 runs; embedding_init shares the 55 % arm), 10 minutes with `--jobs 2` on two cores, bases
included.
"""

from allam_jax.ablation.claims import Claim
from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.figures import Against, Curves
from allam_jax.ablation.languages import (
    BITS,
    bits_curves,
    curve_names,
    final_bits,
    final_names,
    training_measures,
)
from allam_jax.ablation.measures import computed
from allam_jax.ablation.vary import Choice, grid
from experiments.settings import Setting, setting

SHARES = (1.0, 0.75, 0.55, 0.45, 0.25, 0.0)
BEST = {"english": 0.55}


def get_experiment(scale: str = "laptop") -> Experiment:
    """The experiment at a `scale`: laptop, smollm2 or paper."""
    here = setting(scale, real=True)
    english, arabic, *_ = here.languages
    final = final_bits(here.stage, here.languages)

    def mean_of_both(directories) -> float:
        return sum(measure.read(directories) for measure in final[:2]) / 2

    mean = computed("mean", mean_of_both, stages=(here.stage,), title="Mean of both languages, end", unit=BITS)
    return Experiment(
        title="Mixture of languages",
        claim="55 % English and 45 % Arabic is the best trade between learning Arabic and keeping English (ALLaM "
        "paper, Figure 4).",
        config=here.config,
        vary=grid(here.budget(20e9), tuple(_share(here, share) for share in SHARES), here.seeds),
        measures=(*training_measures(here.stage), *final, mean, *bits_curves(here.stage, here.languages)),
        figures=(
            Against(
                name="shares",
                measures=(*final_names(here.languages), "mean"),
                x="english",
                x_label="Share of English",
                reference=BEST,
                caption="Bits per byte of held-out text at the end, by the share of English.",
            ),
            Curves(
                name="bits_per_byte",
                measures=curve_names(here.languages),
                by=("english",),
                reference=BEST,
                caption="Bits per byte of held-out text during continued pre-training, by the share of English.",
            ),
        ),
        claims=(
            Claim(
                text="55 % English has the lowest mean over both languages",
                measure="mean",
                of=BEST,
                than=tuple({"english": share} for share in SHARES if share != BEST["english"]),
            ),
            Claim(
                text="55 % English keeps English better than 25 %",
                measure=f"final_{english}",
                of=BEST,
                than={"english": 0.25},
            ),
            Claim(
                text="55 % English learns more Arabic than 75 %",
                measure=f"final_{arabic}",
                of=BEST,
                than={"english": 0.75},
            ),
        ),
    )


def _share(here: Setting, share: float) -> Choice:
    """A share of English; the other sources divide the rest evenly."""
    english, *others = here.languages
    weights = {english: share} | dict.fromkeys(others, (1 - share) / len(others))
    overrides = {here.key(f"data.sources.{name}.weight"): weight for name, weight in weights.items()}
    return Choice({"english": share}, (f"english-{share:.2f}",), overrides)
