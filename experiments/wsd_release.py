"""How to release a model from a run that never decays (the talk: how the 34B is trained).

    python run.py --sweep experiments/wsd_release.py --jobs 2

The claims: a run at a large constant learning rate can be released at any point by a branch with a short decay (WSD) on
good data. Afterwards the run continues from the checkpoint before the decay, at the constant rate. That is better than
continuing from the released model, since "once the learning rate went down, it is very difficult to ramp up".

The trunk continues the expanded base at a constant 1e-3 on 40 % English, 35 % Arabic and 25 % code for 300 steps.
Branches from it (init.optimizer, init.step, init.data; docs/training.md) have 60 steps unless stated otherwise:

    constant              the trunk, continued: the rival of every release, and the run after a release
    constant, longer      the same for 120 steps
    at 100, at 200        a decay (1 - sqrt) from an earlier checkpoint
    1 - sqrt, linear, cosine, exponential     shapes, from step 300 (exponential down to 1 %, the others to 0)
    30 steps, 120 steps   lengths (1 - sqrt)
    midtraining           a decay on English and Arabic alone, the talk's first choice of data
    + instructions        the same with a fifth of instructions, its second choice ("+ SFT data")
    from release          the constant rate again for 60 steps, from the released model (1 - sqrt at 300). The arm
                          `constant, longer` has equally many updates in all, and `constant` since the release.

The laptop's instructions are requests to translate Bible verses between the two languages, made from other data as in
FLAN and xP3; the catalog has no others. Bits per byte of held-out instructions measure how well they are learnt.

Laptop: 900 steps of trunk and 2,790 of branches (39 runs), 11 minutes with `--jobs 2` on two cores, bases included.
merging shares the trunk, and all experiments share the bases. Paper (`:paper`): 34B from the checkpoints of
`runs/allam_34b`, decays of 42B tokens. The mid-training data is what the trunk reads; the user gives the instructions,
`corpus/instructions`.
"""

from typing import Any

from ml_collections import ConfigDict

from allam_jax.ablation.claims import Claim
from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.figures import Curves, Dots
from allam_jax.ablation.languages import bits_curves, curve_names, final_bits, final_names
from allam_jax.ablation.vary import arms, grid
from configs import allam, allam_34b, base
from experiments.settings import CODE, Setting, every_seed, replaced, setting
from experiments.trunk import DECAY_STEPS, EVERY, TRUNK_STEPS, checkpoint, decaying, going_on, trunk

CONSTANT, RELEASE, MIDTRAINING, RETURNED = "constant", "1 - sqrt", "midtraining", "from release"
LONGER = "constant, longer"
INSTRUCTED = "+ instructions"
INSTRUCTIONS = {"instructions": "Instructions"}
POINTS = {"at 100": 100, "at 200": 200}
SHAPES = {RELEASE: "one_minus_sqrt", "linear": "linear", "cosine": "cosine", "exponential": "exponential"}
LENGTHS = {"30 steps": 30, "120 steps": 120}
PAPER_INSTRUCTED = {name: 0.9 * weight for name, weight in allam.MIXED.items()} | {"instructions": 0.1}
PAPER_POINTS = {"at 240,000": 240_000, "at 360,000": 360_000}


def get_experiment(scale: str = "laptop") -> Experiment:
    """The experiment at a `scale`: laptop or paper."""
    here = setting(scale, stage="release", config="configs/allam_34b.py")
    laptop = here.scale == "laptop"
    languages = dict(here.languages) | ({"code": CODE} if laptop else {})
    cases = _laptop_arms(here) if laptop else _paper_arms(here)
    # Every arm also has `released`, but only the arm that continues from it has its steps in the curve.
    stages = ("trunk", "released", "release") if laptop else ("train",)
    first_two = list(languages.items())[:2]
    without = MIDTRAINING if laptop else RELEASE
    return Experiment(
        title="Releases from a constant run (WSD)",
        claim="A short decay that branches off a constant run gives a better model at any point, good data improve it "
        "further, and the run continues from before the decay (the talk).",
        config=here.config,
        vary=grid(arms("branch", **cases), every_seed("trunk", "released", "release") if laptop else here.seeds),
        measures=(*final_bits(here.stage, languages | INSTRUCTIONS), *bits_curves(stages, languages)),
        figures=tuple(
            Curves(name=name, measures=curve_names(languages), by=("branch",), log_steps=False, only=shown,
                   from_step=first_step if laptop else 0, caption=caption)
            for name, first_step, shown, caption in (
                ("points", 80, (CONSTANT, *(name for name in cases if name.startswith("at ")), RELEASE),
                 "Held-out text along the trunk and along decays that branch off at several points."),
                ("shapes", TRUNK_STEPS - EVERY, (CONSTANT, *SHAPES), "Shapes of the decay."),
                ("lengths", TRUNK_STEPS - EVERY,
                 (CONSTANT, RELEASE, *(name for name in cases if name.endswith(" steps"))),
                 "Lengths of the decay."),
                ("data", TRUNK_STEPS - EVERY,
                 tuple(name for name in (LONGER, RELEASE, MIDTRAINING, INSTRUCTED, RETURNED) if name in cases),
                 "A decay on mid-training data, and a constant rate after a release."),
            )
        ) + (
            Dots(name="end", measures=final_names(languages | INSTRUCTIONS), by=("branch",),
                 caption="Held-out text at the end of each branch."),
        ),
        claims=(
            *(
                Claim(text=f"a decay ends with fewer bits per byte of {name} than the constant run of the same tokens",
                      measure=f"final_{key}", of={"branch": RELEASE}, than={"branch": CONSTANT})
                for key, name in first_two
            ),
            *(
                Claim(text=f"a decay on English and Arabic alone ends with fewer bits per byte of {name}",
                      measure=f"final_{key}", of={"branch": MIDTRAINING}, than={"branch": RELEASE})
                for key, name in first_two
                if MIDTRAINING in cases
            ),
            Claim(text="a decay with instructions ends with fewer bits per byte of held-out instructions than without",
                  measure="final_instructions", of={"branch": INSTRUCTED}, than={"branch": without}),
            *(
                Claim(text=f"a decay with instructions ends within 0.02 of the {name} of one without",
                      measure=f"final_{key}", of={"branch": INSTRUCTED}, than={"branch": without}, expect="equal",
                      margin=0.02)
                for key, name in first_two
            ),
            *(
                Claim(text=f"with equally many updates {case}, the trunk has fewer bits per byte of {name} than the "
                           "run that continued from the release",
                      measure=f"final_{key}", of={"branch": trunk_arm}, than={"branch": RETURNED})
                for case, trunk_arm in (("in all", LONGER), ("since the release", CONSTANT))
                for key, name in first_two
            ),
        ),
        extend=_stages if laptop else None,
    )  # fmt: skip


def _laptop_arms(here: Setting) -> dict[str, dict[str, Any]]:
    midtraining = {here.key("data.sources"): replaced({"en": 0.55, "ar": 0.45})}
    shares = {"en": 0.45, "ar": 0.35, "instructions": 0.2}
    instructed = {here.key("data.sources"): replaced(shares, corpus={"instructions": "requests"})}
    return {
        CONSTANT: going_on(here, steps=TRUNK_STEPS + DECAY_STEPS),
        LONGER: going_on(here, steps=TRUNK_STEPS + 2 * DECAY_STEPS),
        **{name: decaying(here, start=start) for name, start in POINTS.items()},
        **{name: decaying(here, shape=shape) for name, shape in SHAPES.items()},
        **{name: decaying(here, steps=steps) for name, steps in LENGTHS.items()},
        MIDTRAINING: decaying(here) | midtraining,
        INSTRUCTED: decaying(here) | instructed,
        RETURNED: going_on(here, steps=TRUNK_STEPS + 2 * DECAY_STEPS) | {here.key("init.weights"): "@released"},
    }


def _paper_arms(here: Setting) -> dict[str, dict[str, Any]]:
    start, steps = allam_34b.RELEASE_STEP, allam_34b.DECAY_STEPS

    def branch(**changes: Any) -> dict[str, Any]:
        arguments = {"start": start, "steps": steps, "shape": "one_minus_sqrt"} | changes
        run = "runs/allam_34b"
        return decaying(here, **arguments) | {
            here.key("init.weights"): f"{run}/{checkpoint(arguments['start'])}",
            here.key("init.optimizer"): True,
            here.key("init.step"): True,
            here.key("eval.sources"): _paper_sources(PAPER_INSTRUCTED, split="validation"),
        }

    constant = {here.key("schedule.name"): "constant"}
    return {
        CONSTANT: branch() | constant,
        LONGER: branch() | constant | {here.key("train.steps"): start + 2 * steps},
        **{name: branch(start=point) for name, point in PAPER_POINTS.items()},
        **{name: branch(shape=shape) for name, shape in SHAPES.items()},
        **{f"{length:,} steps": branch(steps=length) for length in (steps // 2, 2 * steps)},
        INSTRUCTED: branch() | {here.key("data.sources"): _paper_sources(PAPER_INSTRUCTED)},
        RETURNED: branch()
        | constant
        | {here.key("init.weights"): "runs/release", here.key("train.steps"): start + 2 * steps},
    }


def _paper_sources(weights: dict[str, float], **values: str) -> ConfigDict:
    return ConfigDict(
        {name: base.mixture(path=f"corpus/{name}", weight=weight, **values) for name, weight in weights.items()}
    )


def _stages(recipe: ConfigDict) -> dict[str, ConfigDict]:
    """The instructions, the trunk, the release that one arm goes on from, and the branch that varies."""
    requests = base.get_config("corpus")
    requests.corpus.sources.instructions = base.documents(
        catalog="bible_requests", max_bytes=2_000_000, validation_share=0.03
    )
    stages = {"requests": requests, "trunk": trunk()}
    for name in ("released", "release"):
        stages[name] = trunk()
        stages[name].init.update(weights=f"@trunk/{checkpoint(TRUNK_STEPS)}", optimizer=True, step=True, data=True)
        stages[name].checkpoint.update(every=0, keep_every=0)
        stages[name].train.steps = TRUNK_STEPS + DECAY_STEPS
    stages["release"].eval.sources.instructions = base.mixture(path="@requests/instructions", split="validation")
    stages["released"].schedule.update(name="wsd", decay_start=TRUNK_STEPS, decay_steps=DECAY_STEPS)
    return stages
