"""How to initialise the embeddings of new tokens (ALLaM paper, section 2.2, Figure 5).

    python run.py --config configs/tiny.py --sweep experiments/embedding_init.py --launcher local

The claim: a model whose new rows are averages of the base's pieces (subword_mean) learns Arabic faster than one with
random new rows, and loses less English. Three further arms: the mean of all rows (mean_all), the first piece's row
(first_piece), and the average with noise of 0.3 standard deviations (mean_noise; the default of 0.02 makes no
difference). Three seeds change the base, the expansion and the order of the data. The tokenizers are the same for all.

12 minutes on two cores, with the bases, which all experiments on continued pre-training share. At paper scale, give a
recipe of your own with the stages `expand` and `continued` and your base, as `--config FILE --sweep
experiments/embedding_init.py:paper`.
"""

from allam_jax.ablation.claims import Claim
from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.figures import Curves, Dots
from allam_jax.ablation.languages import BITS, NATS, bits_curves, curve_names, final_bits, training_measures
from allam_jax.ablation.measures import result
from allam_jax.ablation.vary import arms, grid, seeds
from allam_jax.errors import UserError
from experiments.settings import ARABIC, ENGLISH, SCALES

METHOD = "stage.expand.expand.method"
ARMS = {name: {METHOD: name} for name in ("random", "mean_all", "subword_mean", "first_piece")}
ARMS["mean_noise"] = {METHOD: "mean_noise", "stage.expand.expand.noise_std": 0.3}
LANGUAGES = {"en": ENGLISH, "ar": ARABIC}


def get_experiment(scale: str = "laptop") -> Experiment:
    """The experiment at a `scale`: laptop (three seeds, also of the base) or paper (two seeds on one given base)."""
    if scale not in SCALES:
        raise UserError(f"{scale}: expected laptop or paper")
    seeded = ("stage.base.seed",) if scale == "laptop" else ()
    numbers = (0, 1, 2) if scale == "laptop" else (0, 1)
    return Experiment(
        title="Initialisation of new embeddings",
        claim="New rows averaged from the base's pieces learn Arabic faster than random ones and spare English "
        "(ALLaM paper, section 2.2, Figure 5).",
        config="configs/tiny.py",
        vary=grid(
            arms("method", **ARMS),
            seeds(*numbers, keys=(*seeded, "stage.expand.seed", "stage.continued.seed")),
        ),
        measures=_measures(),
        figures=(
            Curves(
                name="bits_per_byte",
                measures=curve_names(LANGUAGES),
                by=("method",),
                reference={"method": "random"},
                caption="Bits per byte of held-out text during continued pre-training, by initialisation.",
            ),
            Curves(
                name="loss",
                measures=("loss_curve", "grad_norm_curve"),
                by=("method",),
                log_steps=False,
                caption="Training loss and gradient norm by initialisation.",
            ),
            Dots(
                name="step0",
                measures=("kl_en", "new_probability_en", "new_probability_ar"),
                by=("method",),
                caption="Step 0: KL from the base on English, and the total probability of all new tokens.",
            ),
        ),
        claims=(
            _claim("subword_mean ends with fewer bits per byte of Arabic than random", measure="final_ar"),
            _claim("subword_mean ends with fewer bits per byte of English than random", measure="final_en"),
            _claim("at step 0 subword_mean has lost less of its English than random", measure="step0_en"),
        ),
    )


def _claim(text: str, *, measure: str) -> Claim:
    return Claim(text=text, measure=measure, of={"method": "subword_mean"}, than={"method": "random"})


def _measures():
    step0 = []
    for key, language in LANGUAGES.items():
        for name, path, title, unit in (
            ("step0", "bits_per_byte_expanded", f"{language}, step 0", BITS),
            ("kl", "kl", f"KL on {language}", NATS),
            ("new_probability", "new_token_probability", f"New tokens, {language}", "probability"),
        ):
            step0.append(result(f"{name}_{key}", path=f"step0/{key}/{path}", stage="expand", title=title, unit=unit))
    return (
        *training_measures("continued"),
        *final_bits("continued", LANGUAGES),
        *bits_curves("continued", LANGUAGES),
        *step0,
    )
