"""Every schedule against its written formula, in numpy and float64, at every step."""

import jax
import numpy as np
import pytest

from allam_jax.errors import UserError
from allam_jax.training.schedules import make_schedule, rewarm_factor
from allam_jax.training.settings import OptimizerSettings, ScheduleSettings
from allam_jax.weights.settings import DECAY_SHAPES

PEAK, TOTAL = 3e-4, 400


def values(schedule, steps=TOTAL + 20):
    return np.array(jax.jit(jax.vmap(schedule))(np.arange(steps)))


def warmed(formula, warmup):
    return lambda s: PEAK * (s + 1) / (warmup + 1) if s < warmup else formula(s)


def shape_value(shape, r, final):
    r = min(max(r, 0.0), 1.0)
    if shape == "exponential":
        return final**r
    fall = {"linear": 1 - r, "one_minus_sqrt": 1 - r**0.5, "cosine": (1 + np.cos(np.pi * r)) / 2}[shape]
    return final + (1 - final) * fall


def assert_follows(schedule, formula):
    expected = np.array([formula(s) for s in range(TOTAL + 20)])
    np.testing.assert_allclose(values(schedule), expected, rtol=3e-6, atol=PEAK * 1e-7)
    for step in (0, 7, 99, TOTAL - 1):  # also with plain ints, outside jit
        value = schedule(step)
        assert value.dtype == np.float32
        assert value.shape == ()
        np.testing.assert_allclose(value, expected[step], rtol=3e-6, atol=PEAK * 1e-7)


@pytest.mark.parametrize("warmup", [0, 1, 40])
def test_constant(warmup):
    schedule = make_schedule(ScheduleSettings(name="constant", peak_lr=PEAK, warmup_steps=warmup), total_steps=TOTAL)
    assert_follows(schedule, warmed(lambda s: PEAK, warmup))


@pytest.mark.parametrize("warmup", [0, 40])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_cosine(warmup, final):
    schedule = make_schedule(
        ScheduleSettings(name="cosine", peak_lr=PEAK, warmup_steps=warmup, final_fraction=final), total_steps=TOTAL
    )
    formula = warmed(lambda s: PEAK * shape_value("cosine", (s - warmup) / (TOTAL - warmup), final), warmup)
    assert_follows(schedule, formula)


@pytest.mark.parametrize(
    ("shape", "final"),
    [(shape, final) for shape in DECAY_SHAPES for final in (0.0, 0.01, 0.3) if (shape, final) != ("exponential", 0.0)],
)
@pytest.mark.parametrize(("warmup", "start", "steps"), [(0, -1, 100), (40, -1, 360), (40, 200, 90), (0, 0, 1)])
def test_wsd(shape, final, warmup, start, steps):
    schedule = make_schedule(
        ScheduleSettings(
            name="wsd",
            peak_lr=PEAK,
            warmup_steps=warmup,
            decay_start=start,
            decay_steps=steps,
            decay_shape=shape,
            final_fraction=final,
        ),
        total_steps=TOTAL,
    )
    k = TOTAL - steps if start == -1 else start

    def after_warmup(s):
        return PEAK if s < k else PEAK * shape_value(shape, (s - k) / steps, final)

    assert_follows(schedule, warmed(after_warmup, warmup))


def test_a_branch_and_its_main_run_agree_bitwise_until_the_branch():
    main = make_schedule(ScheduleSettings(name="constant", peak_lr=PEAK, warmup_steps=30), total_steps=TOTAL)
    branch = make_schedule(
        ScheduleSettings(name="wsd", peak_lr=PEAK, warmup_steps=30, decay_start=200, decay_steps=50), total_steps=250
    )
    by_step = lambda schedule: np.array(jax.jit(lambda: jax.lax.map(schedule, np.arange(201)))())  # noqa: E731
    np.testing.assert_array_equal(by_step(main), by_step(branch))  # one number at a time, as a training step has it
    assert values(branch, 202)[201] < PEAK


@pytest.mark.parametrize("steps", [0, 1, 10])
def test_rewarm(steps):
    linear = values(rewarm_factor(mode="linear", steps=steps), 20)
    np.testing.assert_allclose(linear, [min((u + 1) / (steps + 1), 1) for u in range(20)], rtol=1e-6)
    freeze = values(rewarm_factor(mode="freeze", steps=steps), 20)
    np.testing.assert_array_equal(freeze, [float(u >= steps) for u in range(20)])


GOOD = {"name": "wsd", "peak_lr": PEAK, "warmup_steps": 10, "decay_steps": 20}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"name": "wds"}, "schedule.name"),
        ({"peak_lr": float("nan")}, "schedule.peak_lr"),
        ({"warmup_steps": -1}, "schedule.warmup_steps"),
        ({"name": "cosine", "warmup_steps": 100}, "schedule.warmup_steps"),
        ({"final_fraction": 1.5}, "schedule.final_fraction"),
        ({"decay_shape": "exponential"}, "schedule.final_fraction"),
        ({"decay_shape": "square"}, "schedule.decay_shape"),
        ({"decay_steps": 0}, "schedule.decay_steps"),
        ({"decay_steps": 95}, "schedule.decay_start"),
        ({"decay_start": 5}, "schedule.decay_start"),
        ({"decay_start": 90}, "schedule.decay_steps"),
    ],
)
def test_errors_name_the_key(change, key):
    make_schedule(ScheduleSettings(**GOOD), total_steps=100)
    with pytest.raises(UserError, match=rf"^config\.{key}\b") as error:
        make_schedule(ScheduleSettings(**{**GOOD, **change}), total_steps=100)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"rewarm_mode": "warm"}, {"rewarm_steps": -3}])
def test_rewarm_errors_name_the_key(change):
    with pytest.raises(UserError, match=rf"^config\.optimizer\.{next(iter(change))} = "):
        OptimizerSettings(**change)
