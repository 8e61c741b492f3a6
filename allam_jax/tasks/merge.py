"""Task `merge`: one model out of several on disk, with no more of them in memory than a few blocks."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from allam_jax import files
from allam_jax.config import CHECKPOINTS_FOLDER, require
from allam_jax.errors import UserError
from allam_jax.settings import Settings
from allam_jax.tasks.export import write_formats
from allam_jax.tokenizer.tokenizer import Tokenizer, directory_of
from allam_jax.training.load import open_stored
from allam_jax.training.run_metadata import code_revision
from allam_jax.training.schedules import decay
from allam_jax.training.stored_checkpoints import find_checkpoint
from allam_jax.weights.directory import LoadedWeights, check_vocabulary
from allam_jax.weights.merged import Method, Slerp, check_same_architecture, merged_params
from allam_jax.weights.merging import decay_coefficients, normalised, update_weights
from allam_jax.weights.settings import MergeSettings


@dataclasses.dataclass(frozen=True)
class _Input:
    path: Path
    weight: float
    model: LoadedWeights

    @property
    def step(self) -> int | None:
        """Updates that made it, where that is known."""
        return self.model.metadata.get("step")


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Merges `config.merge.models` and writes the result as task `export` does, and `merge.json`: what it is made of.

    UserError if the models are not of one architecture and one tokenizer.
    """
    require(config.export.formats, key="export.formats", hint="choose huggingface, orbax or both")
    inputs = _open(config.merge)
    check_same_architecture([(str(one.path), one.model.config) for one in inputs])
    tokenizer, tokenizer_dir = _common_tokenizer(config, inputs)
    method = _method(config, inputs)
    record = _describe(config, inputs, method)
    for source in record["models"]:
        logging.info("merge %s: %s", config.merge.method, ", ".join(f"{key} {value}" for key, value in source.items()))
    architecture = inputs[0].model.config
    params = merged_params(
        [one.model.params for one in inputs], config=architecture, method=method, dtype=config.export.dtype or None
    )
    paths = write_formats(
        config,
        workdir,
        params=params,
        architecture=architecture,
        tokenizer=tokenizer,
        tokenizer_dir=tokenizer_dir,
        metadata={"step": inputs[-1].step, "merge": record, "code_revision": code_revision()},
    )
    files.write_json(workdir / "merge.json", record)
    return paths | record


def _open(options: MergeSettings) -> list[_Input]:
    require(options.models, key="merge.models", hint="name at least two models to merge")
    inputs = []
    for name, source in options.models.items():
        key = f"merge.models.{name}"
        path = Path(require(source.path, key=f"{key}.path", hint="give the path of a model"))
        if options.method != "weighted" and source.weight != 1.0:
            raise UserError(f"config.{key}.weight = {source.weight}: only merge.method = 'weighted' takes weights")
        paths = [find_checkpoint(path / CHECKPOINTS_FOLDER, step=step) for step in source.steps] or [path]
        inputs += [_Input(path, source.weight, open_stored(path)) for path in paths]
    return inputs


def _common_tokenizer(config: Settings, inputs: list[_Input]) -> tuple[Tokenizer, Path]:
    """The tokenizer that all inputs share; `config.tokenizer` stands for those that have none beside them."""
    given = Path(config.tokenizer) if config.tokenizer else None
    candidates = [(str(given), given)] if given else []
    for one in inputs:
        if one.model.tokenizer_dir is None and given is None:
            raise UserError(f"{one.path}: no tokenizer beside the weights; give config.tokenizer, if it is that of all")
        if one.model.tokenizer_dir is not None:
            candidates.append((str(one.path), one.model.tokenizer_dir))
    (first_name, first_dir), *others = candidates
    tokenizer = Tokenizer.load(first_dir)
    for name, directory in others:
        if Tokenizer.load(directory).fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"merge: {name} has another tokenizer than {first_name}: a token would mean different things to them; "
                "expand the one to the other's vocabulary first (task expand)"
            )
    first = inputs[0]
    is_own = first_dir == first.model.tokenizer_dir
    check_vocabulary(
        first.model.config, tokenizer.vocab_size, tokenizer=first_name, weights=str(first.path), is_own=is_own
    )
    return tokenizer, directory_of(first_dir)


def _method(config: Settings, inputs: list[_Input]) -> Method:
    name, t = config.merge.method, config.merge.t
    if len(inputs) < 2:
        raise UserError(f"config.merge.models: {len(inputs)} model; a merge needs at least two")
    if name in ("linear", "slerp"):
        if len(inputs) != 2:
            raise UserError(f"config.merge.models: {len(inputs)} models; method {name!r} is between two")
        return Slerp(t) if name == "slerp" else (1 - t, t)
    if name == "decay":
        return decay_coefficients(_decay_weights(config, inputs))
    return normalised([one.weight for one in inputs])


def _decay_weights(config: Settings, inputs: list[_Input]) -> list[float]:
    """The decay from the first checkpoint to the last; they count as evenly spaced if no step is known."""
    steps = [one.step for one in inputs]
    known = [step for step in steps if step is not None]
    if known and len(known) < len(steps):
        unknown = inputs[steps.index(None)].path
        raise UserError(f"{unknown}: its step is not known, but those of others are; a decay needs the steps of all")
    known = known or list(range(len(steps)))
    length = max(known[-1] - known[0], 1)
    shape = decay(1.0, steps=length, shape=config.merge.decay_shape, final_fraction=config.merge.final_fraction)
    return update_weights(known, shape=lambda updates: np.asarray(shape(updates)))


def _describe(config: Settings, inputs: list[_Input], method: Method) -> dict[str, Any]:
    record: dict[str, Any] = {"method": config.merge.method}
    record["models"] = [{"path": str(one.path), "step": one.step} for one in inputs]
    if isinstance(method, Slerp):
        return record | {"t": method.t}
    for source, coefficient in zip(record["models"], method, strict=True):
        source["coefficient"] = coefficient
    if config.merge.method == "decay":
        record["decay"] = {"decay_shape": config.merge.decay_shape, "final_fraction": config.merge.final_fraction}
    return record
