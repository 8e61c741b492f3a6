"""What makes a stage of a recipe the stage it is, and the store that recipes share."""

import ast
import fcntl
import importlib.util
import os
import threading
import time
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from allam_jax.errors import UserError
from allam_jax.tasks.recipe import run_recipe, stages_of
from allam_jax.tasks.registry import TASKS, settings_of
from configs import base, quickstart


def stage(task, **values):
    config = base.get_config(task)
    config.update(values)
    return config


def two_stages(*, seed=0, tokenizer=300, workers=1):
    corpus = stage("corpus", seed=seed)
    corpus.corpus.executor.workers = workers
    training = stage("tokenizer")
    training.tokenizer_training.sources.en = base.texts(path="@corpus/en")
    training.tokenizer_training.vocab_size = tokenizer
    return base.recipe(corpus=corpus, tokens=training)


def fingerprints(config):
    return [each.fingerprint for each in stages_of(config)]


def test_a_stage_is_its_config_and_what_it_reads():
    first = fingerprints(two_stages())
    assert fingerprints(two_stages()) == first
    assert len(set(first)) == 2
    # Its own config changes a stage alone; an earlier one's changes all that read it.
    assert [a == b for a, b in zip(fingerprints(two_stages(tokenizer=301)), first, strict=True)] == [True, False]
    assert [a == b for a, b in zip(fingerprints(two_stages(seed=1)), first, strict=True)] == [False, False]
    assert fingerprints(two_stages(workers=2)) == first  # where it is computed


def sections_read(path):
    """The names X of `config.X` in a file."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "config"}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_reads_only_what_its_row_declares(name):
    path = Path(importlib.util.find_spec(TASKS[name].module or f"allam_jax.tasks.{name}").origin)
    read = sections_read(path)
    assert read - set(vars(settings_of(base.get_config(name)))) == set()
    assert read  # the check sees something


def test_the_quickstart_shares_what_its_arms_share():
    stages = {each.name: each for each in stages_of(quickstart.get_config())}
    assert set(stages["expand_random"].uses) == {"base", "merged_tokenizer", "corpus"}
    assert len({each.fingerprint for each in stages.values()}) == len(stages)


class Work:
    """Stands for the tasks: writes what it was given, and counts its calls."""

    def __init__(self, seconds=0.0):
        self.calls = []
        self.seconds = seconds

    def __call__(self, config: ConfigDict, *, workdir: Path):
        workdir.mkdir(parents=True, exist_ok=True)
        time.sleep(self.seconds)
        self.calls.append(workdir.name)
        return {
            "task": config.task,
            "reads": str(config.get("tokenizer_training", {}).get("sources", {}).get("en", {}).get("path")),
        }


def test_recipes_share_stages_of_a_store(tmp_path):
    store, work = tmp_path / "store", Work()
    run_recipe(two_stages(), workdir=tmp_path / "one", store=store, run_task=work)
    result = run_recipe(two_stages(tokenizer=301), workdir=tmp_path / "two", store=store, run_task=work)
    corpus, tokens = stages_of(two_stages())
    assert work.calls[:2] == [f"corpus-{corpus.fingerprint[:12]}", f"tokens-{tokens.fingerprint[:12]}"]
    assert len(work.calls) == 3  # the corpus only once
    assert result["reads"] == str(store / work.calls[0] / "en")
    assert (tmp_path / "two" / "corpus").resolve() == (store / work.calls[0]).resolve()
    assert (tmp_path / "one" / "tokens").resolve() != (tmp_path / "two" / "tokens").resolve()
    # The links hold when everything is moved together.
    tmp_path.joinpath("elsewhere").mkdir()
    for name in ("store", "one"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    assert (tmp_path / "elsewhere" / "one" / "tokens" / "result.json").is_file()


def test_another_config_takes_the_place_of_a_link(tmp_path):
    for number in (300, 301):
        run_recipe(two_stages(tokenizer=number), workdir=tmp_path / "run", store=tmp_path / "store", run_task=Work())
        newest = stages_of(two_stages(tokenizer=number))[1].fingerprint[:12]
        assert (tmp_path / "run" / "tokens").resolve().name == f"tokens-{newest}"
    run_recipe(two_stages(), workdir=tmp_path / "own", run_task=Work())
    with pytest.raises(UserError, match="made without --store"):
        run_recipe(two_stages(), workdir=tmp_path / "own", store=tmp_path / "store", run_task=Work())


def test_only_some_stages(tmp_path):
    work = Work()
    with pytest.raises(UserError, match="--stage tokens needs stage 'corpus'"):
        run_recipe(two_stages(), workdir=tmp_path, only=("tokens",), run_task=work)
    assert run_recipe(two_stages(), workdir=tmp_path, only=("corpus",), run_task=work)["task"] == "corpus"
    assert run_recipe(two_stages(), workdir=tmp_path, only=("tokens", "corpus"), run_task=work)["task"] == "tokenizer"
    assert work.calls == ["corpus", "tokens"]


def test_whoever_comes_second_waits_for_the_first(tmp_path):
    work = Work(seconds=0.5)
    arguments = {"store": tmp_path / "store", "run_task": work}
    threads = [
        threading.Thread(target=run_recipe, args=(two_stages(),), kwargs={"workdir": tmp_path / str(i)} | arguments)
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(work.calls) == 2
    assert all((tmp_path / str(i) / "tokens" / "result.json").is_file() for i in range(3))


def test_a_lock_ends_with_its_holder(tmp_path):
    corpus = stages_of(two_stages())[0].directory(workdir=tmp_path, store=tmp_path / "store")
    corpus.parent.mkdir()
    held = os.open(corpus.with_name(f".{corpus.name}.lock"), os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    work = Work()
    arguments = {"workdir": tmp_path / "run", "store": tmp_path / "store", "run_task": work}
    thread = threading.Thread(target=run_recipe, args=(two_stages(),), kwargs=arguments)
    thread.start()
    time.sleep(0.3)
    assert work.calls == []
    os.close(held)
    thread.join()
    assert len(work.calls) == 2
