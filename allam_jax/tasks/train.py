"""Task `train`: pre-training, continued pre-training and branches of a run; resumes at any step.

The workdir holds config.json, model.json, tokenizer/, metrics.jsonl, tensorboard/, checkpoints/ and report.md.
"""

import shlex
import sys
import time
from pathlib import Path
from typing import Any

from allam_jax.parallel.distributed import barrier, is_main_process, leave, places
from allam_jax.parallel.gpus import peak_flops
from allam_jax.parallel.mesh import check_batch
from allam_jax.planning.fit import check_fits
from allam_jax.settings import Settings
from allam_jax.tasks.setup import open_evaluations, open_loader, open_mesh
from allam_jax.training.loop import run_loop
from allam_jax.training.origin import open_origin
from allam_jax.training.run_description import described_run
from allam_jax.training.run_report import training_result, write_run_report
from allam_jax.training.session import open_session
from allam_jax.watchdog import Watchdog


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Trains, or goes on training, in `workdir`; returns the final loss, speed and evaluations."""
    with Watchdog(
        report_minutes=config.metrics.stall_report_minutes,
        leave_minutes=config.metrics.stall_leave_minutes,
        others=places,
        leaving=leave,
    ):
        return _train(config, workdir)


def _train(config: Settings, workdir: Path) -> dict[str, Any]:
    started = time.monotonic()
    # ---- what is trained, on what ----
    mesh = open_mesh(config)
    check_batch(config.data.batch_size, accumulation=config.train.accumulation, mesh=mesh)
    origin = open_origin(config, workdir=workdir, mesh=mesh)
    description = described_run(config, device_count=mesh.size, model=origin.model)
    check_fits(description, mesh=mesh)
    data_sheet = peak_flops(mesh.devices.flat[0].device_kind, compute_dtype=config.compute.compute_dtype)
    evaluations = open_evaluations(config, model=origin.model, tokenizer=origin.tokenizer, mesh=mesh)

    # ---- train ----
    with (
        open_loader(config, tokenizer=origin.tokenizer, mesh=mesh) as loader,
        open_session(config, workdir, origin=origin, run=description, mesh=mesh, loader=loader) as session,
    ):
        run_loop(
            session,
            config,
            train_step=description.make_step(mesh),
            evaluations=evaluations,
            peak_flops=config.metrics.peak_tflops * 1e12 or data_sheet,
        )

    # ---- report ----
    if is_main_process():
        command = shlex.join(["python", *sys.argv])
        seconds = time.monotonic() - started
        write_run_report(workdir, command=command, seconds=seconds, parameters=origin.model.num_parameters)
    barrier("trained")
    return training_result(workdir)
