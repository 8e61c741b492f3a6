"""Overrides by dotted key: typos and wrong types are told before anything runs."""

import pytest
from ml_collections import ConfigDict

from allam_jax.errors import UserError
from allam_jax.launch.overrides import override, parse
from configs import base, tiny


def error(key, value=1, *, config=None):
    with pytest.raises(UserError) as caught:
        override(config or tiny.get_config(), {key: value}, where="run a")
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("stage.expand.expand.metod", "stage.expand.expand.method"),  # the last part
        ("stage.contiued.train.steps", "stage.continued.train.steps"),  # a part in the middle
        ("stage.continued.trian.steps", "stage.continued.train.steps"),
        ("stages.continued.train.steps", "stage.continued.train.steps"),
        ("stage.continued.data.sources.eng.weight", "stage.continued.data.sources.en.weight"),
        ("train.steps", "stage.base.train.steps"),  # the stage forgotten
        ("stage.continued.schedule.peak_lr.x", "stage.continued.schedule.peak_lr"),
    ],
)
def test_a_typo_names_the_key_that_was_meant(key, meant):
    assert error(key) == f"run a: the config has no key {key!r}; did you mean {meant!r}?"


def test_the_config_stays_as_it_was_and_has_no_new_key():
    config = tiny.get_config()
    before = config.to_json()
    error("stage.expand.expand.metod", "random", config=config)
    assert config.to_json() == before


def test_wrong_types_are_told():
    assert "train.steps = 'many': expected a value like 800 (int)" in error("stage.base.train.steps", "many")
    assert "'stage.base.train' is a section (its keys: " in error("stage.base.train", 3)


def test_a_star_sets_every_key_it_fits():
    config = tiny.get_config()
    override(config, {"stage.*.seed": 5, "stage.con*.data.sources.*.weight": 0.5}, where="")
    assert {stage.seed for stage in config.stage.values() if "seed" in stage} == {5}
    assert [source.weight for source in config.stage.continued.data.sources.values()] == [0.5, 0.5]
    assert config.stage.base.data.sources.en.weight == 0.98
    assert "has no key 'stage.*.sead'" in error("stage.*.sead")


def test_sections_take_keys_or_are_replaced():
    config = tiny.get_config()
    config.lock()
    sources = ConfigDict({"ar": base.mixture(path="@corpus/ar", weight=2.0)})
    override(
        config,
        {"stage.continued.schedule": {"name": "wsd", "decay_steps": 7}, "stage.continued.data.sources": sources},
        where="",
    )
    schedule = config.stage.continued.schedule
    assert (schedule.name, schedule.decay_steps, schedule.peak_lr) == ("wsd", 7, 1e-3)
    assert list(config.stage.continued.data.sources) == ["ar"]
    assert "did you mean 'stage.base.schedule.peak_lr'" in error("stage.base.schedule", {"peek_lr": 1.0})


def test_texts_of_the_command_line():
    assert parse(["a.b=3", "c=1e-3", "d=text", "e=('x',)", "f=a=b"]) == {
        "a.b": 3,
        "c": 1e-3,
        "d": "text",
        "e": ("x",),
        "f": "a=b",
    }
    with pytest.raises(UserError, match="expected KEY=VALUE"):
        parse(["a.b"])
