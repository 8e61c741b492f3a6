"""Learning-rate schedules: pure functions from step to learning rate.

The update made at `step` (counted from 0 before the update) uses `schedule(step)`. With w warm-up steps, T total steps,
decay from step k over d steps, peak p and final fraction f:

    warm-up   s < w        p * (s + 1) / (w + 1)      never 0; step w is the first at the peak
    constant  s >= w       p
    cosine    s >= w       p * (f + (1 - f) * (1 + cos(pi * r)) / 2)        r = clip((s - w) / (T - w), 0, 1)
    wsd       w <= s < k   p
              s >= k       linear          p * (f + (1 - f) * (1 - r))      r = clip((s - k) / d, 0, 1)
                           one_minus_sqrt  p * (f + (1 - f) * (1 - sqrt(r)))
                           cosine          p * (f + (1 - f) * (1 + cos(pi * r)) / 2)
                           exponential     p * f ** r                       needs f > 0

A WSD branch is a run that starts from a checkpoint at step k and has `decay_start = k`; up to k it computes the very
same values as the main run. WSD: Hu et al. 2024 (MiniCPM, 2404.06395); 1 - sqrt: Hägele et al. 2024 (2405.18392).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from allam_jax.errors import UserError
from allam_jax.training.settings import ScheduleSettings

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


def make_schedule(settings: ScheduleSettings, *, total_steps: int) -> Schedule:
    """Builds a schedule `step -> learning rate` (float32 scalar; `step` may be an int or a traced array).

    Args:
        settings: the schedule; `decay_start` -1 means `total_steps - decay_steps`.
        total_steps: steps of the whole run; the cosine ends there.

    Raises:
        UserError: naming the config key whose value makes no sense.
    """
    peak_lr, warmup_steps, final_fraction = settings.peak_lr, settings.warmup_steps, settings.final_fraction
    if settings.name == "cosine" and warmup_steps >= total_steps:
        raise UserError(
            f"config.schedule.warmup_steps = {warmup_steps}: leaves none of {total_steps} steps for the cosine"
        )
    pieces: list[optax.Schedule] = []
    boundaries: list[int] = []
    if warmup_steps > 0:
        pieces.append(optax.linear_schedule(peak_lr / (warmup_steps + 1), peak_lr, warmup_steps))
        boundaries.append(warmup_steps)
    if settings.name == "cosine":
        pieces.append(optax.cosine_decay_schedule(peak_lr, total_steps - warmup_steps, alpha=final_fraction))
    else:
        pieces.append(optax.constant_schedule(peak_lr))
    if settings.name == "wsd":
        boundaries.append(_checked_decay_start(settings, total_steps=total_steps))
        pieces.append(
            decay(peak_lr, steps=settings.decay_steps, shape=settings.decay_shape, final_fraction=final_fraction)
        )
    joined = optax.join_schedules(pieces, boundaries)
    return lambda step: jnp.asarray(joined(jnp.asarray(step)), jnp.float32)


def rewarm_factor(*, mode: str, steps: int) -> Schedule:
    """Builds the factor on the learning rate while fresh Adam moments fill, from the updates made with these moments.

    Continued pre-training without the base run's optimizer state starts with moments at zero, whose first estimates
    come from a few batches; ALLaM (2407.15390) warms the optimizer state up first. The count must be Adam's own
    (`OptimizerState.updates`), which is in the checkpoint, so that a resumed run continues the ramp.

    Args:
        mode: "linear" ramps (u + 1) / (steps + 1) for u < steps; "freeze" holds 0 while the moments fill. Then 1.
        steps: updates it lasts; 0 switches it off.
    """
    if steps == 0:
        return lambda updates: jnp.ones((), jnp.float32)
    if mode == "freeze":
        return lambda updates: jnp.where(jnp.asarray(updates) < steps, 0.0, 1.0).astype(jnp.float32)
    return lambda updates: jnp.minimum((jnp.asarray(updates) + 1) / (steps + 1), 1.0).astype(jnp.float32)


def _checked_decay_start(settings: ScheduleSettings, *, total_steps: int) -> int:
    warmup_steps, decay_start, decay_steps = settings.warmup_steps, settings.decay_start, settings.decay_steps
    if decay_steps < 1:
        raise UserError(
            f"config.schedule.decay_steps = {decay_steps}: expected at least 1; without a decay use "
            "schedule.name = 'constant'"
        )
    start = total_steps - decay_steps if decay_start == -1 else decay_start
    if start < warmup_steps:
        raise UserError(
            f"config.schedule.decay_start: the decay would begin at step {start}, before the warm-up ends at step "
            f"{warmup_steps}; shorten schedule.warmup_steps or schedule.decay_steps"
        )
    if start + decay_steps > total_steps:
        raise UserError(
            f"config.schedule.decay_steps: a decay of {decay_steps} steps from step {start} does not fit into "
            f"{total_steps} steps; set train.steps to {start + decay_steps}"
        )
    return start


def decay(peak_lr: float, *, steps: int, shape: str, final_fraction: float) -> optax.Schedule:
    """From `peak_lr` at step 0 to `final_fraction * peak_lr` at `steps`, along `shape` (of DECAY_SHAPES)."""
    if shape == "cosine":
        return optax.cosine_decay_schedule(peak_lr, steps, alpha=final_fraction)
    if shape == "linear":
        return optax.linear_schedule(peak_lr, final_fraction * peak_lr, steps)
    if shape == "exponential":
        return optax.exponential_decay(peak_lr, steps, final_fraction, end_value=final_fraction * peak_lr)

    def one_minus_sqrt(step: jax.Array) -> jax.Array:
        r = jnp.clip(step / steps, 0.0, 1.0)
        return peak_lr * (final_fraction + (1 - final_fraction) * (1 - jnp.sqrt(r)))

    return one_minus_sqrt
