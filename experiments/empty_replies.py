"""What empty replies in SFT data cost (ALLaM paper, section 3.1).

    python run.py --sweep experiments/empty_replies.py --jobs 2

The claim: one percent of empty replies does visible harm. Arms: 0, 1 and 5 % of the conversations have a last reply of
three dots alone, because a reply without any character is refused by the reader, as by those of other trainers. One
percent are about 20 conversations.
"""

from allam_jax.ablation.answered import without_words
from allam_jax.ablation.claims import Claim
from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.figures import Dots
from allam_jax.ablation.vary import Choice, grid
from experiments.posttraining import MEASURED, from_stage, measures, setting, stages

NONE = {"empty": 0.0}


def get_experiment(scale: str = "laptop") -> Experiment:
    """The experiment at a `scale`: laptop or smollm2."""
    here = setting(scale)
    return Experiment(
        title="Empty replies",
        claim="One percent of empty replies in SFT data does visible harm (ALLaM paper, section 3.1).",
        config=here.config,
        vary=grid(tuple(map(_share, (0.0, 0.01, 0.05))), here.seeds),
        measures=(*measures("tuned"), without_words("empty_answers", stage="answers_tuned")),
        figures=(
            Dots(
                name="end",
                measures=("empty_answers", *MEASURED),
                by=("empty",),
                caption="Answers without words, exact answers, replies, and text that is kept.",
            ),
        ),
        claims=(
            *(
                Claim(
                    text=f"with {share:.0%} of empty replies fewer held-out prompts are answered to the letter",
                    measure="exact",
                    of={"empty": share},
                    than=NONE,
                )
                for share in (0.01, 0.05)
            ),
            Claim(
                text="with 5% of empty replies more answers are empty",
                measure="empty_answers",
                of={"empty": 0.05},
                than=NONE,
                expect="higher",
            ),
        ),
        extend=stages,
    )


def _share(share: float) -> Choice:
    """A share of the conversations with an empty last reply; of none, the recipe's own run."""
    damage = {"stage.damaged.damage_chats.kinds": ("empty",), "stage.damaged.damage_chats.share": share}
    return Choice({"empty": share}, (f"empty-{share:g}",), (damage | from_stage("damaged")) if share else {})
