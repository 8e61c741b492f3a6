"""Real processes, real sockets: how a job starts, and what it says when it cannot."""

import jax
import numpy as np
import pytest
from processes import child_environment, run_together

from allam_jax.errors import UserError
from allam_jax.parallel.distributed import broadcast, global_batch_array, initialize, process_rows
from allam_jax.parallel.mesh import make_mesh

START = """
import sys
from allam_jax.errors import UserError
from allam_jax.parallel.distributed import initialize
try:
    initialize(timeout_seconds={timeout}{arguments})
except UserError as error:
    print(error)
    sys.exit(2)
"""

MEET = (
    START
    + """
import json, jax, numpy as np
from allam_jax.parallel.distributed import barrier, broadcast, global_batch_array, is_main_process, process_rows
me = jax.process_index()
result = {{"process": me, "main": is_main_process(), "devices": jax.device_count()}}
result["broadcast"] = broadcast({{"from": me, "text": "\u0633\u0644\u0627\u0645"}})
"""
)
END = """
barrier("end")
print(json.dumps(result))
"""
BATCHES = """
from allam_jax.parallel.mesh import MESH_AXES, make_mesh, split_microbatches
for sizes in [(4, 1, 1), (2, 2, 1), (1, 2, 2), (1, 1, 4)]:
    mesh = make_mesh(dict(zip(MESH_AXES, sizes)))
    size = 12 if sizes[0] * sizes[1] < 4 else 16
    start, stop = process_rows(mesh, global_batch=size)
    rows = np.arange(size, dtype=np.float32)[:, None] * np.array([1.0, 100.0], np.float32)
    batch = global_batch_array({{"x": rows[start:stop]}}, mesh=mesh, global_batch=size)
    weights = 2.0 ** -np.arange(size)
    total = jax.jit(lambda x: (x * weights[:, None]).sum(0))(batch["x"])
    micro = jax.jit(lambda x: split_microbatches(x, accumulation=2).sum((1, 2)))(batch["x"])
    sums = {{"sum": np.asarray(total).tolist(), "micro": np.asarray(micro).tolist()}}
    result[str(sizes)] = {{"rows": [start, stop], **sums}}
mixed = jax.sharding.Mesh(np.array(sorted(jax.devices(), key=lambda d: d.id))[[0, 2, 1, 3]].reshape(4, 1, 1), MESH_AXES)
try:
    process_rows(mixed, global_batch=8)
except UserError as error:
    result["mixed"] = str(error)
"""


def start_code(code=START, *, timeout=60, **arguments):
    return ["-c", code.format(timeout=timeout, arguments="".join(f", {k}={v!r}" for k, v in arguments.items()))]


def two_processes(code, *, environments, arguments=({}, {})):
    """Runs `code` in two processes of two devices each; the answers that both print, which agree on where they are."""
    commands = [start_code(code, **mine) for mine in arguments]
    answers = []
    for finished in run_together(commands, environments=environments):
        assert finished.status == 0, finished.out + finished.err
        answers.append(finished.result)
    assert [answer["process"] for answer in answers] == [0, 1]
    assert [answer["main"] for answer in answers] == [True, False]
    for answer in answers:
        assert answer["devices"] == 4
        assert answer["broadcast"] == {"from": 0, "text": "سلام"}
    return answers


@pytest.mark.slow
def test_two_processes_from_flags(port):
    flags = {"coordinator": f"127.0.0.1:{port}", "num_processes": 2}
    answers = two_processes(
        MEET + BATCHES + END,
        arguments=[flags | {"process_id": process} for process in range(2)],
        environments=[child_environment(devices=2)] * 2,
    )
    assert "rows that do not lie together ([(0, 2), (4, 6)])" in answers[0]["mixed"]
    expected_rows = {
        "(4, 1, 1)": ([0, 8], [8, 16], 16),
        "(2, 2, 1)": ([0, 8], [8, 16], 16),
        "(1, 2, 2)": ([0, 6], [6, 12], 12),
        "(1, 1, 4)": ([0, 12], [0, 12], 12),
    }
    for sizes, (first, second, size) in expected_rows.items():
        assert answers[0][sizes]["rows"] == first
        assert answers[1][sizes]["rows"] == second
        x = np.arange(size)[:, None] * np.array([1.0, 100.0])
        for answer in answers:
            np.testing.assert_allclose(answer[sizes]["sum"], (x * 2.0 ** -np.arange(size)[:, None]).sum(0), rtol=1e-6)
            np.testing.assert_array_equal(answer[sizes]["micro"], [x[0::2].sum(), x[1::2].sum()])


def test_two_processes_from_slurm_variables(port):
    environments = [
        child_environment(
            devices=2,
            SLURM_JOB_ID="77",
            SLURM_STEP_ID="0",
            SLURM_STEP_NODELIST="127.0.0.1",
            SLURM_NTASKS="2",
            SLURM_STEP_NUM_TASKS="2",
            SLURM_STEP_TASKS_PER_NODE="2",
            SLURM_NODEID="0",
            SLURM_PROCID=str(process),
            SLURM_LOCALID=str(process),
            JAX_COORDINATOR_PORT=str(port),
        )
        for process in range(2)
    ]
    two_processes(MEET + END, environments=environments)


def test_a_coordinator_that_is_not_there_is_one_line(port):
    command = start_code(timeout=1, coordinator=f"127.0.0.1:{port}", num_processes=2, process_id=1)
    (finished,) = run_together([command], environments=[child_environment()])
    assert finished.status == 2
    (line,) = finished.out.strip().splitlines()
    assert f"127.0.0.1:{port}: process 1 could not reach it within 1 s" in line


@pytest.fixture
def one_process(monkeypatch):
    for variable in (
        "SLURM_STEP_NODELIST",
        "OMPI_COMM_WORLD_SIZE",
        "JAX_NUM_PROCESSES",
        "RANK",
        "JOB_COMPLETION_INDEX",
    ):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"num_processes": 2}, "--coordinator, --process_id missing"),
        ({"coordinator": "a:1"}, "--num_processes, --process_id missing"),
        ({"num_processes": 2, "process_id": 0}, "no address of process 0"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "--process_id=2: expected 0 to 1"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 0}, "'a': expected host:port"),
        ({"coordinator": "a:x", "num_processes": 2, "process_id": 0}, "'a:x': expected host:port"),
    ],
)
@pytest.mark.usefixtures("one_process")
def test_flags_that_cannot_work(flags, words):
    with pytest.raises(UserError) as error:
        initialize(**flags)
    assert words in str(error.value)


@pytest.mark.usefixtures("one_process")
def test_kubernetes_job_that_does_not_say_its_size(monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES"):
        initialize()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    initialize()
    monkeypatch.delenv("JOB_COMPLETION_INDEX")
    monkeypatch.delenv("JAX_NUM_PROCESSES")
    initialize()  # a pod of another kind has the address of the API too


@pytest.mark.usefixtures("one_process")
def test_a_kubernetes_api_that_refuses_is_one_line(monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("allam_jax.parallel.distributed._configure", lambda: None)

    def refuse():
        raise RuntimeError("Forbidden:\n  pods is forbidden")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(UserError, match="^Kubernetes: Forbidden: pods is forbidden$"):
        initialize()


@pytest.mark.usefixtures("one_process")
def test_one_process_needs_nothing():
    initialize()
    initialize(num_processes=1, process_id=0)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    assert process_rows(mesh, global_batch=8) == (0, 8)
    rows = np.arange(24).reshape(8, 3)
    batch = global_batch_array({"tokens": rows}, mesh=mesh, global_batch=8)
    np.testing.assert_array_equal(batch["tokens"], rows)
    assert broadcast({"a": 1}) == {"a": 1}
