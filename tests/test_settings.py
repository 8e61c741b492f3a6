"""What a config accepts, which task reads what of it, and what makes a finished stage another one."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from allam_jax.errors import UserError
from allam_jax.files import sha256_of_json
from allam_jax.settings import LARGEST_INT, Section, as_dict, changed, entries, nested, read, setting
from allam_jax.tasks import config_help, registry, runner
from allam_jax.tasks.registry import TASKS, Task, changed_settings, settings_of
from allam_jax.training.settings import MetricsSettings
from configs import base, quickstart

ROOT = Path(__file__).resolve().parent.parent
EVERY_SECTION = sorted({cls for row in TASKS.values() for cls in row.sections}, key=lambda cls: cls.__name__)


class Inner(Section):
    """An entry."""

    weight: float = setting(1.0, "relative", least=0)
    names: tuple[str, ...] = setting((), "some of a and b", choices=("a", "b"))


class Outer(Section, name="outer"):
    """A section."""

    steps: int = setting(3, "updates", least=1)
    share: float = setting(0.5, "of the whole", above=0, below=1)
    much: float = setting(1.0, "as much as you like", least=0)
    mode: str = setting("fast", "how", choices=("fast", "slow"))
    on: bool = setting(True, "whether")
    inner: Inner = nested(Inner, "a section of its own")


def test_values_are_checked_wherever_a_section_is_made():
    for values, message in (
        ({"steps": 0}, "config.outer.steps = 0: expected a whole number, at least 1"),
        ({"steps": 2.0}, "config.outer.steps = 2.0: expected a whole number, at least 1"),
        ({"steps": True}, "config.outer.steps = True: expected a whole number, at least 1"),
        ({"steps": LARGEST_INT + 1}, f"config.outer.steps = {LARGEST_INT + 1}: expected a whole number, at most"),
        ({"share": 1}, "config.outer.share = 1: expected a number, above 0, below 1"),
        ({"share": float("nan")}, "config.outer.share = nan: expected a number, above 0, below 1, and a finite one"),
        ({"share": 1e-40}, "config.outer.share = 1e-40: expected a number, above 0, below 1, and none that float32"),
        ({"much": 1e300}, "config.outer.much = 1e+300: expected a number, at least 0, and none that float32"),
        ({"share": "x"}, "config.outer.share = 'x': expected a number"),
        ({"mode": "Fast"}, "config.outer.mode = 'Fast': expected one of 'fast', 'slow'"),
        ({"on": 1}, "config.outer.on = 1: expected True or False"),
    ):
        with pytest.raises(UserError) as error:
            Outer(**values)
        assert str(error.value).startswith(message)
        with pytest.raises(UserError) as error:
            read(Outer, values, where="outer")
        assert str(error.value).startswith(message)


@pytest.mark.parametrize("steps", [(3,), (3, 3), (0, 2), (1, 2, 3)])
def test_steps_that_cannot_be_profiled_are_refused(steps):
    with pytest.raises(UserError, match="config.metrics.profile_steps = "):
        MetricsSettings(profile_steps=steps)


def test_errors_name_the_whole_key():
    class Sources(Section, name="data"):
        """Named entries."""

        sources: Mapping[str, Inner] = entries("what is read")

    for values, message in (
        ({"inner": {"weight": -1}}, "config.outer.inner.weight = -1: expected a number, at least 0"),
        ({"inner": {"names": ["c"]}}, "config.outer.inner.names = ('c',): expected a tuple of 'a', 'b'"),
        ({"inner": {"wieght": 1}}, "config.outer.inner.wieght: no such key; did you mean weight?"),
        ({"inner": 3}, "config.outer.inner = 3: expected a section with the keys weight, names"),
    ):
        with pytest.raises(UserError) as error:
            read(Outer, values, where="outer")
        assert str(error.value) == message
    with pytest.raises(UserError, match=r"^config\.data\.sources\.ar\.weight = -2: expected"):
        read(Sources, {"sources": {"ar": {"weight": -2}}}, where="data")


def test_a_key_cannot_be_forgotten():
    with pytest.raises(TypeError, match="no comment"):

        class NoComment(Section):
            """Bad."""

            steps: int = 3

    with pytest.raises(TypeError, match="without a lower bound"):

        class NoBound(Section):
            """Bad."""

            steps: int = setting(3, "updates")


def test_what_is_read_back_is_what_was_written():
    written = Outer(steps=7, inner=Inner(weight=2, names=("b",)))
    assert read(Outer, as_dict(written), where="outer") == written
    assert changed(written) == {"steps": 7, "inner": {"weight": 2, "names": ["b"]}}
    assert changed(Outer()) == {}


# -- tasks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_the_defaults_of_every_task_can_be_read(task):
    config = base.get_config(task)
    assert settings_of(config).task == task
    versions = {cls.section_name: {"version": cls.section_version} for cls in TASKS[task].sections}
    assert changed_settings(config) == {"task": task} | {
        name: version for name, version in versions.items() if version["version"] > 1
    }
    with pytest.raises((AttributeError, KeyError)):
        config.nonsense = 1


def test_a_key_of_another_task_is_an_error_that_names_the_task():
    with pytest.raises(AttributeError):
        base.get_config("train").corpus.parts = 3
    run = [sys.executable, "run.py", "--config=configs/generate.py", "--config.corpus.parts=3"]
    finished = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 2
    assert "has no key 'corpus', which belongs to task corpus" in finished.stderr


def test_a_task_that_looks_at_train_configs_runs_on_them():
    config = base.get_config("train")
    config.model.vocab_size = 64
    config.plan.nodes = 3
    assert settings_of(config, task="plan").plan.nodes == 3
    assert not hasattr(settings_of(config), "plan")
    assert changed_settings(config) == {"task": "train", "model": {"vocab_size": 64}}
    config.task = "corpus"
    with pytest.raises(UserError, match=r"no section 'corpus', which this task reads; make it with base.get_config"):
        settings_of(config)


class ToySettings(Section, name="toy"):
    """What a task of this test reads."""

    text: str = setting("hello", "what is said")


def run(config, workdir):
    """The toy task's story."""
    (workdir / "said.txt").write_text(config.toy.text)
    return {"said": config.toy.text}


def test_a_new_task_is_a_module_its_settings_and_one_row(monkeypatch, tmp_path):
    monkeypatch.setitem(registry.TASKS, "toy", Task((ToySettings,), module=__name__))
    config = base.get_config("toy")
    config.toy.text = "good evening"
    assert runner.run(config, workdir=tmp_path / "alone") == {"said": "good evening"}
    recipe = base.recipe(greeting=config)
    result = runner.run(recipe, workdir=tmp_path / "recipe")
    assert result["said"] == (tmp_path / "recipe" / "greeting" / "said.txt").read_text() == "good evening"
    assert "toy.text = 'hello'  # what is said" in config_help.explain("toy")


# -- fingerprints ------------------------------------------------------------------------------------------------------


def with_row(monkeypatch, cls):
    monkeypatch.setitem(registry.TASKS, "toy", Task((cls,), module=__name__))
    config = base.get_config("toy")
    config.toy.text = "changed"
    return changed_settings(config)


def test_one_value_has_one_fingerprint_however_it_is_written():
    def changed(weight, phase, formats, shift=0.0):
        train, export = base.get_config("train"), base.get_config("export")
        train.data.sources.en = base.mixture(path="x", weight=weight)
        train.data.phases.mid = base.phase(from_step=3, en=phase)
        train.optimizer.weight_decay = shift
        export.export.formats = formats
        return json.dumps([changed_settings(train), changed_settings(export)])

    expected = changed(2.0, 3.0, ("orbax",))
    assert changed(2, 3, ("orbax", "orbax"), -0.0) == expected
    assert changed(2, 4, ("orbax",)) != expected
    assert changed(1.0, 1.0, ("orbax", "huggingface")) == changed(1, 1, ("huggingface", "orbax"))


def test_a_new_key_with_a_default_changes_no_fingerprint_but_a_value_and_a_version_do(monkeypatch):
    before = with_row(monkeypatch, ToySettings)

    class More(Section, name="toy"):
        """The same and a new key."""

        text: str = setting("hello", "what is said")
        times: int = setting(1, "how often", least=1)

    class Later(Section, name="toy", version=2):
        """The same with another meaning."""

        text: str = setting("hello", "what is said")

    assert with_row(monkeypatch, More) == before == {"task": "toy", "toy": {"text": "changed"}}
    assert with_row(monkeypatch, Later) != before


def test_a_finished_stage_outlives_a_new_key(monkeypatch, tmp_path):
    monkeypatch.setitem(registry.TASKS, "toy", Task((ToySettings,), module=__name__))
    runner.run(base.recipe(greeting=base.get_config("toy")), workdir=tmp_path)
    said = tmp_path / "greeting" / "said.txt"
    said.unlink()  # a stage that runs again writes it again

    class More(Section, name="toy"):
        """The same and a new key."""

        text: str = setting("hello", "what is said")
        times: int = setting(1, "how often", least=1)

    monkeypatch.setitem(registry.TASKS, "toy", Task((More,), module=__name__))
    config = base.get_config("toy")
    runner.run(base.recipe(greeting=config), workdir=tmp_path)
    assert not said.exists()
    config.toy.times = 2
    with pytest.raises(UserError, match=r"finished with another config \(toy.times: \(absent\) -> 2\)"):
        runner.run(base.recipe(greeting=config), workdir=tmp_path)


# Section -> version and the hash of its defaults. If this fails, a default has changed: finished stages that relied on
# it would be taken for others, so raise the section's version with it. A new key needs its line here only.
DEFAULTS = {
    "AdaptationSettings": "1 1b595a801266",
    "ArenaSettings": "1 ee559d07a0be",
    "ChatQualitySettings": "1 8aa91f05a0b1",
    "ChatSettings": "1 5e2101537c6a",
    "CheckpointSettings": "1 d7fb1276ba2b",
    "CompareCorporaSettings": "1 67a34e3a8295",
    "ComputeOptions": "1 2fb22aa3bbef",
    "ContaminationSettings": "1 f8cc14b51bab",
    "ConversationSettings": "1 87e6c83a2617",
    "CorpusSettings": "1 1901ee693a14",
    "DamageChatsSettings": "1 0e1cdd002742",
    "DamageSettings": "2 5c06aec4cf47",
    "DataSettings": "1 a11b21f064f6",
    "DpoSettings": "1 52c14f0676e7",
    "EngineSettings": "1 e03699415d00",
    "EvalSettings": "1 dbad914bd413",
    "ExpandSettings": "1 cfeb302f1bca",
    "ExportSettings": "1 4200e1be8bf2",
    "GenerateSettings": "1 d752568f7487",
    "GuardSettings": "1 a3fb105eb7c1",
    "HarnessSettings": "1 513d816900a4",
    "InitSettings": "1 b57b83edef8b",
    "InstructionDataSettings": "1 48e7915dc62b",
    "JoinSettings": "1 cd17df755b92",
    "JudgeSettings": "1 ba2ce1c7cc28",
    "LikelihoodSettings": "1 40ba1365b93b",
    "LlamaConfig": "1 e80f4ba9b5e9",
    "LoraSettings": "1 c54eb3600eb3",
    "MergeSettings": "1 e58b5c432550",
    "MeshSettings": "1 9fc217894998",
    "MetricsSettings": "1 884a7baa315b",
    "MixtureSettings": "1 09ff7363036f",
    "OptimizerSettings": "1 f80585ece5df",
    "ParameterSettings": "1 629174518cb4",
    "PlanSettings": "1 b2e37669e8bf",
    "PlantedCheckSettings": "1 529a7813522b",
    "PlantedSettings": "1 1648671f56b8",
    "PreferenceSettings": "2 7368b40cc1de",
    "ProbeSettings": "1 3dd98712c8da",
    "ProgramsSettings": "2 54b193ae3f36",
    "QualitySettings": "1 7a26df317806",
    "ReplaySettings": "1 237c7063450d",
    "ReportSettings": "1 b903b2793c45",
    "ReviewSettings": "1 66bf7849f031",
    "RewriteSettings": "1 2ebb7469decb",
    "RewritePlanSettings": "1 54a9246db947",
    "RowSettings": "1 f73b3787ced3",
    "ScheduleSettings": "1 43b9256456c1",
    "SeedPairsSettings": "1 2c444444db22",
    "SeedPoolSettings": "1 38247bdba447",
    "SeedSettings": "1 de7d7744ccd7",
    "ServeSettings": "1 1fc11eaa898a",
    "SftSettings": "1 212697bb4cbd",
    "SuiteCurvesSettings": "1 d89d1f0f55f1",
    "SuiteEvalSettings": "1 5bee4c1dc209",
    "SuiteReportSettings": "1 731f2523be36",
    "TokenizerExtensionSettings": "1 727e9d91e2ec",
    "TokenizerMergeSettings": "1 571b24551618",
    "TokenizerSettings": "1 356763cf278e",
    "TokenizerTrainingSettings": "1 1c071e1d6f0b",
    "TrainSettings": "1 5b9a786f3be8",
    "TrainableSettings": "1 23eabe8ca818",
    "TranslateSettings": "2 41d6b02d2116",
    "TuningSettings": "1 1545c35c98bd",
    "VerifySettings": "1 6d452a5b4278",
    "WatchSettings": "1 02a80a596c10",
    "WeightsSettings": "1 6b9bee014ea2",
}


def defaults_of(cls):
    return f"{cls.section_version} {sha256_of_json(as_dict(cls.default()))[:12]}"


def test_defaults_change_with_a_version_only():
    assert {cls.__name__: defaults_of(cls) for cls in EVERY_SECTION} == DEFAULTS


# Of stages of the quickstart. They change with its values, with a section's version, and with nothing else.
GOLDEN = {
    "corpus": "bfbd101aa064",
    "base_tokenizer": "c276fb4eba29",
    "base": "56a981fd930c",
    "merged_tokenizer": "6baa1d1c5166",
    "expand_random": "434a97e207d3",
    "continued_random": "2d688632f23e",
    "export": "da0bfdaed9e0",
    "report": "8d04af6fc089",
}


def test_golden_fingerprints():
    found = [sha256_of_json(changed_settings(quickstart.get_config().stage[name]))[:12] for name in GOLDEN]
    assert found == list(GOLDEN.values())


# -- the face ----------------------------------------------------------------------------------------------------------


def test_the_page_of_all_keys_is_up_to_date():
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == config_help.explain("all") + "\n"


def test_a_config_file_is_explained_by_its_inputs_and_the_tasks_of_its_stages():
    text = config_help.explain("adapt")
    assert "replay_share = 0.55  # of the training tokens (at least 0, below 1)" in text
    assert "variants (after a colon): full, laptop, smoke" in text
    assert "vocabulary (merge_tokenizer), expanded (expand), adapted (train)" in text
    assert "those of task train: --help_config train" in config_help.explain("allam_7b")
    assert "expand_subword_mean (expand)" in config_help.explain("quickstart")
    assert "--config configs/evaluate.py" in config_help.explain("configs/evaluate.py")  # also the name of a task
    for name in ("suites/arabic", "configs/suites/arabic.py", str(ROOT / "configs" / "suites" / "arabic.py")):
        assert "acva = ''  # ACVA: id, question, answer" in config_help.explain(name)
    for name in ("adapted", "base", "suites", "a.b", ""):
        with pytest.raises(UserError, match="neither a task nor a file of configs/; the tasks are corpus, plant"):
            config_help.explain(name)


@pytest.mark.parametrize("cls", EVERY_SECTION, ids=lambda cls: cls.__name__)
def test_every_key_is_explained(cls):
    text = config_help.explain("all")
    prefix = f"{cls.section_name}." if cls.section_name else ""
    for field in dataclasses.fields(cls):
        assert f"{prefix}{field.name}" in text


CHECKED = """
import pathlib, tempfile
from allam_jax.tasks import sft_quality
from allam_jax.tasks.registry import settings_of
from configs import base
config = base.get_config("sft_quality")
with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    (folder / "chats.jsonl").write_text('{"prompt": "What is the capital of Egypt?", "completion": "Cairo."}')
    config.chat_quality.sources.en = base.conversations(path=str(folder / "chats.jsonl"))
    assert sft_quality.run(settings_of(config), folder)["en"]["kept"] == 1
"""


@pytest.mark.parametrize(
    "code",
    [
        "import configs.quickstart as c; c.get_config()",
        "import sys; sys.argv = ['run.py', '--help']; import run",
        CHECKED,
    ],
    ids=["config", "command line", "sft_quality"],
)
def test_what_needs_no_model_imports_no_jax(code):
    check = (
        f"{code}\nimport sys\nprint([name for name in ('jax', 'flax', 'tensorflow_datasets') if name in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1] == "[]"


def test_entries_are_of_the_users_naming():
    config = base.get_config("corpus")
    config.corpus.sources.ar = base.documents(path="x", language="ar")
    config.corpus.rules.mine = ConfigDict({"short": base.rule("word_count", "<", 30)})
    read_back = settings_of(config).corpus
    assert read_back.sources["ar"].validation_share == 0.02
    assert read_back.rules["mine"]["short"].threshold == 30
    config.corpus.block_lists.ar = 3
    with pytest.raises(UserError, match=r"config\.corpus\.block_lists\.ar = 3: expected a string"):
        settings_of(config)


def test_help_lists_every_flag():
    shown = subprocess.run([sys.executable, "run.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0
    assert shown.stderr == ""
    for flag in ("--config", "--workdir", "--help_config", "--sweep", "--launcher", "--jobs", "--set", "--detach"):
        assert f"  {flag}: " in shown.stdout
