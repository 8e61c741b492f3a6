"""Writes the moving average of the weights that a run has kept, as a weights directory."""

from allam_jax.model.low_rank import merged
from allam_jax.training.session import Session
from allam_jax.weights.directory import TOKENIZER_FOLDER, save_weights

AVERAGE_FOLDER = "average"


def write_average(session: Session) -> None:
    """Writes `average/` into the workdir of a run with `optimizer.average_decay`; all processes call it."""
    if (params := session.averaged_params()) is None:
        return
    save_weights(
        session.workdir / AVERAGE_FOLDER,
        params=merged(params),
        config=session.run.model,
        tokenizer_dir=session.workdir / TOKENIZER_FOLDER,
        metadata={"step": int(session.state.step), "tokenizer": session.metadata["tokenizer"]},
    )
