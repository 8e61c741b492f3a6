"""How far DPO should go from its reference: beta against KL and win rate.

    python run.py --sweep experiments/dpo_beta.py --jobs 2

The claims: a smaller beta ends farther from the reference, and there is a beta that wins against the model before DPO.
Arms: 0.03, 0.1 (the recipe's), 0.3 and 1.
"""

import itertools

from allam_jax.ablation.claims import Claim
from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.figures import Against
from allam_jax.ablation.vary import grid, param
from experiments.posttraining import OF_PAIRS, preference_measures, setting, stages

BETAS = (0.03, 0.1, 0.3, 1.0)


def get_experiment(scale: str = "laptop") -> Experiment:
    """The experiment at a `scale`: laptop or smollm2."""
    here = setting(scale)
    return Experiment(
        title="Beta of DPO",
        claim="A smaller beta moves the model farther from its reference; which one wins most is measured.",
        config=here.config,
        vary=grid(param("stage.aligned.dpo.beta", *BETAS, name="beta"), here.seeds),
        measures=preference_measures(),
        figures=(
            Against(
                name="beta",
                measures=OF_PAIRS,
                x="beta",
                x_label="Beta",
                log_x=True,
                caption="Exact answers, win rate against SFT, KL to it, and held-out pairs in order, by beta.",
            ),
        ),
        claims=(
            *(
                Claim(
                    text=f"beta {smaller:g} ends with more KL than {larger:g}",
                    measure="kl",
                    of={"beta": smaller},
                    than={"beta": larger},
                    expect="higher",
                )
                for smaller, larger in itertools.pairwise(BETAS)
            ),
            Claim(
                text="beta 0.1 wins more than half against the model before DPO",
                measure="wins",
                of={"beta": 0.1},
                than=50.0,
                expect="higher",
            ),
        ),
        extend=stages,
    )
