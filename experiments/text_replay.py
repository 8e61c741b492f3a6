"""Whether text beside the conversations keeps what SFT makes a model forget.

    python run.py --sweep experiments/text_replay.py --jobs 2

SFT of configs/posttrain.py:tiny (three epochs) costs 48 % more bits per byte of Arabic and 38 % of English. The claim:
a tenth of the tokens as text of both languages keeps more of both, more than a third of the learning rate does, and
costs no exact answers.

Arms: no text, 10 and 30 % of an epoch's tokens (of which, unlike those of conversations, all are learned), and a third
of the learning rate. All see the conversations twice, so text makes a run longer.
"""

from typing import Any

from allam_jax.ablation.claims import Claim
from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.figures import Dots
from allam_jax.ablation.vary import arms, grid
from configs import posttrain
from experiments.posttraining import LANGUAGES, MEASURED, measures, setting, stages

NONE, TENTH, LOW_RATE = ({"beside": name} for name in ("nothing", "10 % text", "a third of the rate"))


def get_experiment(scale: str = "laptop") -> Experiment:
    """The experiment at a `scale`: laptop or smollm2."""
    here = setting(scale)
    return Experiment(
        title="Text replayed in SFT",
        claim="A tenth of text among the tokens of SFT keeps more of both languages, and costs no answers.",
        config=here.config,
        vary=grid(
            arms(
                "beside",
                nothing={},
                **{
                    "10 % text": _text(0.1),
                    "30 % text": _text(0.3),
                    "a third of the rate": {"stage.tuned.schedule.peak_lr": here.sft_lr / 3},
                },
            ),
            here.seeds,
        ),
        measures=measures("tuned"),
        figures=(
            Dots(
                name="end",
                measures=MEASURED,
                by=("beside",),
                caption="Exact answers, replies, and bits per byte of held-out text.",
            ),
        ),
        claims=(
            *(
                Claim(
                    text=f"with a tenth of text {name} ends with fewer bits per byte than without",
                    measure=f"final_{key}",
                    of=TENTH,
                    than=NONE,
                )
                for key, name in LANGUAGES.items()
            ),
            *(
                Claim(
                    text=f"with a tenth of text {name} ends with fewer bits per byte than with a third of the rate",
                    measure=f"final_{key}",
                    of=TENTH,
                    than=LOW_RATE,
                )
                for key, name in LANGUAGES.items()
            ),
            Claim(
                text="with a tenth of text as many prompts are answered as without, within 2 points",
                measure="exact",
                of=TENTH,
                than=NONE,
                expect="equal",
                margin=2.0,
            ),
        ),
        extend=stages,
    )


def _text(share: float) -> dict[str, Any]:
    return {"stage.tuned.replay.share": share, "stage.tuned.replay.sources": posttrain.replayed()}
