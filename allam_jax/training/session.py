"""An open run: its state, its data, and where its checkpoints and metrics go. Every kind of training uses it.

A run is fresh (random or loaded parameters), resumed (from its own newest checkpoint) or a branch (parts of another
run's checkpoint). The loop needs the same objects in all three cases.
"""

import contextlib
import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from allam_jax.config import CHECKPOINTS_FOLDER
from allam_jax.data.batch import BatchSource
from allam_jax.errors import UserError
from allam_jax.files import Keys, check_shape, sha256_of_json
from allam_jax.model.llama import LORA, Params
from allam_jax.parallel.distributed import gather, global_batch_array, is_main_process
from allam_jax.settings import Settings, as_dict
from allam_jax.training.checkpoints import Checkpointer
from allam_jax.training.load import check_run_of, run_name, save_run
from allam_jax.training.metrics import MetricsWriter
from allam_jax.training.objective import Batch, Prepare, unchanged
from allam_jax.training.origin import Origin, is_branch
from allam_jax.training.run_description import RunDescription
from allam_jax.training.run_metadata import run_metadata
from allam_jax.training.state import TrainState, random_params, start_state, with_new_adapters
from allam_jax.training.stored_checkpoints import Restored, find_checkpoint, read_metadata, restore_checkpoint
from allam_jax.training.weight_average import averaged


@dataclasses.dataclass(kw_only=True)
class Session:
    """An open run. A step donates the buffers of `state`: whoever runs a step puts the new state there."""

    workdir: Path
    run: RunDescription
    mesh: Mesh
    state: TrainState  # after the last step
    loader: BatchSource  # yields this process's rows as numpy batches, from the next step on
    checkpointer: Checkpointer
    writer: MetricsWriter  # opened for the step of `state`
    metadata: dict[str, Any]  # of every checkpoint, without the tokens by source
    tokens: "TokenCounts"  # trained on so far, by source
    prepare: Prepare

    def next_batch(self) -> Batch:
        """The batch of the next step, on all devices."""
        loaded = global_batch_array(next(self.loader), mesh=self.mesh, global_batch=self.run.batch_size)
        return self.prepare(self.state.params, loaded)

    def averaged_params(self) -> Params | None:
        """The parameters with the average of the trained ones; None for a run that keeps none."""
        trainable, params = self.run.trainable, self.state.params
        average = averaged(self.state.optimizer, trainable.select(params))
        return None if average is None else trainable.insert(params, average)

    def save(self, step: int) -> None:
        """Starts writing the checkpoint of `step`, the number of updates made. Flush the writer first."""
        metadata = {
            "tokens_by_source": self.tokens.settle(keep=0),
            "metrics": gather(self.writer.written)[0],  # what metrics.jsonl has to begin with on a resume
            **self.metadata,
        }
        self.checkpointer.save(step, state=self.state, data=self.loader.get_state(), metadata=metadata)


@contextlib.contextmanager
def open_session(
    config: Settings,
    workdir: Path,
    *,
    origin: Origin,
    run: RunDescription,
    mesh: Mesh,
    loader: BatchSource,
    prepare: Prepare = unchanged,
    beside_tokenizer: Mapping[str, bytes] = MappingProxyType({}),
) -> Iterator[Session]:
    """Opens the run in `workdir`; on leaving, waits for the last checkpoint and closes the metrics.

    All of `config` is recorded; its sections `init`, `train`, `checkpoint` and `metrics`, and the seed, are read. The
    origin loses its parameters, and the loader is moved to the position of the run. `beside_tokenizer` as `Material`
    has it.

    Raises:
        UserError: a checkpoint is damaged or of another run, or the run is beyond `config.train.steps`.
    """
    with contextlib.ExitStack() as stack:
        checkpointer = stack.enter_context(Checkpointer(workdir / CHECKPOINTS_FOLDER, config.checkpoint))
        metadata: dict[str, Any] = {}
        abstract = run.abstract_state(mesh)
        tokens = dict.fromkeys(loader.source_names, 0)
        if origin.resuming:
            state, data, metadata = checkpointer.restore(abstract)
            check_run_of(find_checkpoint(checkpointer.directory), metadata)
            keys: Keys = {"tokens_by_source": dict, "parent": (dict, type(None))}
            check_shape(metadata, kind=dict, keys=keys, where=f"{checkpointer.directory}, metadata of the checkpoint:")
            loader.set_state(data)
            tokens |= metadata["tokens_by_source"]
            parent = metadata["parent"]
            name = run_name(workdir) or ""
            if metadata.get("config", {}).get("init") != as_dict(config)["init"]:
                logging.warning("config.init has changed: nothing of it is read, because the run has a checkpoint")
            logging.info("resuming at step %d of %d", int(state.step), config.train.steps)
        else:
            parent = None
            if origin.checkpoint is not None:
                parent = {"path": str(origin.checkpoint), "step": read_metadata(origin.checkpoint)["step"]}
            if is_branch(config):
                assert origin.checkpoint is not None
                state, data, metadata = _branch(config, origin.checkpoint, abstract=abstract, run=run)
                if config.init.data:
                    loader.set_state(data)
                    tokens |= metadata["tokens_by_source"]
            else:
                own = {key: value for key, value in abstract.params.items() if key != LORA}
                params = origin.params or random_params(own, config=run.model, seed=config.seed)
                params = with_new_adapters(
                    params, abstract.params, config=run.model, settings=run.lora, seed=config.seed
                )
                state = _start(params, abstract=abstract, run=run, seed=config.seed)
            # What it begins with names a run: two runs of one name are the same to the last bit.
            name = sha256_of_json([as_dict(config), origin.tokenizer.fingerprint, loader.mixture])
            if is_main_process():
                save_run(
                    workdir,
                    config=run.model,
                    tokenizer_dir=origin.tokenizer_dir,
                    name=name,
                    beside_tokenizer=beside_tokenizer,
                )
        origin.params = None
        if int(state.step) > config.train.steps:
            raise UserError(
                f"config.train.steps = {config.train.steps}: {workdir} is at step {int(state.step)} already; give "
                "more, or branch from one of its checkpoints into another --workdir"
            )
        loader.set_step(int(state.step))  # the phases of the mixture follow the steps of this run
        logging.info("%s parameters on mesh %s", f"{run.model.num_parameters:,}", dict(mesh.shape))
        writer = stack.enter_context(
            MetricsWriter(
                workdir,
                config.metrics,
                resume_step=int(state.step) if origin.resuming else None,
                config=as_dict(config),
                expected=metadata.get("metrics") if origin.resuming else None,
            )
        )
        yield Session(
            workdir=workdir,
            run=run,
            mesh=mesh,
            state=state,
            loader=loader,
            checkpointer=checkpointer,
            writer=writer,
            metadata=run_metadata(
                config=as_dict(config),
                mesh=dict(mesh.shape),
                tokenizer=origin.tokenizer.fingerprint,
                mixture=loader.mixture,
                run=name,
                parent=parent,
            ),
            tokens=TokenCounts(tokens),
            prepare=prepare,
        )


def _start(params: Params, *, abstract: TrainState, run: RunDescription, seed: int) -> TrainState:
    return start_state(params, abstract=abstract, optimizer=run.optimizer, seed=seed, trainable=run.trainable)


def _branch(config: Settings, checkpoint: Path, *, abstract: TrainState, run: RunDescription) -> Restored:
    """The checkpoint's state, with those parts made new that the config does not take from it.

    What is made new is not read, so a run may train other parameters than its parent.
    """
    if config.init.optimizer and config.init.step:
        return restore_checkpoint(checkpoint, abstract_state=abstract)
    taken: dict[str, Any] = {"params": abstract.params}
    if config.init.step:
        taken |= {"step": abstract.step, "rng": abstract.rng, "optimizer": {"guard": abstract.optimizer.guard}}
    if config.init.optimizer:
        taken["optimizer"] = abstract.optimizer._asdict()
    parts, data, metadata = restore_checkpoint(checkpoint, abstract_state=taken, partial=True)
    new = _start(parts["params"], abstract=abstract, run=run, seed=config.seed)
    optimizer = new.optimizer._replace(**parts.get("optimizer", {}))
    if not config.init.step:
        optimizer = optimizer._replace(guard=new.optimizer.guard)
    state = new._replace(optimizer=optimizer, **{key: parts[key] for key in ("step", "rng") if key in parts})
    return Restored(state, data, metadata)


class TokenCounts:
    """Exact tokens by source on the host, from device counts that are fetched late."""

    def __init__(self, start: dict[str, int]):
        """Begins with these totals: sources in the order of `source_ids`, then those that are no longer read."""
        self._totals = dict(start)
        self._waiting: deque[jax.Array] = deque()

    def add(self, counts: jax.Array) -> None:
        """Adds one step's counts, [sources] on the device, without waiting for them."""
        counts.copy_to_host_async()
        self._waiting.append(counts)

    def settle(self, *, keep: int) -> dict[str, int]:
        """Adds up all but the newest `keep` steps; returns the totals."""
        while len(self._waiting) > keep:
            counts = np.asarray(self._waiting.popleft())
            # A branch may leave out sources of its parent: their totals come after those of its own.
            for name, count in zip(self._totals, counts, strict=False):
                self._totals[name] += int(count)
        return dict(self._totals)
