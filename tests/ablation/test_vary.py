"""The language of choices: what is combined with what, under which name."""

import pytest

from allam_jax.ablation.vary import always, arms, grid, param, seeds, zipped
from allam_jax.errors import UserError


def names(choices):
    return [choice.name for choice in choices]


def test_a_grid_is_every_combination_the_last_axis_fastest():
    choices = grid(param("a.method", "random", "mean"), param("a.lr", 1e-4, 3e-4), seeds(0, 1, keys=("a.seed",)))
    assert names(choices) == [
        f"{method}--lr-{lr}--seed-{seed}" for method in ("random", "mean") for lr in (0.0001, 0.0003) for seed in (0, 1)
    ]
    assert choices[-1].labels == {"method": "mean", "lr": 3e-4, "seed": 1}
    assert choices[-1].overrides == {"a.method": "mean", "a.lr": 3e-4, "a.seed": 1}


def test_constraints_leave_combinations_out():
    choices = grid(
        param("a.method", "random", "mean"), param("a.k", 1, 2), keep=lambda method, k: method == "mean" or k == 1
    )
    assert names(choices) == ["random--k-1", "mean--k-1", "mean--k-2"]


def test_zipped_axes_go_side_by_side():
    choices = zipped(param("a.steps", 100, 200), param("a.lr", 0.1, 0.2))
    assert [choice.overrides for choice in choices] == [{"a.steps": 100, "a.lr": 0.1}, {"a.steps": 200, "a.lr": 0.2}]
    with pytest.raises(UserError, match="2 and 3 values"):
        zipped(param("a.steps", 1, 2), param("a.lr", 1, 2, 3))


def test_arms_have_names_and_any_overrides():
    choices = grid(arms("mix", **{"55/45": {"en.weight": 0.55, "ar.weight": 0.45}, "english": {}}), seeds(7))
    assert names(choices) == ["55-45--seed-7", "english--seed-7"]
    assert choices[0].labels == {"mix": "55/45", "seed": 7}
    assert choices[0].overrides == {"en.weight": 0.55, "ar.weight": 0.45, "stage.*.seed": 7}


@pytest.mark.parametrize("text", ["x" * 300, "\u0643" * 300, "/very/long" * 40])
def test_names_of_long_values_are_short_and_tell_them_apart(text):
    choices = grid(param("a.path", text, f"{text}!"), param("b.path", text, name="other"))
    assert len(set(names(choices))) == 2
    for name in names(choices):
        assert len(name.encode()) <= 150
        assert name.startswith(text[0].replace("/", "-"))
        assert "/" not in name
    assert names(choices) == names(grid(param("a.path", text, f"{text}!"), param("b.path", text, name="other")))


def test_one_name_or_key_in_two_axes_is_told():
    with pytest.raises(UserError, match="two axes are called 'lr'"):
        grid(param("a.lr", 1), param("b.lr", 2))
    with pytest.raises(UserError, match="two axes set 'a.lr'"):
        grid(param("a.lr", 1), param("a.lr", 2, name="other"))


def test_what_all_runs_change_is_no_axis():
    choices = grid(always({"a.steps": 5}), param("a.lr", 0.1, 0.2), seeds(0))
    assert names(choices) == ["lr-0.1--seed-0", "lr-0.2--seed-0"]
    assert choices[0].overrides == {"a.steps": 5, "a.lr": 0.1, "stage.*.seed": 0}
    assert choices[0].labels == {"lr": 0.1, "seed": 0}
    with pytest.raises(UserError, match="two axes set 'a.lr'"):
        grid(always({"a.lr": 5}), param("a.lr", 0.1, 0.2))
