"""Writes the adapters that a run has trained, as PEFT reads them."""

import jax
from jax.sharding import NamedSharding, PartitionSpec

from allam_jax.model.llama import LORA
from allam_jax.parallel.distributed import is_main_process
from allam_jax.settings import Settings
from allam_jax.training.session import Session
from allam_jax.weights.peft import export_adapter

ADAPTER_FOLDER = "adapter"


def write_adapter(config: Settings, session: Session) -> None:
    """Writes `adapter/` into the workdir of a run with adapters; all processes call it."""
    if not config.lora.rank:
        return
    whole = NamedSharding(session.mesh, PartitionSpec())
    tables = {name for name in ("embedding", "head") if name in config.trainable.parameters}
    kept = {name: value for name, value in session.state.params.items() if name == LORA or name in tables}
    params = jax.jit(lambda params: params, out_shardings=whole)(kept)
    if is_main_process():
        export_adapter(
            session.workdir / ADAPTER_FOLDER,
            params=params,
            config=session.run.model,
            settings=config.lora,
            base=config.init.weights,
        )
