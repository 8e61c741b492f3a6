"""How much SFT data, and whether to filter it (ALLaM paper, section 3.1).

    python run.py --sweep experiments/sft_data_amount.py --jobs 2

The paper's first data were 12 million conversations as they came; its second were half of them, strictly checked, and
as good. The claim: half of the data after the checks is as good as all of it before them.

The recipe's conversations are clean. So 30 % get a fault first: an empty reply, one in another language, half of one,
an endless one, or remnants of a prompt, 6 % each. Arms: 1/8, 1/2 and all of these, and of what task sft_quality leaves
of them. Every arm sees its data twice, so fewer data are fewer steps.
"""

from allam_jax.ablation.claims import Claim
from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.figures import Against
from allam_jax.ablation.vary import Choice, always, grid, param
from allam_jax.alignment.settings import CHAT_DAMAGES
from experiments.posttraining import LANGUAGES, MEASURED, from_stage, measures, setting, stages

KINDS = tuple(kind for kind in CHAT_DAMAGES if kind != "flipped")
SHARE = 0.06  # of the rows, for each kind
FOLDERS = {"as it comes": "@damaged", "checked": "@checked/clean"}
ALL_UNCHECKED = {"data": "as it comes", "amount": 1.0}
ALL_CHECKED, HALF_CHECKED, EIGHTH_CHECKED = ({"data": "checked", "amount": amount} for amount in (1.0, 0.5, 0.125))


def get_experiment(scale: str = "laptop") -> Experiment:
    """The experiment at a `scale`: laptop or smollm2."""
    here = setting(scale)
    return Experiment(
        title="Amount of SFT data, filtered and not",
        claim="Half of the SFT data, checked, is as good as all of it as it comes (ALLaM paper, section 3.1).",
        config=here.config,
        vary=grid(
            always(
                {"stage.damaged.damage_chats.kinds": KINDS, "stage.damaged.damage_chats.share": SHARE}
                | from_stage("part")
            ),
            tuple(map(_data, FOLDERS)),
            param("stage.part.damage_chats.kept", 0.125, 0.5, 1.0, name="amount"),
            here.seeds,
        ),
        measures=measures("tuned"),
        figures=(
            Against(
                name="amount",
                measures=MEASURED,
                x="amount",
                x_label="Share of the conversations",
                by=("data",),
                caption="Exact answers, replies, and text that is kept, by the amount of data.",
            ),
        ),
        claims=(
            Claim(
                text="half of the data, checked, answers as many prompts as all of it as it comes, within 2 points",
                measure="exact",
                of=HALF_CHECKED,
                than=ALL_UNCHECKED,
                expect="equal",
                margin=2.0,
            ),
            Claim(
                text="all checked data answer more prompts than all data as they come",
                measure="exact",
                of=ALL_CHECKED,
                than=ALL_UNCHECKED,
                expect="higher",
            ),
            Claim(
                text="all checked data answer more prompts than an eighth",
                measure="exact",
                of=ALL_CHECKED,
                than=EIGHTH_CHECKED,
                expect="higher",
            ),
        ),
        extend=stages,
    )


def _data(name: str) -> Choice:
    sources = {
        f"stage.part.damage_chats.sources.{language}.path": f"{FOLDERS[name]}/{language}.jsonl"
        for language in LANGUAGES
    }
    return Choice({"data": name}, (name,), sources)
