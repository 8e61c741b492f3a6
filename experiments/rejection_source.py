"""Whose answers should be rejected: those of the model that is trained, or of another one (ALLaM paper, section 3.2).

    python run.py --sweep experiments/rejection_source.py --jobs 2

The paper samples rejected answers from the model itself (on-policy) or from others. The claim: its own answers teach it
more. Arms: answers of the tuned model, and of one after half as many epochs, whose mistakes are coarser. Both arms
make equally many steps, because the number of usable answers differs.
"""

from allam_jax.ablation.claims import Claim
from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.figures import Dots
from allam_jax.ablation.vary import always, arms, grid
from experiments.posttraining import OF_PAIRS, preference_measures, setting, stages

STEPS = 120
ON, OFF = {"rejected": "own"}, {"rejected": "another's"}


def get_experiment(scale: str = "laptop") -> Experiment:
    """The experiment at a `scale`: laptop or smollm2."""
    here = setting(scale)
    return Experiment(
        title="On-policy and off-policy rejections",
        claim="A model learns more from its own answers as rejected sides than from another's (ALLaM paper, section "
        "3.2).",
        config=here.config,
        vary=grid(
            always({"stage.aligned.conversations.epochs": 0.0, "stage.aligned.train.steps": STEPS}),
            arms("rejected", own={}, **{"another's": {"stage.sampled.init.weights": "@other"}}),
            here.seeds,
        ),
        measures=preference_measures(),
        figures=(
            Dots(
                name="end",
                measures=OF_PAIRS,
                by=("rejected",),
                caption="Exact answers, win rate against SFT, KL, and held-out pairs of the own kind in order.",
            ),
        ),
        claims=(
            Claim(
                text="with its own answers rejected DPO wins more prompts against SFT than with another's",
                measure="wins",
                of=ON,
                than=OFF,
                expect="higher",
            ),
            Claim(
                text="with its own answers rejected DPO wins more than half against SFT",
                measure="wins",
                of=ON,
                than=50.0,
                expect="higher",
            ),
        ),
        extend=stages,
    )
