"""Inputs of a config file on the command line."""

from urllib.parse import urlencode

import pytest

from allam_jax import recipe_inputs
from allam_jax.errors import UserError
from allam_jax.tasks import runner
from configs import adapt, corpus, evaluate, tokenizer

FILE = "configs/adapt.py"


def parsed(*argv: str) -> tuple[list[str], tuple[str, adapt.Inputs]]:
    """The arguments that are left, and what the config makes of its own."""
    moved = recipe_inputs.move(["run.py", *argv])
    (config,) = [arg for arg in moved if arg.startswith("--config=")]
    rest = [arg for arg in moved[1:] if arg != config]
    return rest, recipe_inputs.read(adapt.INPUTS, config.partition(":")[2])


def test_inputs_reach_the_config_whatever_they_look_like():
    texts = "a b/*.jsonl.zst?x=1&y:2,ü%"
    rest, (variant, inputs) = parsed(
        "--config", f"{FILE}:smoke", f"--config.texts={texts}", "--config.language", "fa", "--config.steps=7",
        "--config.replay_share=0.25", "--workdir=w", "--config.stage.adapted.train.log_every=2", "--stage", "corpus",
    )  # fmt: skip
    assert rest == ["--workdir=w", "--config.stage.adapted.train.log_every=2", "--stage", "corpus"]
    assert (variant, inputs.texts, inputs.language, inputs.steps, inputs.replay_share) == (
        "smoke",
        texts,
        "fa",
        7,
        0.25,
    )
    assert inputs.pieces == adapt.INPUTS["smoke"].pieces


def test_without_a_variant_the_first_is_meant():
    _, (variant, inputs) = parsed(f"--config={FILE}", "--config.base=dir")
    assert (variant, inputs.base) == ("full", "dir")


def test_a_file_without_inputs_keeps_its_arguments():
    argv = ["run.py", "--config=configs/quickstart.py:smoke", "--config.task=recipe"]
    assert recipe_inputs.move(argv) == argv
    argv = ["run.py", "--config=no/such/file.py", "--config.task=recipe"]
    assert recipe_inputs.move(argv) == argv


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.langauge=fa", "--config.langauge: configs/adapt.py has no such input; did you mean language"),
        ("--config.steps=many", "config.steps = 'many': expected a whole number"),
        ("--config.replay_share=2", "config.replay_share = 2"),
    ],
)
def test_errors_name_the_input(argument, message):
    with pytest.raises(UserError) as error:
        parsed(f"--config={FILE}:laptop", argument)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("config", [corpus, tokenizer, evaluate])
def test_small_configs_for_ones_own_files(config, tmp_path):
    given = {"texts": "t/*.txt", "language": "fa"} | ({"model": "dir"} if config is evaluate else {})
    made = config.get_config(f"?{urlencode(given)}")
    runner.check(made)
    documents = made if config is corpus else made.stage.corpus
    assert documents.corpus.sources.fa.path == "t/*.txt"
    for key in given:
        with pytest.raises(UserError, match=rf"config\.{key} is empty"):
            config.get_config(f"?{urlencode(given | {key: ''})}")


def test_an_unknown_variant_is_named():
    with pytest.raises(UserError, match="no variant 'smok'; did you mean smoke"):
        recipe_inputs.read(adapt.INPUTS, "smok")
