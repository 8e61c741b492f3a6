"""An experiment of seconds on tests/tasks/tiny_recipe.py: two learning rates, two seeds."""

from allam_jax.ablation.claims import Claim
from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.figures import Curves, Dots
from allam_jax.ablation.measures import curve, metric
from allam_jax.ablation.vary import grid, param, seeds

BITS = {"title": "English", "stage": "train", "key": "eval/held_out/en/bits_per_byte", "unit": "bits/byte"}


def get_experiment(arg: str = "") -> Experiment:
    """`arg`: nothing, `typo`, `broken` (one arm cannot run), `one_seed`, `more` seeds, or the steps of a single run."""
    rates = {"typo": "stage.train.schedule.peek_lr"}.get(arg, "stage.train.schedule.peak_lr")
    vary = grid(
        param(rates, 1e-4, 3e-3, name="peak_lr"),
        seeds(*range({"one_seed": 1, "more": 3}.get(arg, 2)), keys=("stage.train.seed",)),
    )
    if arg == "broken":
        vary += param("stage.train.init.weights", "/nowhere")
    if arg.isdigit():
        vary = param("stage.train.train.steps", int(arg))
    claim = Claim(
        text="a higher rate learns more", measure="bits", of={"peak_lr": 3e-3}, than={"peak_lr": 1e-4}, expect="lower"
    )
    by = ("steps",) if arg.isdigit() else ("peak_lr",)
    return Experiment(
        title="Learning rates",
        claim="A higher rate learns more.",
        config="",
        vary=vary,
        measures=(
            metric("bits", **BITS),
            metric("loss", key="loss", title="Loss", unit="nats/token"),
            curve("bits_curve", **BITS),
        ),
        figures=(
            Curves(name="curves", measures=("bits_curve",), by=by, caption="Held-out text."),
            Dots(name="dots", measures=("bits", "loss"), by=by, caption="At the end."),
        ),
        claims=() if arg in ("broken", "one_seed") or arg.isdigit() else (claim,),
    )
