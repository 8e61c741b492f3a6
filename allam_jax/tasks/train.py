"""Task `train`: pre-training, continued pre-training and branches of a run; resumes at any step.

Tasks `sft` and `dpo` are the same with other material. The workdir holds config.json, model.json, tokenizer/,
metrics.jsonl, tensorboard/, checkpoints/ and report.md; with low-rank adapters also adapter/, as PEFT reads it; with
`optimizer.average_decay` also average/, a weights directory.
"""

import dataclasses
import functools
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from allam_jax.parallel.distributed import barrier, is_main_process, leave, places
from allam_jax.parallel.gpus import peak_flops
from allam_jax.parallel.mesh import check_batch
from allam_jax.planning.fit import check_fits
from allam_jax.settings import Settings
from allam_jax.tasks.setup import open_evaluations, open_loader, open_mesh
from allam_jax.tasks.suite_evaluation import open_suites
from allam_jax.training.loop import run_loop
from allam_jax.training.material import Material, MaterialOf
from allam_jax.training.origin import Origin, open_origin
from allam_jax.training.run_description import described_run
from allam_jax.training.run_report import training_result, write_run_report
from allam_jax.training.session import open_session
from allam_jax.training.trained_adapter import write_adapter
from allam_jax.training.trained_average import write_average
from allam_jax.watchdog import Watchdog


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Trains, or goes on training, in `workdir`; returns the final loss, speed and evaluations."""
    return train_on(config, workdir, material_of=_documents)


def train_on(config: Settings, workdir: Path, *, material_of: MaterialOf) -> dict[str, Any]:
    """`run` with the material that `material_of(config, workdir, origin, mesh)` opens."""
    with Watchdog(
        report_minutes=config.metrics.stall_report_minutes,
        leave_minutes=config.metrics.stall_leave_minutes,
        others=places,
        leaving=leave,
    ):
        return _train(config, workdir, material_of)


def _documents(config: Settings, workdir: Path, origin: Origin, mesh: Mesh) -> Material:
    """That of pre-training."""
    tokenizer = origin.tokenizer
    return Material(
        open_loader=functools.partial(open_loader, config, tokenizer=tokenizer, mesh=mesh),
        open_evaluations=functools.partial(
            open_evaluations, config, model=origin.model, tokenizer=tokenizer, mesh=mesh
        ),
    )


def _train(config: Settings, workdir: Path, material_of: MaterialOf) -> dict[str, Any]:
    started = time.monotonic()
    # ---- what is trained, on what ----
    mesh = open_mesh(config)
    check_batch(config.data.batch_size, accumulation=config.train.accumulation, mesh=mesh)
    origin = open_origin(config, workdir=workdir, mesh=mesh)
    material = material_of(config, workdir, origin, mesh)
    if material.steps is not None:
        changed = {"train": dataclasses.replace(config.train, steps=material.steps)}
        config = Settings(**vars(config) | changed)
    description = described_run(
        config,
        device_count=mesh.size,
        model=origin.model,
        objective=material.objective,
        num_sources=material.num_sources,
    )
    check_fits(description, mesh=mesh)
    data_sheet = peak_flops(mesh.devices.flat[0].device_kind, compute_dtype=config.compute.compute_dtype)
    evaluations = [*material.open_evaluations(), *open_suites(config, workdir, origin=origin, mesh=mesh)]

    # ---- train ----
    with (
        material.open_loader() as loader,
        open_session(
            config, workdir, origin=origin, run=description, mesh=mesh, loader=loader, prepare=material.prepare
        ) as session,
    ):
        over = run_loop(
            session,
            config,
            train_step=description.make_step(mesh),
            evaluations=evaluations,
            watchers=material.watchers,
            peak_flops=config.metrics.peak_tflops * 1e12 or data_sheet,
        )
        write_adapter(config, session)
        write_average(session)

    # ---- report ----
    if is_main_process():
        command = shlex.join(["python", *sys.argv])
        seconds = time.monotonic() - started
        write_run_report(workdir, command=command, seconds=seconds, parameters=origin.model.num_parameters)
    barrier("trained")
    return training_result(workdir) | ({"ended_early": over} if over else {})
