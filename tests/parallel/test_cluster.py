"""What launchers set, by their own documentation, and what we read from it."""

import pytest

from allam_jax.errors import UserError
from allam_jax.parallel.cluster import Launch, detect, local_device_ids

SLURM = {
    "SLURM_JOB_ID": "200505",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gnode[10,20,25,37]",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_NODEID": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}

OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "16",
    "OMPI_COMM_WORLD_RANK": "9",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "PMIX_NAMESPACE": "prterun-head-2104@1",
}


def host(launch):
    return launch.coordinator.rpartition(":")[0]


def port(launch):
    return int(launch.coordinator.rpartition(":")[2])


def test_nothing_set_is_one_process():
    assert detect({}) is None


def test_slurm_step():
    launch = detect(SLURM)
    assert (launch.num_processes, launch.process_id) == (7, 5)
    assert (launch.local_rank, launch.local_size) == (1, 2)
    assert host(launch) == "gnode10"
    assert 61440 <= port(launch) < 65536
    last = detect(SLURM | {"SLURM_NODEID": "3", "SLURM_PROCID": "6", "SLURM_LOCALID": "0"})
    assert last.local_size == 1
    assert last.coordinator == launch.coordinator


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-0015],host2", "node001"),
        ("node[001,007-015],host2", "node001"),
        ("rack[2-3]node[07,09-12]-ib,login1", "rack2node07-ib"),
        ("gpu[7]", "gpu7"),
    ],
)
def test_first_host_of_a_slurm_list(nodes, first):
    assert host(detect(SLURM | {"SLURM_STEP_NODELIST": nodes})) == first


def test_steps_of_one_job_do_not_share_a_port():
    assert port(detect(SLURM)) != port(detect(SLURM | {"SLURM_STEP_ID": "1"}))


def test_batch_script_and_interactive_shell_are_one_process():
    batch = {name: value for name, value in SLURM.items() if "STEP" not in name} | {"SLURM_PROCID": "0"}
    assert detect(batch) is None
    shell = SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_PROCID": "0"}
    assert detect(shell) is None


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("1531576320.0;tcp://10.96.0.1,10.148.0.1,10.108.0.1:34911", "10.96.0.1"),
        ("1531576320.0;tcp://10.96.0.1:34911", "10.96.0.1"),
        ("614400000.0;usock;tcp://10.0.1.1,10.0.2.1:48323", "10.0.1.1"),
        (
            "1314521088.0;tcp6://[fe80::b9b:ac5d:9cf0:b858,2620:10d:c083:150e::3000:2]:43370",
            "[fe80::b9b:ac5d:9cf0:b858]",
        ),
    ],
)
def test_open_mpi_4(uri, address):
    launch = detect(OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": uri})
    assert (launch.num_processes, launch.process_id, launch.local_rank, launch.local_size) == (16, 9, 1, 8)
    assert host(launch) == address


def test_open_mpi_5():
    # It does not tell where process 0 runs, unless that is here or Slurm knows.
    assert detect(OPEN_MPI).coordinator is None
    assert host(detect(OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "16"})) == "127.0.0.1"
    assert host(detect(OPEN_MPI | {"SLURM_JOB_NODELIST": "n[3-4]"})) == "n3"
    assert detect(OPEN_MPI | {"JAX_COORDINATOR_ADDRESS": "head:7000"}).coordinator == "head:7000"


def test_kubernetes_indexed_job_and_kubeflow():
    named = {"JAX_NUM_PROCESSES": "4", "JAX_COORDINATOR_ADDRESS": "train-0.pods:6666"}
    expected = Launch("JAX_NUM_PROCESSES", num_processes=4, process_id=3, coordinator="train-0.pods:6666")
    assert detect(named | {"JOB_COMPLETION_INDEX": "3"}) == expected
    assert detect(named | {"JAX_PROCESS_ID": "3", "JOB_COMPLETION_INDEX": "1"}) == expected


def test_torchrun():
    variables = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "WORLD_SIZE": "4", "RANK": "3"}
    launch = detect(variables | {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
    assert (launch.num_processes, launch.process_id, launch.local_rank, launch.local_size) == (4, 3, 1, 2)
    assert host(launch) == "10.0.0.1"
    assert port(launch) != 29500  # torchrun's own store listens there


def test_port_can_be_chosen():
    assert port(detect(SLURM | {"JAX_COORDINATOR_PORT": "7001"})) == 7001


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (SLURM | {"SLURM_PROCID": "x"}, "SLURM_PROCID is 'x'"),
        ({"JAX_NUM_PROCESSES": "2"}, "JOB_COMPLETION_INDEX is not set"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_LOCAL_SIZE is not set"),
        (SLURM | {"SLURM_PROCID": "7"}, "process id 7 of 7"),
    ],
)
def test_broken_variables_are_named(variables, words):
    with pytest.raises(UserError) as error:
        detect(variables)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("rank", "size", "variables", "ids"),
    [
        (0, 1, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, None),  # alone on its host: all of them
        (1, 4, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [1]),
        (1, 2, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [2, 3]),
        (3, 4, {"CUDA_VISIBLE_DEVICES": "3"}, None),  # bound by the launcher
        (1, 2, {"CUDA_VISIBLE_DEVICES": "4,5", "SLURM_GPUS_PER_TASK": "2"}, None),
        (1, 2, {"CUDA_VISIBLE_DEVICES": "4,5", "SLURM_TRES_PER_TASK": "cpu:4,gres/gpu:2"}, None),
        (1, 2, {"CUDA_VISIBLE_DEVICES": ""}, None),
        (1, 2, {"CUDA_VISIBLE_DEVICES": "0,1", "JAX_LOCAL_DEVICE_IDS": "1"}, None),
        (None, None, {"CUDA_VISIBLE_DEVICES": "0,1"}, None),
    ],
)
def test_gpus_of_a_host_are_shared(rank, size, variables, ids):
    launch = Launch("x", num_processes=8, process_id=0, coordinator=None, local_rank=rank, local_size=size)
    assert local_device_ids(launch, variables) == ids


def test_gpus_that_cannot_be_shared_evenly():
    launch = Launch("Slurm", num_processes=6, process_id=0, coordinator=None, local_rank=0, local_size=3)
    with pytest.raises(UserError, match="3 processes on this host for 8 visible GPUs"):
        local_device_ids(launch, {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"})
