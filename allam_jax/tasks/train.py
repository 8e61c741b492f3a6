"""Task `train`: pre-training, continued pre-training and branches of a run; resumes at any step.

The workdir holds config.json, model.json, tokenizer/, metrics.jsonl, tensorboard/, checkpoints/ and report.md.
"""

import contextlib
import dataclasses
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import optax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from allam_jax.config import differences, to_dict
from allam_jax.data.loader import Loader, make_loader
from allam_jax.errors import UserError
from allam_jax.evaluation.bits_per_byte import make_evaluator, metrics_row
from allam_jax.files import sha256_of_json
from allam_jax.model.llama import Params
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.parallel.distributed import barrier, is_main_process, process_rows
from allam_jax.parallel.mesh import check_batch
from allam_jax.planning.fit import check_fits
from allam_jax.tasks.setup import (
    architecture,
    compute_options,
    mixture,
    open_evaluation,
    open_mesh,
    open_tokenizer,
    phases,
)
from allam_jax.tokenizer.tokenizer import Tokenizer
from allam_jax.training.checkpoints import Checkpointer, Restored, read_metadata, restore_checkpoint
from allam_jax.training.load import CHECKPOINTS_FOLDER, checkpoint_of, load_model, read_run, run_of, save_run
from allam_jax.training.loop import Intervals, run_loop
from allam_jax.training.metrics import MetricsWriter, read_metrics
from allam_jax.training.progress import Throughput
from allam_jax.training.run_description import described_run
from allam_jax.training.run_metadata import describe_run
from allam_jax.training.run_report import write_run_report
from allam_jax.training.state import TrainState, random_params, start_state
from allam_jax.weights.directory import TOKENIZER_FOLDER, check_vocabulary


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains, or goes on training, in `workdir`; returns the final loss, speed and bits per byte by language."""
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        # ---- setup ----
        mesh = open_mesh(config)
        options = compute_options(config)
        check_batch(config.data.batch_size, accumulation=config.train.accumulation, mesh=mesh)
        keep = {"keep_last": config.checkpoint.keep_last, "keep_every": config.checkpoint.keep_every}
        checkpointer = stack.enter_context(Checkpointer(workdir / CHECKPOINTS_FOLDER, **keep))
        resuming = checkpointer.latest_step() is not None
        origin = _reopen(config, workdir) if resuming else _open_origin(config, mesh=mesh)
        model = origin.model
        description = described_run(config, device_count=mesh.size, model=model)
        check_fits(description, mesh=mesh)
        optimizer, abstract = description.optimizer, description.abstract_state(mesh)
        loader = stack.enter_context(_open_loader(config, tokenizer=origin.tokenizer, mesh=mesh))
        held_out = open_evaluation(config, tokenizer=origin.tokenizer)
        evaluator = make_evaluator(
            config=model,
            options=options,
            mesh=mesh,
            batch_size=config.eval.batch_size,
            num_chunks=config.train.loss_chunks,
        )
        tokens_by_source = dict.fromkeys(loader.source_names, 0)

        # ---- restore, branch or start ----
        parent = None
        if resuming:
            state, data, metadata = checkpointer.restore(abstract)
            loader.set_state(data)
            parent = metadata["parent"]
            tokens_by_source |= metadata["tokens_by_source"]
            logging.info("resuming at step %d of %d", int(state.step), config.train.steps)
        else:
            if origin.checkpoint is not None:
                parent = {"path": str(origin.checkpoint), "step": read_metadata(origin.checkpoint)["step"]}
            if origin.checkpoint is not None and _wants_more_than_weights(config):
                state, data, metadata = _branch(config, origin.checkpoint, abstract=abstract, optimizer=optimizer)
                if config.init.data:
                    loader.set_state(data)
                    tokens_by_source |= metadata["tokens_by_source"]
            else:
                params = origin.params or random_params(abstract.params, config=model, seed=config.seed)
                state = start_state(params, abstract=abstract, optimizer=optimizer, seed=config.seed)
            if is_main_process():
                save_run(workdir, config=model, tokenizer_dir=origin.tokenizer_dir)
        if int(state.step) > config.train.steps:
            raise UserError(
                f"config.train.steps = {config.train.steps}: {workdir} is at step {int(state.step)} already; give "
                "more, or branch from one of its checkpoints into another --workdir"
            )
        loader.set_step(int(state.step))  # of this run: what its phases go by
        origin = dataclasses.replace(origin, params=None)  # the step donates them
        logging.info("%s parameters on mesh %s", f"{model.num_parameters:,}", dict(mesh.shape))

        # ---- train ----
        writer = stack.enter_context(
            MetricsWriter(
                workdir,
                resume_step=int(state.step) if resuming else None,
                tensorboard=config.metrics.tensorboard,
                wandb_project=config.metrics.wandb_project,
                config=to_dict(config),
            )
        )
        run_loop(
            state,
            train_step=description.make_step(abstract),
            loader=loader,
            mesh=mesh,
            global_batch=config.data.batch_size,
            seq_len=config.data.seq_len,
            intervals=Intervals(
                steps=config.train.steps,
                log=config.train.log_every,
                evaluate=config.eval.every,
                save=config.checkpoint.every,
            ),
            evaluate=lambda params: metrics_row({name: evaluator(params, rows) for name, rows in held_out.items()}),
            checkpointer=checkpointer,
            writer=writer,
            throughput=Throughput(
                total_steps=config.train.steps,
                flops_per_token=model.flops_per_token(config.data.seq_len),
                peak_flops=config.metrics.peak_tflops * 1e12 * mesh.size,
            ),
            describe=lambda tokens: describe_run(
                config=to_dict(config),
                tokens_by_source=tokens,
                mesh=dict(mesh.shape),
                tokenizer=origin.tokenizer.fingerprint,
                mixture=_mixture_hash(config),
                parent=parent,
            ),
            tokens_by_source=tokens_by_source,
            max_skips_in_a_row=config.guard.max_in_a_row,
        )
    # ---- report ----
    if is_main_process():
        seconds = time.monotonic() - started
        command = shlex.join(["python", *sys.argv])
        write_run_report(workdir, command=command, seconds=seconds, parameters=model.num_parameters)
    barrier("trained")
    return _result(workdir, config=config)


@dataclasses.dataclass(frozen=True)
class _Origin:
    """What a run starts from."""

    model: LlamaConfig
    tokenizer: Tokenizer
    tokenizer_dir: Path
    params: Params | None = None  # None: random ones, or those of the checkpoint
    checkpoint: Path | None = None  # that the run descends from


def _open_origin(config: ConfigDict, *, mesh: Mesh) -> _Origin:
    if not config.init.weights:
        if _wants_more_than_weights(config):
            raise UserError("config.init.optimizer, step and data need init.weights: the path of a checkpoint")
        tokenizer, tokenizer_dir = open_tokenizer(config)
        return _origin(architecture(config, tokenizer=tokenizer), tokenizer, tokenizer_dir, weights="config.model")
    path = Path(config.init.weights)
    checkpoint = checkpoint_of(path)
    if _wants_more_than_weights(config):
        if checkpoint is None:
            raise UserError(
                f"config.init.weights = {path}: only checkpoints hold an optimizer, a step and a data position"
            )
        parent = run_of(checkpoint)
        tokenizer, tokenizer_dir = open_tokenizer(config, beside_weights=parent / TOKENIZER_FOLDER)
        return _origin(read_run(parent), tokenizer, tokenizer_dir, weights=str(path), checkpoint=checkpoint)
    loaded = load_model(path, mesh=mesh, param_dtype=config.param_dtype)
    tokenizer, tokenizer_dir = open_tokenizer(config, beside_weights=loaded.tokenizer_dir)
    return _origin(
        loaded.config, tokenizer, tokenizer_dir, weights=str(path), params=loaded.params, checkpoint=checkpoint
    )


def _origin(
    model: LlamaConfig,
    tokenizer: Tokenizer,
    tokenizer_dir: Path,
    *,
    weights: str,
    params: Params | None = None,
    checkpoint: Path | None = None,
) -> _Origin:
    check_vocabulary(model, tokenizer_size=tokenizer.vocab_size, tokenizer=str(tokenizer_dir), weights=weights)
    return _Origin(model, tokenizer, tokenizer_dir, params, checkpoint)


def _wants_more_than_weights(config: ConfigDict) -> bool:
    return config.init.optimizer or config.init.step or config.init.data


def _branch(
    config: ConfigDict, checkpoint: Path, *, abstract: TrainState, optimizer: optax.GradientTransformationExtraArgs
) -> Restored:
    """The checkpoint's state with those parts made new that the config does not take from it."""
    state, data, metadata = restore_checkpoint(checkpoint, abstract_state=abstract)
    if not (config.init.optimizer and config.init.step):
        new = start_state(state.params, abstract=abstract, optimizer=optimizer, seed=config.seed)
        if not config.init.optimizer:
            state = state._replace(optimizer=new.optimizer)
        if not config.init.step:
            state = state._replace(step=new.step, rng=new.rng)
    return Restored(state, data, metadata)


def _reopen(config: ConfigDict, workdir: Path) -> _Origin:
    """The run's own architecture and tokenizer; its parameters come from its checkpoint."""
    tokenizer, tokenizer_dir = open_tokenizer(config, beside_weights=workdir / TOKENIZER_FOLDER)
    model = read_run(workdir)
    origin = _origin(model, tokenizer, tokenizer_dir, weights=f"the run in {workdir}")
    if not config.init.weights:  # otherwise config.model says nothing: the weights do
        wanted = architecture(config, tokenizer=tokenizer)
        changed = differences(dataclasses.asdict(model), dataclasses.asdict(wanted), "config.model.")
        if changed:
            raise UserError(f"{workdir} holds a run of another model ({'; '.join(changed)}); use another --workdir")
    return origin


def _mixture_hash(config: ConfigDict) -> str:
    """Without phases, that of the sources alone: what it was before there were phases."""
    later = phases(config)
    return sha256_of_json([mixture(config), later] if later else mixture(config))


def _open_loader(config: ConfigDict, *, tokenizer: Tokenizer, mesh: Mesh) -> Loader:
    start, stop = process_rows(mesh, global_batch=config.data.batch_size)
    rows = stop - start
    return make_loader(
        sources=mixture(config),
        tokenizer=tokenizer,
        seq_len=config.data.seq_len,
        batch_size=config.data.batch_size,
        seed=config.seed,
        phases=phases(config),
        lanes=config.data.lanes or None,
        # Processes that differ along the tensor axis only read the same rows.
        process_index=start // rows,
        process_count=config.data.batch_size // rows,
    )


def _result(workdir: Path, *, config: ConfigDict) -> dict[str, Any]:
    rows = read_metrics(workdir / "metrics.jsonl")
    training = [row for row in rows if "loss" in row]
    evaluations = [
        {"step": row["step"]} | {key.split("/")[1]: value for key, value in row.items() if key.startswith("eval/")}
        for row in rows
        if any(key.startswith("eval/") for key in row)
    ]
    seconds = sum(row["seconds"] for row in training[1:])
    # A row holds the seconds of its own step, not of those since the row before.
    tokens = (len(training) - 1) * config.data.batch_size * config.data.seq_len
    return {
        "step": training[-1]["step"],
        "loss": training[-1]["loss"],
        "bits_per_byte": evaluations,
        "tokens_per_second": training[-1]["tokens_per_second"] if not seconds else tokens / seconds,
    }
