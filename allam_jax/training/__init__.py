"""Training: loop, step, state, losses, optimizer, schedules, guard, checkpoints, metrics."""
