"""Task `train`: pre-training, continued pre-training and branches of a run; resumes at any step.

Tasks `sft` and `dpo` are the same with other material. The workdir holds config.json, model.json, tokenizer/,
metrics.jsonl, tensorboard/, checkpoints/ and report.md; with low-rank adapters also adapter/, as PEFT reads it; with
`optimizer.average_decay` also average/, a weights directory.
"""

import functools
import time
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from allam_jax.parallel.mesh import check_batch
from allam_jax.planning.fit import check_fits
from allam_jax.settings import Settings
from allam_jax.tasks.setup import open_evaluations, open_loader, open_mesh, open_watchdog, peak_flops_of
from allam_jax.tasks.suite_evaluation import open_suites
from allam_jax.training.loop import run_loop
from allam_jax.training.material import Material, MaterialOf
from allam_jax.training.origin import Origin, open_origin
from allam_jax.training.run_description import described_run
from allam_jax.training.run_report import reported
from allam_jax.training.session import open_session
from allam_jax.training.trained_adapter import write_adapter
from allam_jax.training.trained_average import write_average


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Trains, or goes on training, in `workdir`; returns the final loss, speed and evaluations."""
    return train_on(config, workdir, material_of=_documents)


def _documents(config: Settings, workdir: Path, origin: Origin, mesh: Mesh) -> Material:
    """That of pre-training."""
    model, tokenizer = origin.model, origin.tokenizer
    return Material(
        open_loader=functools.partial(open_loader, config, tokenizer=tokenizer, mesh=mesh),
        open_evaluations=functools.partial(open_evaluations, config, model=model, tokenizer=tokenizer, mesh=mesh),
    )


def train_on(config: Settings, workdir: Path, *, material_of: MaterialOf) -> dict[str, Any]:
    """`run` with the material that `material_of(config, workdir, origin, mesh)` opens."""
    started = time.monotonic()
    with open_watchdog(config):
        mesh = open_mesh(config)
        check_batch(config.data.batch_size, accumulation=config.train.accumulation, mesh=mesh)
        origin = open_origin(config, workdir=workdir, mesh=mesh)
        material = material_of(config, workdir, origin, mesh)
        config = material.settings(config)
        description = described_run(
            config,
            device_count=mesh.size,
            model=origin.model,
            objective=material.objective,
            num_sources=material.num_sources,
        )
        check_fits(description, mesh=mesh)
        evaluations = [*material.open_evaluations(), *open_suites(config, workdir, origin=origin, mesh=mesh)]
        with (
            material.open_loader() as loader,
            open_session(
                config,
                workdir,
                origin=origin,
                run=description,
                mesh=mesh,
                loader=loader,
                prepare=material.prepare,
                beside_tokenizer=material.beside_tokenizer,
            ) as session,
        ):
            ended_early = run_loop(
                session,
                config,
                train_step=description.make_step(mesh),
                evaluations=evaluations,
                watchers=material.watchers,
                peak_flops=peak_flops_of(config, mesh=mesh),
            )
            write_adapter(config, session)
            write_average(session)
        result = reported(workdir, started=started, parameters=origin.model.num_parameters)
    return result | ({"ended_early": ended_early} if ended_early else {})
