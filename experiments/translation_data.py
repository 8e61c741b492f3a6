"""How translated Arabic changes continued pre-training (ALLaM paper, section 2.1, Figure 3).

    python run.py --sweep experiments/translation_data.py --jobs 2

The claims: if the mixture has Arabic that was translated from English, the training loss is higher, the gradient norm
spikes less often, and less English is forgotten. Both arms have the same number of tokens and 55 % English. The Arabic
is all natural, or half natural and half translated, as in Table 1.

Laptop: the natural Arabic is the commentary of configs/tiny.py. The translated Arabic is the Van Dyke Bible. Its
English counterpart, the World English Bible, is in the English of both arms, as the originals of the paper's
translations are. So people made this translation, of one book in an older style; the paper has machine translation of
web text. Both Bibles are in one package of 73 MB with a pinned version, which stays in the cache. A spike is a gradient
norm above 1.25 times the median of the 20 before it, because the norm of so small a model rarely deviates by more than
a tenth.

Laptop: 1,800 steps (6 runs), 5 minutes with `--jobs 2` on two cores, bases included. Paper (`:paper`): 7B, 20B tokens
each, the sources of configs/allam_7b.py.
"""

from ml_collections import ConfigDict

from allam_jax.ablation.claims import Claim
from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.figures import Curves, Dots
from allam_jax.ablation.languages import bits_curves, curve_names, final_bits, final_names, training_measures
from allam_jax.ablation.measures import metric, spike_rate
from allam_jax.ablation.vary import always, arms, grid
from configs import base
from experiments.settings import LAPTOP_STEPS, TRANSLATED, continuing, replaced, setting

WITH, WITHOUT = {"translations": "with"}, {"translations": "without"}
ENGLISH_SHARES = {"en": 0.4, "bible_en": 0.15}  # mostly the base's own English, and the originals of the translations
ARABIC_SHARE = 0.45
SPIKE = 1.25  # times the median of the norms before


def get_experiment(scale: str = "laptop") -> Experiment:
    """The experiment at a `scale`: laptop or paper."""
    here = setting(scale, stage="mixed")
    laptop = here.scale == "laptop"
    languages = dict(here.languages) | ({"translated": TRANSLATED} if laptop else {})
    natural, translated = ("ar" if laptop else "arabic"), "translated"
    english = next(iter(languages))
    weights = {name: here.key(f"data.sources.{name}.weight") for name in (natural, translated)}
    return Experiment(
        title="Translated Arabic",
        claim="Translated Arabic in the mixture raises the training loss, but the gradient norm spikes less often and "
        "English is forgotten less (ALLaM paper, section 2.1, Figure 3).",
        config=here.config,
        vary=grid(
            always({}) if laptop else here.budget(20e9),
            arms(
                "translations",
                without={weights[natural]: ARABIC_SHARE, weights[translated]: 0.0},
                **{"with": dict.fromkeys(weights.values(), ARABIC_SHARE / 2)},
            ),
            here.seeds,
        ),
        measures=(
            *training_measures(here.stage),
            metric(
                "spikes",
                key="grad_norm",
                stage=here.stage,
                title="Spikes of the gradient norm",
                unit="per 100 updates",
                reduce=spike_rate(factor=SPIKE),
            ),
            *final_bits(here.stage, languages),
            *bits_curves(here.stage, languages),
        ),
        figures=(
            Curves(
                name="training",
                measures=("loss_curve", "grad_norm_curve"),
                by=("translations",),
                log_steps=False,
                caption="Training loss and gradient norm, with translated Arabic in the mixture and without.",
            ),
            Curves(
                name="bits_per_byte",
                measures=curve_names(languages),
                by=("translations",),
                caption="Bits per byte of held-out text, with translated Arabic in the mixture and without.",
            ),
            Dots(
                name="end",
                measures=("loss", "spikes", *final_names(languages)),
                by=("translations",),
                caption="Training loss, spikes and held-out text at the end.",
            ),
        ),
        claims=(
            Claim(text="the training loss is higher with translations", measure="loss", of=WITH, than=WITHOUT,
                  expect="higher"),
            Claim(text="the gradient norm spikes less often with translations", measure="spikes", of=WITH,
                  than=WITHOUT),
            Claim(text="English ends with fewer bits per byte with translations", measure=f"final_{english}", of=WITH,
                  than=WITHOUT),
        ),
        extend=_mixed if laptop else None,
    )  # fmt: skip


def _mixed(recipe: ConfigDict) -> dict[str, ConfigDict]:
    bibles = base.get_config("corpus")
    bibles.corpus.sources.translated = base.documents(catalog="van_dyke_ar", validation_share=0.03)
    bibles.corpus.sources.bible_en = base.documents(catalog="web_en", validation_share=0.03)
    mixed = continuing(weights="@expand/weights", steps=LAPTOP_STEPS)
    mixed.optimizer.rewarm_steps = 5
    shares = ENGLISH_SHARES | {"ar": ARABIC_SHARE, "translated": 0.0}
    mixed.data.sources = replaced(shares, corpus=dict.fromkeys(("translated", "bible_en"), "bibles"))
    mixed.eval.sources.translated = base.mixture(path="@bibles/translated", split="validation")
    return {"bibles": bibles, "mixed": mixed}
