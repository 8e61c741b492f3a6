"""From an experiment to runs and jobs."""

import functools
import importlib
import itertools
import json
import re
from pathlib import Path

import pytest

from allam_jax.ablation.experiment import Experiment, load_experiment
from allam_jax.ablation.measures import metric, result
from allam_jax.ablation.vary import arms, grid, param, seeds
from allam_jax.config import flatten
from allam_jax.errors import UserError
from allam_jax.launch.jobs import plan_jobs
from allam_jax.launch.runs import expand_runs
from allam_jax.settings import as_dict
from configs import base, posttrain, saved, tiny

FINAL = metric("bits", key="eval/held_out/ar/bits_per_byte", stage="continued", title="Arabic", unit="bits/byte")
METHODS = param("stage.expand.expand.method", "random", "subword_mean")


def runs_of(vary, *, config=None, measures=(FINAL,), extend=None, overrides=None, tmp_path):
    experiment = Experiment(title="", claim="", config="", vary=vary, measures=measures, extend=extend)
    config = config or tiny.get_config()
    return expand_runs(experiment, config, workdir=tmp_path, store=tmp_path / "stages", overrides=overrides or {})


def test_two_arms_that_differ_in_one_key_have_configs_that_differ_in_that_key_alone(tmp_path):
    runs = runs_of(grid(METHODS, seeds(0, 1, keys=("stage.continued.seed",))), tmp_path=tmp_path)
    for run in runs:
        run.save()
    written = [flatten(json.loads((tmp_path / "runs" / run.name / "recipe.json").read_text())) for run in runs]
    differing = [
        {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
        for one, other in itertools.combinations(written, 2)
    ]
    method, seed = "stage.expand.expand.method", "stage.continued.seed"
    assert differing == [{seed}, {method}, {method, seed}, {method, seed}, {method}, {seed}]
    assert written[0][method] == "random"
    assert written[2][method] == "subword_mean"


def test_the_base_config_is_not_changed(tmp_path):
    config = tiny.get_config()
    before = config.to_json()
    runs_of(METHODS, config=config, overrides={"stage.base.train.steps": 3}, tmp_path=tmp_path)
    assert config.to_json() == before


def test_a_saved_recipe_is_read_back_as_it_was(tmp_path):
    (run, _) = runs_of(METHODS, tmp_path=tmp_path)
    run.save()
    again = saved.get_config(str(tmp_path / "runs" / run.name / "recipe.json"))
    assert as_dict(again) == as_dict(run.config)
    assert {key: type(value) for key, value in flatten(again.to_dict()).items()} == {
        key: type(value) for key, value in flatten(run.config.to_dict()).items()
    }


def test_only_stages_that_measures_need_are_run(tmp_path):
    fertility = result("arabic", path="fertility/merged/ar/tokens_per_word", stage="merged_tokenizer", title="")
    (run,) = runs_of(arms("all", one={}), measures=(fertility,), tmp_path=tmp_path)
    assert [stage.name for stage in run.stages] == ["corpus", "base_tokenizer", "arabic_tokenizer", "merged_tokenizer"]


def test_a_single_task_becomes_a_recipe_of_one_stage(tmp_path):
    config = base.get_config("train")
    loss = metric("loss", key="loss", title="Loss")
    runs = runs_of(param("stage.train.train.steps", 1, 2), config=config, measures=(loss,), tmp_path=tmp_path)
    assert [stage.name for stage in runs[0].stages] == ["train"]
    assert [run.config.stage.train.train.steps for run in runs] == [1, 2]


def test_an_experiment_can_add_stages(tmp_path):
    def extend(config):
        branch = config.stage.continued.copy_and_resolve_references()
        branch.init.weights = "@continued"
        return {"branch": branch}

    measure = metric("loss", key="loss", stage="branch", title="Loss")
    vary = param("stage.branch.schedule.decay_shape", "linear", "cosine")
    runs = runs_of(vary, measures=(measure,), extend=extend, overrides={"stage.branch.seed": 9}, tmp_path=tmp_path)
    assert [run.config.stage.branch.schedule.decay_shape for run in runs] == ["linear", "cosine"]
    assert [run.config.stage.branch.seed for run in runs] == [9, 9]
    jobs = plan_jobs(runs, folder=tmp_path, environment={})
    assert [stage.name for job in jobs for stage in job.stages].count("continued") == 1


def test_runs_that_come_out_the_same_are_told(tmp_path):
    with pytest.raises(UserError, match=r"runs 'a--seed-1' and 'a--seed-2' are the same"):
        runs_of(grid(arms("arm", a={}), param("stage.continued.plan.nodes", 1, 2, name="seed")), tmp_path=tmp_path)


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (
            param("stage.expand.expand.metod", "a"),
            "run a: the config has no key .* did you mean 'stage.expand.expand.m",
        ),
        (
            param("stage.base.train.steps", 0),
            "run steps-0: config.train.steps = 0: expected a whole",
        ),
        (param("stage.expand.init.weights", "@bse"), "no earlier stage is called 'bse'"),
    ],
)
def test_what_cannot_run_is_told_before_anything_does(vary, message, tmp_path):
    with pytest.raises(UserError, match=message):
        runs_of(vary, tmp_path=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_jobs_compute_every_stage_once_and_in_order(tmp_path):
    vary = grid(METHODS, seeds(0, 1, 2, keys=("stage.base.seed", "stage.expand.seed", "stage.continued.seed")))
    runs = runs_of(vary, tmp_path=tmp_path)
    jobs = plan_jobs(runs, folder=tmp_path, environment={})
    directories = [directory for job in jobs for directory in job.directories]
    assert len(directories) == len(set(directories)) == 4 + 3 + 2 * 6
    assert set(directories) == {directory for run in runs for directory in run.directories.values()}
    assert [(len(job.runs), len(job.stages)) for job in jobs] == [(6, 4), (2, 1), (2, 1), (2, 1)] + [(1, 2)] * 6
    done = set()
    for job in jobs:
        assert set(job.after) <= {earlier.name for earlier in jobs[: jobs.index(job)]}
        reads = {job.run.directories[used] for stage in job.stages for used in stage.uses}
        done |= set(job.directories)
        assert reads <= done
        # What it reads comes from the jobs that it waits for, and from itself.
        waited = {d for other in jobs if other.name in job.after for d in other.directories}
        assert reads <= waited | set(job.directories)


EXPERIMENT = """
from allam_jax.ablation.claims import Claim
from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.figures import Dots
from allam_jax.ablation.measures import metric
from allam_jax.ablation.vary import grid, param, seeds

def get_experiment({parameters}):
    return Experiment(
        title="", claim="", config="",
        vary=grid(param("stage.train.train.steps", 1, 2), seeds(0, 1)),
        measures=(metric("loss", key="loss", title="Loss"),),
        figures=(Dots(name="dots", measures=("{figure}",), by=("{axis}",), caption=""),),
        claims=(Claim(text="less", measure="{claim}", of={{"steps": {of}}}, than={{"steps": 1}}),),
    )
"""
GOOD = {"parameters": "", "figure": "loss", "axis": "steps", "claim": "loss", "of": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"figure": "los"}, r"figure 'dots': no measure is called 'los'; did you mean loss"),
        ({"axis": "step"}, r"figure 'dots': no axis is called 'step'; did you mean steps"),
        ({"claim": "lost"}, r"claim 'less': no measure is called 'lost'; did you mean loss"),
        ({"of": 3}, r"claim 'less': {'steps': 3} matches 0 arms; expected exactly one"),
        ({"parameters": "x"}, r"line \d+: TypeError: get_experiment\(\) missing|TypeError: get_experiment\(\) missing"),
        ({"of": "unknown"}, r"experiment\.py, line 14: NameError: name 'unknown' is not defined"),
    ],
)
def test_mistakes_of_an_experiment_file_are_told(change, message, tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(EXPERIMENT.format(**GOOD))
    assert len(load_experiment(str(path)).vary) == 4
    path.write_text(EXPERIMENT.format(**GOOD | change))
    with pytest.raises(UserError, match=message):
        load_experiment(str(path))


def test_an_experiment_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no such file; the experiments that come with allam_jax are in experiments/"):
        load_experiment(str(tmp_path / "nope.py"))


def test_the_example_of_the_page_is_an_experiment(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    imports = (
        "from allam_jax.ablation.claims import Claim\nfrom allam_jax.ablation.experiment import Experiment\n"
        "from allam_jax.ablation.figures import *\nfrom allam_jax.ablation.measures import *\n"
        "from allam_jax.ablation.vary import *\n"
    )
    (tmp_path / "example.py").write_text(imports + example, encoding="utf-8")
    experiment = load_experiment(str(tmp_path / "example.py"))
    runs = expand_runs(experiment, tiny.get_config(), workdir=tmp_path, store=tmp_path / "stages", overrides={})
    assert len(runs) == 9


EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SHARED = ("settings", "trunk", "posttraining")  # what several experiments share
TUNING = ("dpo_beta", "empty_replies", "flipped_pairs", "rejection_source", "sft_data_amount", "text_replay")
TUNING = (*TUNING, "turn_augmentation")  # on fine-tuning; all others are on pre-training
ALL = sorted(path for path in EXPERIMENTS.glob("*.py") if path.stem not in SHARED)
TUNED = [path for path in ALL if path.stem in TUNING]
REWRITTEN = [path for path in ALL if path.stem == "native_alignment"]  # its documents exist at one scale
PRETRAINED = [path for path in ALL if path not in (*TUNED, *REWRITTEN)]


@functools.cache
def runs_of_experiment(path, *, arg=""):
    """The experiment and its runs, in folders that nothing writes."""
    experiment = load_experiment(f"{path}{arg and ':'}{arg}")
    file, _, config_arg = experiment.config.partition(":")
    module = importlib.import_module(f"configs.{Path(file).stem}")
    config = module.get_config(config_arg) if config_arg else module.get_config()
    nowhere = Path("nowhere")
    return experiment, expand_runs(experiment, config, workdir=nowhere, store=nowhere / "stages", overrides={})


def test_all_experiments_are_there():
    assert (len(PRETRAINED), len(TUNED), len(REWRITTEN)) == (10, 7, 1)


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_every_experiment_fits_its_config(path):
    experiment, runs = runs_of_experiment(path)
    seeds_of = {run.labels.get("seed") for run in runs}
    assert len(seeds_of) >= 3
    assert experiment.claims
    assert experiment.figures
    arms_of = {tuple(run.labels[axis] for axis in experiment.axes) for run in runs}
    assert len(runs) == len(arms_of) * len(seeds_of)
    for figure in experiment.figures:
        shown = getattr(figure, "only", ())
        assert set(shown) <= {run.labels[figure.axis_names[0]] for run in runs}


@pytest.mark.parametrize("path", PRETRAINED, ids=lambda p: p.stem)
def test_every_experiment_has_a_paper_scale(path):
    experiment, runs = runs_of_experiment(path, arg="paper")
    _, small = runs_of_experiment(path)
    assert {claim.measure for claim in experiment.claims}
    assert max(map(tokens_of, runs)) > 1000 * max(map(tokens_of, small)) or path.stem in TOKENLESS
    with pytest.raises(UserError, match="huge: expected laptop or paper"):
        load_experiment(f"{path}:huge")


def test_what_tiny_models_left_open_has_the_scale_of_a_real_one(monkeypatch):
    monkeypatch.setattr("allam_jax.corpus.catalog.asset_file", lambda name: Path(f"nowhere/{name}.gguf"))
    runs_of = {}
    for path in PRETRAINED:
        if path.stem in ("language_mix", "dropout", "learning_rate"):
            _, runs = runs_of_experiment(path, arg="smollm2")
            runs_of[path.stem] = len(runs)
            for run in runs:
                trained = run.stages[-1].config
                assert (trained.task, trained.train.steps, trained.optimizer.average_decay) == ("train", 250, 0.0)
                assert trained.seed == run.labels["seed"]
                assert sum(source.weight for source in trained.data.sources.values()) == pytest.approx(1)
    assert runs_of == {"language_mix": 12, "dropout": 10, "learning_rate": 8}
    shared = {stage.fingerprint for run in runs for stage in run.stages if stage.name.startswith("expanded")}
    assert len(shared) == 1


# At the paper's scale these train nothing, or take stages of a recipe that the user gives.
TOKENLESS = ("fertility", "merging", "embedding_init")


def tokens_of(run):
    return max((s.config.train.steps * s.config.data.batch_size * s.config.data.seq_len
                for s in run.stages if s.config.task == "train"), default=0)  # fmt: skip


def test_experiments_share_their_first_stages():
    """The bases are trained once for all of them."""
    bases = {}
    for path in PRETRAINED:
        _, runs = runs_of_experiment(path)
        for run in runs:
            found = [stage.fingerprint for stage in run.stages if stage.name == "base"]
            if found:
                bases.setdefault(run.labels["seed"], set()).update(found)
    assert sorted(bases) == [0, 1, 2]
    assert all(len(fingerprints) == 1 for fingerprints in bases.values())


# What an arm changes of a run that changes nothing: keys of stages, without their seeds.
CHANGED = {
    "dpo_beta": {"aligned.dpo.beta"},
    "empty_replies": {"damaged.damage_chats.kinds", "damaged.damage_chats.share", "tuned.conversations.sources.*.path"},
    "flipped_pairs": {"aligned.conversations.sources.pairs.path", "damaged_pairs.damage_chats.share"},
    "rejection_source": {"sampled.init.weights", "aligned.conversations.epochs", "aligned.train.steps"},
    "sft_data_amount": {
        *(f"damaged.damage_chats.{key}" for key in ("kinds", "share")),
        *("part.damage_chats.kept", "part.damage_chats.sources.*.path", "tuned.conversations.sources.*.path"),
    },
    "text_replay": {"tuned.replay.*", "tuned.schedule.peak_lr"},
    "turn_augmentation": {"tuned.sft.learned"},
}
FIRST = ("instructed", "instructions", "quality")  # what all experiments on fine-tuning begin with


@pytest.mark.parametrize("path", TUNED, ids=lambda p: p.stem)
def test_arms_of_fine_tuning_differ_in_what_they_state_and_share_the_rest(path):
    experiment, runs = runs_of_experiment(path)
    recipe = posttrain.get_config(experiment.config.partition(":")[2])
    plain = experiment.extend(recipe)
    changed = set()
    for run in runs:
        stages = {stage.name: stage for stage in run.stages}
        for name, config in plain.items():
            if name in stages:
                before, after = flatten(config.to_dict()), flatten(stages[name].config.to_dict())
                keys = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
                changed |= {re.sub(r"sources\.(en|ar)\.path", "sources.*.path", f"{name}.{key}") for key in keys}
    changed = {re.sub(r"replay\.\w+(\..*)?$", "replay.*", key) for key in changed if not key.endswith(".seed")}
    assert changed == CHANGED[path.stem]
    # One base, one set of instructions, and one model before DPO of each seed, whatever the arm.
    for name in FIRST:
        assert len({stage.fingerprint for run in runs for stage in run.stages if stage.name == name}) == 1
    seed_of = {stage.fingerprint: run.labels["seed"] for run in runs for stage in run.stages if stage.name == "tuned"}
    assert sorted(set(seed_of.values())) == [0, 1, 2]
    if any(stage.name == "aligned" for stage in runs[0].stages):
        assert len(seed_of) == 3


def test_experiments_on_fine_tuning_share_what_changes_nothing():
    first, unchanged = {}, {}
    for path in TUNED:
        _, runs = runs_of_experiment(path)
        for run in runs:
            for stage in run.stages:
                if stage.name in FIRST:
                    first.setdefault(stage.name, set()).add(stage.fingerprint)
                elif run.labels["seed"] == 0 and stage.name == "tuned":
                    unchanged.setdefault(stage.fingerprint, set()).add(path.stem)
    assert {name: len(found) for name, found in first.items()} == dict.fromkeys(FIRST, 1)
    # All but the one whose conversations are damaged throughout have the recipe's own fine-tuning as an arm.
    assert set(TUNING) - {"sft_data_amount"} in unchanged.values()


def test_experiments_on_fine_tuning_have_the_scale_of_a_real_model():
    for path in TUNED:
        if path.stem in ("dpo_beta", "turn_augmentation"):
            _, runs = runs_of_experiment(path, arg="smollm2")
        assert {run.labels["seed"] for run in runs} == {0, 1}
        assert runs[0].config.stage.constant.init.weights == "runs/smollm2_arabic/export/huggingface"
        assert "base" not in runs[0].config.stages
    with pytest.raises(UserError, match="huge: expected laptop or smollm2"):
        load_experiment(f"{TUNED[0]}:huge")


def test_the_example_of_the_page_is_a_whole_experiment_file(tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "sweeps.md").read_text()
    (tmp_path / "example.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    experiment = load_experiment(str(tmp_path / "example.py"))
    runs = expand_runs(experiment, tiny.get_config(), workdir=tmp_path, store=tmp_path / "stages", overrides={})
    assert [run.name for run in runs[:4]] == [*(f"lr-0.0001--seed-{seed}" for seed in (0, 1, 2)), "lr-0.0003--seed-0"]
