"""Whether every reply needs to be a sample of its own (ALLaM paper, section 3.1, Figure 11).

    python run.py --sweep experiments/turn_augmentation.py --jobs 2

The paper makes n samples of a conversation of n turns, each with its last reply learned. Where the loss is a mean over
tokens, one pass over the conversation with all replies learned has the same gradient; only the batches differ. The
claim: both end alike, and learning the last reply alone is worse at the first turn.

Arms: augmented, all replies in one pass (the recipe's), the last reply of each conversation. All see the data twice, so
augmentation takes more steps, and the last reply fewer learned tokens.
"""

from allam_jax.ablation.claims import Claim
from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.figures import Dots
from allam_jax.ablation.languages import NATS
from allam_jax.ablation.measures import result
from allam_jax.ablation.vary import arms, grid
from experiments.posttraining import LANGUAGES, MEASURED, measures, setting, stages

ALL, AUGMENTED, LAST = {"learned": "all"}, {"learned": "augmented"}, {"learned": "last"}


def get_experiment(scale: str = "laptop") -> Experiment:
    """The experiment at a `scale`: laptop or smollm2."""
    here = setting(scale)
    turns = tuple(
        result(
            f"{key}_turn{turn}",
            path=f"{key}_turn{turn}/loss",
            stage="losses_tuned",
            title=f"{name} replies, turn {turn}",
            unit=NATS,
        )
        for key, name in LANGUAGES.items()
        for turn in (1, 2)
    )
    return Experiment(
        title="Turn augmentation",
        claim="A conversation as one sample with all replies learned is as good as one sample a reply (ALLaM paper, "
        "Figure 11).",
        config=here.config,
        vary=grid(
            arms(
                "learned",
                all={},
                augmented={"stage.tuned.sft.learned": "augmented"},
                last={"stage.tuned.sft.learned": "last"},
            ),
            here.seeds,
        ),
        measures=(*measures("tuned"), *turns),
        figures=(
            Dots(
                name="turns",
                measures=tuple(measure.name for measure in turns),
                by=("learned",),
                caption="Loss of held-out replies, by language and turn.",
            ),
            Dots(
                name="end", measures=MEASURED, by=("learned",), caption="Exact answers, replies, and text that is kept."
            ),
        ),
        claims=(
            *(
                Claim(
                    text=f"augmented, {name} replies end within 0.05 nats of those of one pass",
                    measure=f"replies_{key}",
                    of=AUGMENTED,
                    than=ALL,
                    expect="equal",
                    margin=0.05,
                )
                for key, name in LANGUAGES.items()
            ),
            *(
                Claim(
                    text=f"with the last reply alone, {name} replies of the first turn cost more than with all",
                    measure=f"{key}_turn1",
                    of=LAST,
                    than=ALL,
                    expect="higher",
                )
                for key, name in LANGUAGES.items()
            ),
        ),
        extend=stages,
    )
