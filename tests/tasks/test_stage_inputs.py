"""A finished stage knows its inputs: a recipe refuses changed ones, and the corpus task reads them anew."""

import json
import os

import pytest

from allam_jax.checksums import write_listed
from allam_jax.errors import UserError
from allam_jax.tasks import registry
from allam_jax.tasks.inputs_of_task import inputs_of
from allam_jax.tasks.recipe import run_recipe
from allam_jax.tasks.runner import run
from configs import base


def corpus_config(path):
    config = base.get_config("corpus")
    config.corpus.sources.s = base.documents(path=str(path), language="ar", validation_share=0.0)
    return config


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text('{"text": "واحد"}\n')
    return tmp_path / "texts"


@pytest.mark.parametrize(
    ("task", "key", "message"),
    [
        ("tokenizer", "tokenizer_training.like", "config.tokenizer_training.like: {there}: no such file or directory"),
        ("merge_tokenizer", "tokenizer_merge.base", "config.tokenizer_merge.base: {there}: no such file"),
        ("expand", "init.weights", "config.init.weights: {there}: no such directory; expected a weights directory"),
        ("corpus", "corpus.block_lists.ar", "config.corpus.block_lists.ar: {there}: no such file"),
    ],
)
def test_every_path_is_looked_at_before_the_first_stage(texts, tmp_path, task, key, message):
    calls = []

    def go(path):
        later = corpus_config(texts) if task == "corpus" else base.get_config(task)
        if task == "corpus":
            later.corpus.block_lists.ar = ""
        later.update_from_flattened_dict({key: str(path)})
        recipe = base.recipe(corpus=corpus_config(texts), later=later)
        run_recipe(recipe, workdir=tmp_path / "run", run_task=lambda *_, workdir: calls.append(workdir) or {})

    with pytest.raises(UserError, match=message.format(there=tmp_path / "typo")) as error:
        go(tmp_path / "typo")
    assert str(error.value).startswith("stage later: config.")
    assert calls == []
    go(tmp_path / "run" / "corpus")  # what an earlier stage will have made
    assert len(calls) == 2


def test_a_recipe_refuses_changed_inputs_and_accepts_moved_ones(texts, tmp_path):
    calls = []

    def go(folder, workdir):
        recipe = base.recipe(corpus=corpus_config(folder))
        return run_recipe(recipe, workdir=workdir, run_task=lambda *_, workdir: calls.append(workdir) or {})

    workdir = tmp_path / "run"
    go(texts, workdir)
    go(texts, workdir)
    assert len(calls) == 1
    result = workdir / "corpus" / "result.json"
    record = json.loads(result.read_text())
    assert list(record["inputs"]["corpus.sources.s.path"]) == ["a.jsonl"]
    os.utime(texts / "a.jsonl", (1, 1))
    go(texts, workdir)  # the same content at another time, which is noted
    assert json.loads(result.read_text())["inputs"]["corpus.sources.s.path"]["a.jsonl"][1] == 10**9
    (texts / "notes.md").write_text("not read")
    go(texts, workdir)
    (texts / "b.jsonl").write_text("")
    with pytest.raises(
        UserError, match=r"corpus was finished with other inputs \(config.corpus.sources.s.path: b.jsonl"
    ):
        go(texts, workdir)
    (texts / "b.jsonl").unlink()
    del record["inputs"]  # of an earlier version
    write_listed(result.parent, {result.name: json.dumps(record).encode()})
    (texts / "b.jsonl").write_text("")
    go(texts, workdir)
    assert len(calls) == 1


def test_the_corpus_task_reads_changed_inputs_anew(texts, tmp_path):
    config = corpus_config(texts)
    assert run(config, workdir=tmp_path / "out")["s"]["train"]["documents"] == 1
    shards = [path for path in (tmp_path / "out" / "s").iterdir() if "array_record" in path.name]
    written = shards[0].stat().st_mtime_ns
    os.utime(texts / "a.jsonl", (1, 1))
    assert run(config, workdir=tmp_path / "out")["s"]["train"]["documents"] == 1
    assert shards[0].stat().st_mtime_ns == written
    (texts / "b.jsonl").write_text('{"text": "اثنان"}\n')
    assert run(config, workdir=tmp_path / "out")["s"]["train"]["documents"] == 2


def test_the_home_directory_in_paths(texts, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = registry.settings_of(corpus_config("~/texts"))
    assert settings.corpus.sources["s"].path == str(texts)
    config = base.get_config("train")
    config.tokenizer, config.init.weights = "~/tokenizer", "~"
    read = registry.settings_of(config)
    assert (read.tokenizer, read.init.weights) == (f"{tmp_path}/tokenizer", str(tmp_path))


def test_what_models_tokenizers_and_datasets_are_made_of(tmp_path):
    config = base.get_config("export")
    for name in (
        "hf/config.json",
        "hf/a.safetensors",
        "hf/.git/x",
        "tok/tokenizer.json",
        "tok/notes.txt",
        "tok/config.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    config.init.weights, config.tokenizer = f"{tmp_path}/hf", f"{tmp_path}/tok"
    found = {key: sorted(inputs.files) for key, inputs in inputs_of(config).items()}
    assert found == {"init.weights": ["a.safetensors", "config.json"], "tokenizer": ["tokenizer.json"]}
    config.init.weights, config.tokenizer = "@train", f"{tmp_path}/tok/tokenizer.json"
    assert {key: list(inputs.files) for key, inputs in inputs_of(config).items()} == {"tokenizer": ["tokenizer.json"]}


def test_every_path_of_a_config_is_marked():
    """Keys whose comments speak of a directory or file of the user's are paths, so that `~` and changes are seen."""
    from allam_jax import settings

    for row in registry.TASKS.values():
        for cls in row.sections:
            for field, kind in settings.fields_of(cls):
                words = field.metadata["comment"].split()
                if kind is str and {"directory", "path", "file"} & set(words) and not field.metadata["choices"]:
                    assert field.metadata["path"], f"{cls.__name__}.{field.name}"


def test_a_stage_with_checkpoints_is_not_continued_with_another_config(texts, tmp_path):
    """One that has none yet is: a first start may have failed because of the config."""

    def go(steps, *, task=lambda workdir: {}):
        config = base.get_config("train")
        config.train.steps = steps
        return run_recipe(base.recipe(a=config), workdir=tmp_path / "run", run_task=lambda _, workdir: task(workdir))

    def fails(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        raise UserError("a mistake")

    def killed(workdir):
        (workdir / "checkpoints" / "2").mkdir(parents=True)
        raise KeyboardInterrupt

    with pytest.raises(UserError, match="a mistake"):
        go(3, task=fails)
    with pytest.raises(KeyboardInterrupt):
        go(4, task=killed)
    with pytest.raises(UserError, match=r"was begun with another config \(train.steps: 4 -> 5\)"):
        go(5)
    assert go(4) == {"seconds": 0.0}
