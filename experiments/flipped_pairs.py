"""What pairs whose sides are flipped do to DPO (ALLaM paper, section 3.2).

    python run.py --sweep experiments/flipped_pairs.py --jobs 2

The paper finds that a tenth of a percent of noisy pairs does harm. The claim is tested at 1 and 5 %, because a tenth of
a percent of these pairs is one or two pairs. Held-out pairs are flipped like the others, so their accuracy falls by
itself; the claims are about answers.
"""

from allam_jax.ablation.claims import Claim
from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.figures import Dots
from allam_jax.ablation.vary import Choice, grid
from experiments.posttraining import LANGUAGES, OF_PAIRS, preference_measures, setting, stages

NONE = {"flipped": 0.0}


def get_experiment(scale: str = "laptop") -> Experiment:
    """The experiment at a `scale`: laptop or smollm2."""
    here = setting(scale)
    return Experiment(
        title="Flipped pairs in DPO",
        claim="Few pairs with flipped sides do harm in DPO (ALLaM paper, section 3.2).",
        config=here.config,
        vary=grid(tuple(map(_share, (0.0, 0.01, 0.05))), here.seeds),
        measures=preference_measures(),
        figures=(
            Dots(
                name="end",
                measures=OF_PAIRS,
                by=("flipped",),
                caption="Exact answers, win rate against SFT, KL, and held-out pairs in order.",
            ),
        ),
        claims=(
            *(
                Claim(
                    text=f"with {share:.0%} of flipped pairs DPO wins fewer prompts against SFT",
                    measure="wins",
                    of={"flipped": share},
                    than=NONE,
                )
                for share in (0.01, 0.05)
            ),
            *(
                Claim(
                    text=f"with 5% of flipped pairs {name} replies cost more",
                    measure=f"replies_{key}",
                    of={"flipped": 0.05},
                    than=NONE,
                    expect="higher",
                )
                for key, name in LANGUAGES.items()
            ),
        ),
        extend=stages,
    )


def _share(share: float) -> Choice:
    """A share of flipped pairs; of none, the recipe's own run."""
    flipped = {
        "stage.damaged_pairs.damage_chats.share": share,
        "stage.aligned.conversations.sources.pairs.path": "@damaged_pairs/pairs.jsonl",
    }
    return Choice({"flipped": share}, (f"flipped-{share:g}",), flipped if share else {})
