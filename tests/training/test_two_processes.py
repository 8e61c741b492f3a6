"""Two processes over loopback: one checkpoint of both, and one step to stop at when only one of them is told."""

import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import child_environment, free_port, start, wait, wait_until

from allam_jax.training.stored_checkpoints import find_checkpoint, list_steps, restore_checkpoint

PROCESS = """
import sys, time
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
rank, port, workdir = int(sys.argv[1]), sys.argv[2], sys.argv[3]
from allam_jax import interrupts
interrupts.install()
from allam_jax.parallel.distributed import initialize
initialize(coordinator="localhost:" + port, num_processes=2, process_id=rank)
from allam_jax.training.checkpoints import Checkpointer
from allam_jax.training.settings import CheckpointSettings, MetricsSettings
from allam_jax.training.metrics import MetricsWriter
from allam_jax.training.signals import StopSignal

mesh = Mesh(np.array(jax.devices()), ("fsdp",))
split, whole = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())
table = np.arange(64, dtype=np.float32).reshape(8, 8)
state = {
    "table": jax.make_array_from_callback((8, 8), split, lambda index: table[index]),
    "step": jax.make_array_from_callback((), whole, lambda index: np.int32(7)),
}
abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
c = Checkpointer(workdir + "/c", CheckpointSettings(keep_last=2))
m, stop = MetricsWriter(workdir, MetricsSettings(tensorboard=False)), StopSignal()
with c, m, stop:
    open(f"{workdir}/ready{rank}", "w").close()
    for step in range(1, 600):
        m.write(step, {"loss": state["step"]})
        name = stop.requested(step)
        if step in (1, 2, 3) or name:
            lanes = {"epoch": 1, "lanes": {str(rank): {"at": step}, str(rank + 2): {"at": "x" * 50 * rank}}}
            c.save(step, state=state, data=lanes, metadata={"stopped_by": name})
        if name:
            break
        time.sleep(0.01)
    restored = c.restore(abstract)
    assert restored.state["table"].sharding == split
    for shard in restored.state["table"].addressable_shards:
        np.testing.assert_array_equal(shard.data, table[shard.index])
    assert set(restored.data["lanes"]) == {"0", "1", "2", "3"}, restored.data
with open(f"{workdir}/stopped{rank}", "w") as file:
    file.write(f"{name} {step}")
from allam_jax.parallel import lifeline
lifeline.current().finish()
import os
os._exit(0)
"""


@pytest.mark.slow
def test_two_processes_save_together_and_stop_together(tmp_path):
    port = free_port()
    children = [
        start([sys.executable, "-c", PROCESS, rank, port, tmp_path], environment=child_environment(devices=2))
        for rank in range(2)
    ]
    try:
        for rank, child in enumerate(children):
            wait_until((tmp_path / f"ready{rank}").exists, process=child)
        children[1].send_signal(signal.SIGTERM)  # only one of them is told
        ends = [wait(child, timeout=120) for child in children]
    finally:
        for child in children:
            child.kill()
    assert [end.status for end in ends] == [0, 0], ends
    # Not through standard output: Gloo writes its own lines there, in pieces.
    stopped = [(tmp_path / f"stopped{rank}").read_text() for rank in range(2)]
    name, step = stopped[0].split()
    assert name == "SIGTERM"
    assert stopped[0] == stopped[1]
    assert list_steps(tmp_path / "c")[-1] == int(step)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == int(step), "only one process writes, and all rows"

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # one process reads what two have written
    abstract = {
        "table": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=here),
        "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=here),
    }
    restored = restore_checkpoint(find_checkpoint(tmp_path / "c"), abstract_state=abstract)
    np.testing.assert_array_equal(restored.state["table"], np.arange(64).reshape(8, 8))
    last = {"at": int(step)}
    assert restored.data == {"epoch": 1, "lanes": {"0": last, "1": last, "2": {"at": ""}, "3": {"at": "x" * 50}}}
    assert restored.metadata["stopped_by"] == "SIGTERM"
