"""Which learning rate continued pre-training should have (ALLaM paper, section 2.2; the talk).

    python run.py --sweep experiments/learning_rate.py --jobs 2

The claim: continued pre-training should keep the constant rate with which the base ended. A higher rate forgets
English, and so does a new warm-up with a decay: "once the learning rate went down, it is very difficult to ramp up
learning rate without some forgetting".

Four arms: constant at the base's last rate, at 3 times and at 10 times that rate, and a warm-up to 10 times the rate
over a tenth of the steps with a cosine back down to it. Laptop: the base ended at 3e-4. Paper (`:paper`): 3e-5, 10B
tokens each, which is the talk's budget for its search. A real base (`:smollm2`): SmolLM2-135M from 3e-5 on, 250 steps,
two seeds.

Laptop: 3,600 steps of continued pre-training (12 runs), 8 minutes with `--jobs 2` on two cores, bases included.
"""

from allam_jax.ablation.claims import Claim
from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.figures import Curves, Dots
from allam_jax.ablation.languages import bits_curves, curve_names, final_bits, final_names, training_measures
from allam_jax.ablation.vary import arms, grid
from experiments.settings import setting

LAST, THREE, TEN, DECAYED = "1x", "3x", "10x", "10x, decayed"


def get_experiment(scale: str = "laptop") -> Experiment:
    """The experiment at a `scale`: laptop, smollm2 or paper."""
    here = setting(scale, real=True)
    steps = here.steps(10e9)
    rate = here.key("schedule.peak_lr")
    english, arabic, *_ = here.languages
    return Experiment(
        title="Learning rate of continued pre-training",
        claim="The constant rate that the base ended with keeps English better than higher ones, and than warming up "
        "again and decaying (ALLaM paper, section 2.2; the talk).",
        config=here.config,
        vary=grid(
            here.budget(10e9),
            arms(
                "rate",
                **{
                    LAST: {rate: here.base_lr},
                    THREE: {rate: 3 * here.base_lr},
                    TEN: {rate: 10 * here.base_lr},
                    DECAYED: {
                        rate: 10 * here.base_lr,
                        here.key("schedule.name"): "cosine",
                        here.key("schedule.warmup_steps"): steps // 10,
                        here.key("schedule.final_fraction"): 0.1,
                    },
                },
            ),
            here.seeds,
        ),
        measures=(
            *training_measures(here.stage),
            *final_bits(here.stage, here.languages),
            *bits_curves(here.stage, here.languages),
        ),
        figures=(
            Curves(
                name="bits_per_byte",
                measures=curve_names(here.languages),
                by=("rate",),
                reference={"rate": LAST},
                caption="Bits per byte of held-out text, by learning rate (multiples of the base's last one).",
            ),
            Curves(
                name="loss",
                measures=("loss_curve", "grad_norm_curve"),
                by=("rate",),
                log_steps=False,
                caption="Training loss and gradient norm, by learning rate.",
            ),
            Dots(name="end", measures=final_names(here.languages), by=("rate",), caption="Held-out text at the end."),
        ),
        claims=(
            *(
                Claim(
                    text=f"the base's last rate ends with fewer bits per byte of English than {than}",
                    measure=f"final_{english}",
                    of={"rate": LAST},
                    than={"rate": than},
                )
                for than in (THREE, TEN, DECAYED)
            ),
            Claim(
                text="10 times the rate learns more Arabic",
                measure=f"final_{arabic}",
                of={"rate": TEN},
                than={"rate": LAST},
            ),
        ),
    )
