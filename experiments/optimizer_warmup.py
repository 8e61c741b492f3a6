"""What missing optimizer state costs, and whether a warm-up helps (ALLaM paper, section 2.2; the talk).

    python run.py --sweep experiments/optimizer_warmup.py --jobs 2

Open weights come without the optimizer's moments, and a resume can lose them. The first updates then follow estimates
from a few batches. The claims: "resume implemented with warm-up" avoids spikes of the gradient norm (the talk), and at
the start of continued pre-training a warm-up has "little effect on performance" (the paper).

Two kinds of start: the expanded base (`start`), and a run that resumes from its checkpoint (`resume`). Each has three
arms: no warm-up (`none`), a ramp of the learning rate (`linear`), and a rate of 0 while the moments fill (`freeze`). A
further arm resumes with its moments (`moments`). The spike is the largest gradient norm of the first 20 updates over
the median of the later ones. The rise is the largest excess of bits per byte of held-out text over step 0.

Laptop: 2,100 steps (21 runs) at a rate of 1e-3, warm-up over 20 of 100 steps, 8 minutes with `--jobs 2` on two cores,
with the bases and the resumed runs, which other experiments share. Paper (`:paper`): 7B, 10B tokens each, warm-up over
200 steps; the resumed run is the 7B's own, `runs/allam_7b/checkpoints/20000`.
"""

from ml_collections import ConfigDict

from allam_jax.ablation.claims import Claim
from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.figures import Curves, Dots
from allam_jax.ablation.languages import bits_curves, bits_key, curve_names, final_bits, training_measures
from allam_jax.ablation.measures import metric, spike_size
from allam_jax.ablation.vary import Choices, always, arms, grid
from experiments.settings import Setting, continuing, every_seed, setting

FIRST = 20  # updates that count as the start
PAPER_CHECKPOINT = "runs/allam_7b/checkpoints/20000"


def get_experiment(scale: str = "laptop") -> Experiment:
    """The experiment at a `scale`: laptop or paper."""
    here = setting(scale, stage="restarted")
    laptop = here.scale == "laptop"
    english, arabic, *_ = here.languages
    return Experiment(
        title="Warm-up of the optimizer",
        claim="A warm-up keeps the gradient norm from spiking where a run is resumed without the optimizer's moments "
        "(the talk), and matters little for a start from open weights (ALLaM paper, section 2.2).",
        config=here.config,
        vary=grid(
            here.budget(10e9) if laptop else _paper_budget(here),
            arms("case", **_cases(here, resumed="@continued" if laptop else PAPER_CHECKPOINT)),
            every_seed("continued", "restarted") if laptop else here.seeds,
        ),
        measures=(
            metric(
                "spike",
                key="grad_norm",
                stage=here.stage,
                title="Spike of the gradient norm",
                unit="times the later median",
                reduce=spike_size(FIRST),
            ),
            *(
                metric(
                    f"rise_{key}",
                    key=bits_key(key),
                    stage=here.stage,
                    title=f"{name}, rise above step 0",
                    unit="bits/byte",
                    reduce=lambda steps, values: float(max(values) - values[0]),
                )
                for key, name in here.languages.items()
            ),
            *training_measures(here.stage),
            *final_bits(here.stage, here.languages),
            *bits_curves(here.stage, here.languages),
        ),
        figures=(
            Curves(
                name="start",
                measures=("grad_norm_curve", *curve_names(here.languages)),
                by=("case",),
                only=("start, none", "start, linear", "start, freeze"),
                caption="Gradient norm and held-out text after a start from the expanded base, by warm-up.",
            ),
            Curves(
                name="resume",
                measures=("grad_norm_curve", *curve_names(here.languages)),
                by=("case",),
                only=("resume, moments", "resume, none", "resume, linear", "resume, freeze"),
                caption="Gradient norm and held-out text of a resumed run, with and without its moments, by warm-up.",
            ),
            Dots(
                name="spikes",
                measures=("spike", f"rise_{english}", f"rise_{arabic}"),
                by=("case",),
                caption="Size of the gradient spike, and the rise of bits per byte above step 0.",
            ),
        ),
        claims=(
            _claim("a resume without moments spikes less with a linear warm-up", "resume, linear", "resume, none"),
            _claim("a resume with its moments spikes less than one without", "resume, moments", "resume, none"),
            _claim("a start spikes less with a linear warm-up", "start, linear", "start, none"),
            *(
                Claim(
                    text=f"held-out {name} rises less after a resume without moments with a linear warm-up",
                    measure=f"rise_{key}",
                    of={"case": "resume, linear"},
                    than={"case": "resume, none"},
                )
                for key, name in list(here.languages.items())[:2]
            ),
            *(
                Claim(
                    text=f"at the start a linear warm-up changes the {name} at the end by less than 0.02",
                    measure=f"final_{key}",
                    of={"case": "start, linear"},
                    than={"case": "start, none"},
                    expect="equal",
                    margin=0.02,
                )
                for key, name in list(here.languages.items())[:2]
            ),
        ),
        extend=_restarted if laptop else None,
    )


def _claim(text: str, of: str, than: str) -> Claim:
    return Claim(text=text, measure="spike", of={"case": of}, than={"case": than})


def _cases(here: Setting, *, resumed: str) -> dict[str, dict[str, object]]:
    length = FIRST if here.scale == "laptop" else 200
    warm_ups = {"none": ("linear", 0), "linear": ("linear", length), "freeze": ("freeze", length)}
    # Data can continue only with the seed of the resumed run, and at the paper's scale the seed varies.
    resume = {here.key("init.weights"): resumed, here.key("init.data"): here.scale == "laptop"}
    return {
        **{f"start, {name}": _warm_up(here, *how) for name, how in warm_ups.items()},
        "resume, moments": resume | _warm_up(here, "linear", 0) | {here.key("init.optimizer"): True},
        **{f"resume, {name}": resume | _warm_up(here, *how) for name, how in warm_ups.items()},
    }


def _warm_up(here: Setting, mode: str, steps: int) -> dict[str, object]:
    return {here.key("optimizer.rewarm_mode"): mode, here.key("optimizer.rewarm_steps"): steps}


def _paper_budget(here: Setting) -> Choices:
    """The budget, with every update logged: the config logs one of ten, which may miss a spike."""
    (budget,) = here.budget(10e9)
    return always({**budget.overrides, here.key("train.log_every"): 1})


def _restarted(recipe: ConfigDict) -> dict[str, ConfigDict]:
    config = continuing(weights="@expand/weights", steps=100)
    config.eval.every = 5
    return {"restarted": config}
