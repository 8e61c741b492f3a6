"""What a run begins with: its architecture and tokenizer, and the parameters or the checkpoint that it starts from."""

import dataclasses
from pathlib import Path

from absl import logging
from jax.sharding import Mesh

from allam_jax.config import CHECKPOINTS_FOLDER, differences, require
from allam_jax.errors import UserError
from allam_jax.model.llama import Params
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.settings import Settings
from allam_jax.tokenizer.tokenizer import Tokenizer, directory_of
from allam_jax.training.load import checkpoint_of, load_model, read_run, run_of
from allam_jax.training.metrics import METRICS_FILE, read_metrics
from allam_jax.training.stored_checkpoints import list_steps, move_damaged_aside, read_metadata
from allam_jax.weights.directory import TOKENIZER_FOLDER, check_vocabulary


@dataclasses.dataclass(kw_only=True)
class Origin:
    """What a run begins with; nothing is trained yet.

    The session takes `params` away, because the first step overwrites their memory.
    """

    model: LlamaConfig
    tokenizer: Tokenizer  # fits the model's vocabulary
    tokenizer_dir: Path
    params: Params | None = None  # to start from; None if they are random or come from a checkpoint
    checkpoint: Path | None = None  # from which the run descends
    resuming: bool = False  # whether the run itself has a checkpoint already


def open_origin(config: Settings, *, workdir: Path, mesh: Mesh) -> Origin:
    """What the run in `workdir` begins with: its own checkpoint, `config.init`, or random parameters.

    Raises:
        UserError: what `config.init.weights` names is not there or lacks what is asked of it, the tokenizer does not
            fit the model, or the run in `workdir` is of another model.
    """
    _check_folder(workdir / CHECKPOINTS_FOLDER)
    if config.checkpoint.skip_damaged:
        move_damaged_aside(workdir / CHECKPOINTS_FOLDER)
    if list_steps(workdir / CHECKPOINTS_FOLDER):
        return _own(config, workdir)
    _check_history(workdir)
    if not config.init.weights:
        if is_branch(config):
            raise UserError("config.init.optimizer, step and data need init.weights: the path of a checkpoint")
        tokenizer, tokenizer_dir = open_tokenizer(config)
        model = architecture(config, tokenizer=tokenizer)
        check_vocabulary(model, tokenizer.vocab_size, tokenizer=str(tokenizer_dir), weights="config.model")
        return Origin(model=model, tokenizer=tokenizer, tokenizer_dir=tokenizer_dir)
    path = Path(config.init.weights)
    checkpoint = checkpoint_of(path)
    if is_branch(config):
        if checkpoint is None:
            raise UserError(
                f"config.init.weights = {path}: only checkpoints hold an optimizer, a step and a data position"
            )
        parent = run_of(checkpoint)
        model, params, metadata = read_run(parent), None, read_metadata(checkpoint)
        beside: Path | None = parent / TOKENIZER_FOLDER
    else:
        loaded = load_model(path, mesh=mesh, param_dtype=config.param_dtype)
        model, params, beside, metadata = loaded.config, loaded.params, loaded.tokenizer_dir, loaded.metadata
    fingerprint = metadata.get("tokenizer")
    tokenizer, tokenizer_dir = open_fitting_tokenizer(
        config, model, beside_weights=beside, weights=str(path), fingerprint=fingerprint
    )
    return Origin(model=model, tokenizer=tokenizer, tokenizer_dir=tokenizer_dir, params=params, checkpoint=checkpoint)


def _check_folder(folder: Path) -> None:
    """UserError where something else lies in the place of the folder of checkpoints, or a link that leads nowhere."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; the folder of the run's checkpoints belongs there: move the file away")
    for path in (folder, *(sorted(folder.iterdir()) if folder.is_dir() else ())):
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path}: is a link that leads nowhere; put back what it led to, or remove the link")


def _check_history(workdir: Path) -> None:
    """UserError if a run has a history but its checkpoints folder is gone; says it if the history begins again."""
    path = workdir / METRICS_FILE
    rows = read_metrics(path) if path.is_file() else []
    if not rows:
        return
    if not (workdir / CHECKPOINTS_FOLDER).is_dir():
        raise UserError(
            f"{workdir / CHECKPOINTS_FOLDER}: is gone, but {METRICS_FILE} has a history up to step {rows[-1]['step']}; "
            "put it back to go on, or remove that file to train anew"
        )
    logging.warning(
        "%s: no complete checkpoint; training begins anew, and so does %s, which had reached step %d",
        *(workdir, METRICS_FILE, rows[-1]["step"]),
    )


def is_branch(config: Settings) -> bool:
    """Whether the run takes more than parameters from `init.weights`."""
    return config.init.optimizer or config.init.step or config.init.data


def open_tokenizer(config: Settings, *, beside_weights: Path | None = None) -> tuple[Tokenizer, Path]:
    """The tokenizer of `config.tokenizer`, or else the one beside the weights, and its directory."""
    path = Path(
        require(
            config.tokenizer or str(beside_weights or ""),
            key="tokenizer",
            hint="give a tokenizer directory (the weights, if any, have none beside them)",
        )
    )
    return Tokenizer.load(path), directory_of(path)


def open_fitting_tokenizer(
    config: Settings, model: LlamaConfig, *, beside_weights: Path | None, weights: str, fingerprint: str | None = None
) -> tuple[Tokenizer, Path]:
    """As `open_tokenizer`; UserError unless it fits the model, whose weights are called `weights`.

    It must have the model's vocabulary and, where one is written with the weights, the same fingerprint.
    """
    tokenizer, directory = open_tokenizer(config, beside_weights=beside_weights)
    check_vocabulary(
        model, tokenizer.vocab_size, tokenizer=str(directory), weights=weights, is_own=not config.tokenizer
    )
    if fingerprint not in (None, tokenizer.fingerprint):
        remedy = "leave config.tokenizer empty to take that one" if config.tokenizer else "copy it again"
        raise UserError(
            f"{directory}: is not the tokenizer that {weights} was written with (fingerprint "
            f"{tokenizer.fingerprint[:12]} instead of {fingerprint[:12]}); {remedy}"
        )
    return tokenizer, directory


def architecture(config: Settings, *, tokenizer: Tokenizer) -> LlamaConfig:
    """`config.model`; vocab_size 0 takes the tokenizer's."""
    return dataclasses.replace(config.model, vocab_size=config.model.vocab_size or tokenizer.vocab_size)


def _own(config: Settings, workdir: Path) -> Origin:
    """The run's own architecture and tokenizer; its parameters come from its checkpoint."""
    model = read_run(workdir)
    tokenizer, tokenizer_dir = open_fitting_tokenizer(
        config, model, beside_weights=workdir / TOKENIZER_FOLDER, weights=f"the run in {workdir}"
    )
    if not config.init.weights:  # otherwise the weights decide, and config.model says nothing
        wanted = architecture(config, tokenizer=tokenizer)
        changed = differences(dataclasses.asdict(model), dataclasses.asdict(wanted), "config.model.")
        if changed:
            raise UserError(f"{workdir} holds a run of another model ({'; '.join(changed)}); use another --workdir")
    return Origin(model=model, tokenizer=tokenizer, tokenizer_dir=tokenizer_dir, resuming=True)
