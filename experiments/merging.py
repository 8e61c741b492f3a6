"""Whether merging checkpoints helps, and whether it can replace a decay (the talk: "model merging works, but").

    python run.py --sweep experiments/merging.py --jobs 2

The claims: the average of the last checkpoints of a constant run is better than the last one. The average of decayed
branches is better than one branch. Checkpoints with the weights that a decay of the learning rate would give to the
updates between them (WSM, 2507.17634; docs/merging.md) come close to a real decay, without training.

The trunk is that of wsd_release: 300 steps at a constant rate with a checkpoint every 20. Arms: its last checkpoint;
averages of the last 2, 3 and 6; WSM over the last 6 (steps 200 to 300) for three shapes; two real decays of 100 steps
from step 200 (1 - sqrt), one on the trunk's next data and one on data in another order; the average of these two. Only
the last three train more than the trunk. All arms have seen the same number of tokens, except the average of the
decays, which has seen one more decay.

Laptop: 900 steps of trunk, 600 of decays, and 30 merges and evaluations (27 runs), 6 minutes with `--jobs 2` on two
cores, bases included. wsd_release shares the trunk, and all experiments share the bases. Paper (`:paper`): 34B,
checkpoints of `runs/allam_34b` every 20,000 steps, against the release in `runs/release` and a second one in
`runs/release_2`.
"""

from typing import Any

from ml_collections import ConfigDict

from allam_jax.ablation.claims import Claim
from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.figures import Dots
from allam_jax.ablation.languages import BITS
from allam_jax.ablation.measures import result
from allam_jax.ablation.vary import arms, grid, seeds
from configs import base, bilingual
from experiments.settings import CODE, every_seed, setting
from experiments.trunk import EVERY, TRUNK_STEPS, checkpoint, trunk

LAST, DECAY, DECAY_2, BRANCHES = "last checkpoint", "real decay", "real decay 2", "average of decays"
AVERAGES = {f"average of {count}": count for count in (2, 3, 6)}
SHAPES = ("one_minus_sqrt", "linear", "cosine")
WSM = {shape: f"WSM {shape}" for shape in SHAPES}
MERGED = 6  # checkpoints at most
START = TRUNK_STEPS - (MERGED - 1) * EVERY  # step of the first merged checkpoint, where the decays start
ANOTHER_ORDER = 1000  # seed of the data of the second decay
PAPER_STEPS = tuple(range(380_000, 480_001, 20_000))


def get_experiment(scale: str = "laptop") -> Experiment:
    """The experiment at a `scale`: laptop or paper."""
    here = setting(scale, config="configs/allam_34b.py")
    laptop = here.scale == "laptop"
    languages = dict(here.languages) | ({"code": CODE} if laptop else {})
    run = "@trunk" if laptop else "runs/allam_34b"
    steps = tuple(range(START, TRUNK_STEPS + 1, EVERY)) if laptop else PAPER_STEPS
    decays = ("@decay", "@decay_2") if laptop else ("runs/release", "runs/release_2")
    return Experiment(
        title="Merging checkpoints",
        claim="Averages of checkpoints and of decayed branches beat a single one, and checkpoints weighted like a "
        "decay come close to a real one (the talk; WSM, 2507.17634).",
        config=here.config,
        vary=grid(
            arms("model", **_models(run=run, steps=steps, decays=decays)),
            # At the paper's scale nothing in these stages is random.
            every_seed("trunk", "decay") if laptop else seeds(0, keys=()),
        ),
        measures=tuple(
            result(f"final_{key}", path=f"{key}/bits_per_byte", stage="evaluated", title=name, unit=BITS)
            for key, name in languages.items()
        ),
        figures=(
            Dots(
                name="models",
                measures=tuple(f"final_{key}" for key in languages),
                by=("model",),
                caption="Bits per byte of held-out text: single checkpoints, merges, and real decays.",
            ),
        ),
        claims=tuple(
            claim
            for key, name in list(languages.items())[:2]
            for claim in (
                _claim(f"{name}: the average of 6 beats the last checkpoint", key, "average of 6", LAST),
                _claim(f"{name}: the average of two decays beats the first", key, BRANCHES, DECAY),
                _claim(f"{name}: WSM for 1 - sqrt beats the last checkpoint", key, WSM["one_minus_sqrt"], LAST),
                Claim(
                    text=f"{name}: WSM for 1 - sqrt is within 0.02 of a real decay",
                    measure=f"final_{key}",
                    of={"model": WSM["one_minus_sqrt"]},
                    than={"model": DECAY},
                    expect="equal",
                    margin=0.02,
                ),
            )
        ),
        extend=_laptop_stages if laptop else _paper_stages,
    )


def _claim(text: str, key: str, of: str, than: str) -> Claim:
    return Claim(text=text, measure=f"final_{key}", of={"model": of}, than={"model": than})


def _models(*, run: str, steps: tuple[int, ...], decays: tuple[str, str]) -> dict[str, dict[str, Any]]:
    """Arm -> overrides that select the evaluated model and the models that are merged into it."""
    evaluated = "stage.evaluated.init.weights"
    first, second = decays

    def merge(models: dict[str, ConfigDict], **options: str) -> dict[str, Any]:
        named = {f"stage.merged.{key}": value for key, value in options.items()}
        return {"stage.merged.merge.models": ConfigDict(models), evaluated: "@merged/orbax"} | named

    def checkpoints(count: int) -> dict[str, ConfigDict]:
        return {"trunk": base.merge_input(path=run, steps=steps[-count:])}

    return {
        LAST: {evaluated: f"{run}/{checkpoint(steps[-1])}"},
        **{name: merge(checkpoints(count)) for name, count in AVERAGES.items()},
        **{
            name: merge(checkpoints(MERGED), **{"merge.method": "decay", "merge.decay_shape": shape})
            for shape, name in WSM.items()
        },
        DECAY: {evaluated: first},
        DECAY_2: {evaluated: second},
        BRANCHES: merge({"first": base.merge_input(path=first), "second": base.merge_input(path=second)}),
    }


def _laptop_stages(recipe: ConfigDict) -> dict[str, ConfigDict]:
    stages = {"trunk": trunk()}
    for name in ("decay", "decay_2"):
        stages[name] = trunk()
        stages[name].init.update(weights=f"@trunk/{checkpoint(START)}", optimizer=True, step=True)
        stages[name].checkpoint.update(every=0, keep_every=0)
        stages[name].schedule.update(name="wsd", decay_start=START, decay_steps=TRUNK_STEPS - START)
    stages["decay"].init.data = True
    stages["decay_2"].seed = ANOTHER_ORDER
    evaluated = base.get_config("evaluate")
    evaluated.eval.seq_len = stages["trunk"].data.seq_len
    bilingual.hold_out(evaluated)
    evaluated.eval.sources.code = base.mixture(path="@corpus/code", split="validation")
    return stages | {"merged": _merged(), "evaluated": evaluated}


def _paper_stages(recipe: ConfigDict) -> dict[str, ConfigDict]:
    """Evaluates on what the run evaluates on, on as many devices."""
    evaluated = base.get_config("evaluate")
    for section in ("eval", "mesh", "compute"):
        evaluated[section] = recipe[section].copy_and_resolve_references()
    evaluated.eval.seq_len = recipe.data.seq_len
    return {"merged": _merged(), "evaluated": evaluated}


def _merged() -> ConfigDict:
    config = base.get_config("merge")
    config.export.formats = ("orbax",)
    return config
