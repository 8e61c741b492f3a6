"""Whether continued pre-training should use dropout (ALLaM paper, section 2.2, Figure 6).

    python run.py --sweep experiments/dropout.py --jobs 2

The claim: dropout helps the new language (Arabic) by regularising its new distribution, and hurts the language of the
base (English), which was trained without dropout.

Arms: no dropout, and a rate of 0.1 on the embeddings, the attention, the residual branches, or all three; the paper
does not state where. Laptop: the tiny base. It reads its Arabic for less than one epoch, as in the paper, so there is
little to overfit. Paper (`:paper`): 7B, 20B tokens each. A real base (`:smollm2`): SmolLM2-135M, 250 steps, two seeds.

Laptop: 3,600 steps (12 runs; embedding_init shares the arm without dropout), 10 minutes with `--jobs 2` on two cores,
bases included.
"""

from allam_jax.ablation.claims import Claim
from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.figures import Curves, Dots
from allam_jax.ablation.languages import bits_curves, curve_names, final_bits, final_names, training_measures
from allam_jax.ablation.vary import arms, grid
from experiments.settings import setting

SITES = ("embedding", "attention", "residual")
RATE = 0.1


def get_experiment(scale: str = "laptop") -> Experiment:
    """The experiment at a `scale`: laptop, smollm2 or paper."""
    here = setting(scale, real=True)
    english, arabic, *_ = here.languages
    keys = {site: here.key(f"compute.dropout_{site}") for site in SITES}
    return Experiment(
        title="Dropout in continued pre-training",
        claim="Dropout helps the new language and hurts that of the base (ALLaM paper, section 2.2, Figure 6).",
        config=here.config,
        vary=grid(
            here.budget(20e9),
            arms(
                "dropout",
                none={},
                **{site: {key: RATE} for site, key in keys.items()},
                all=dict.fromkeys(keys.values(), RATE),
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
                by=("dropout",),
                reference={"dropout": "none"},
                caption="Bits per byte of held-out text, with a dropout of 0.1 at one site or at all.",
            ),
            Dots(
                name="end", measures=final_names(here.languages), by=("dropout",), caption="Held-out text at the end."
            ),
        ),
        claims=(
            Claim(
                text="with dropout everywhere Arabic ends with fewer bits per byte than without",
                measure=f"final_{arabic}",
                of={"dropout": "all"},
                than={"dropout": "none"},
            ),
            Claim(
                text="with dropout everywhere English ends with more bits per byte than without",
                measure=f"final_{english}",
                of={"dropout": "all"},
                than={"dropout": "none"},
                expect="higher",
            ),
        ),
    )
