"""A scheduler of one machine that speaks Slurm's command line: sbatch, srun, scontrol requeue, squeue, scancel.

It really runs the batch scripts: arrays with their limit, dependencies, several tasks a job, requeueing, and signals as
Slurm sends them, to every process of a job's steps but not to its batch shell. The commands call this file; what they
know of each other lies in $FAKE_SLURM: `ID.json` (an array or a job), `ID_INDEX.state`, `.pids`, `.requeue`.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

STATE = Path(os.environ.get("FAKE_SLURM", "."))
COMMANDS = ("sbatch", "srun", "scontrol", "squeue", "scancel")


def install(folder):
    """Puts the commands into `folder`; returns the environment in which they are found."""
    folder.mkdir(parents=True)
    (folder / "state").mkdir()
    for command in COMMANDS:
        path = folder / command
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} {command} "$@"\n')
        path.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "FAKE_SLURM": str(folder / "state")}


def preempt(state, task, number=signal.SIGUSR1):
    """Signals all processes of a task's step, as Slurm does before it takes the machine away."""
    for pid in json.loads((state / f"{task}.pids").read_text()):
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for process in family:
            process.send_signal(number)


def sbatch(*arguments):
    *flags, script = arguments
    text = Path(script).read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, flags=re.M))
    options = {key: shlex.split(value)[0] if value else True for key, value in options.items()}
    options |= dict(flag.removeprefix("--").split("=", 1) for flag in flags if "=" in flag)
    job = 1 + max((int(path.stem) for path in STATE.glob("*.json")), default=0)
    first, last, limit = 0, 0, 1
    if "array" in options:
        numbers = re.fullmatch(r"(\d+)-(\d+)(?:%(\d+))?", options["array"]).groups("1000")
        first, last, limit = map(int, numbers)
    tasks = [f"{job}_{index}" for index in range(first, last + 1)] if "array" in options else [str(job)]
    (STATE / f"{job}.sh").write_text(text)  # as Slurm, which keeps the script
    record = {"options": options, "tasks": tasks, "limit": limit, "cwd": os.getcwd()}
    (STATE / f"{job}.json").write_text(json.dumps(record))
    for task in tasks:
        set_state(task, "PENDING")
    with open(STATE / f"{job}.supervisor", "w") as said:
        command = [sys.executable, __file__, "supervise", str(job)]
        nothing = subprocess.DEVNULL
        subprocess.Popen(command, start_new_session=True, stdin=nothing, stdout=nothing, stderr=said)
    print(f"Submitted batch job {job}")


def supervise(job):
    record = json.loads((STATE / f"{job}.json").read_text())
    dependency = record["options"].get("dependency", "")
    needed = dependency.removeprefix("afterok:").split(":") if dependency else []
    while True:
        states = [state_of(task) for need in needed for task in members(need)]
        if any(state in ("FAILED", "CANCELLED") for state in states):
            for task in record["tasks"]:
                set_state(task, "CANCELLED")
            return
        if all(state == "COMPLETED" for state in states):
            break
        time.sleep(0.1)
    free = threading.Semaphore(record["limit"])

    def run(task):
        with free:
            for restarts in range(10):
                set_state(task, "RUNNING")
                code = run_batch(job, task, record, restarts)
                requeued = STATE / f"{task}.requeue"
                if not requeued.exists():
                    break
                requeued.unlink()
                set_state(task, "PENDING")
            set_state(task, "COMPLETED" if code == 0 else "FAILED")

    threads = [threading.Thread(target=run, args=(task,)) for task in record["tasks"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def run_batch(job, task, record, restarts):
    options = record["options"]
    nodes, per_node = int(options.get("nodes", 1)), int(options.get("ntasks-per-node", 1))
    _, _, index = task.partition("_")
    exported = dict(item.split("=", 1) for item in options.get("export", "ALL").split(",") if "=" in item)
    environment = (
        os.environ
        | exported
        | {
            "SLURM_JOB_ID": task.replace("_", "00"),
            "SLURM_NTASKS": str(nodes * per_node),
            "SLURM_JOB_NUM_NODES": str(nodes),
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_RESTART_COUNT": str(restarts),
            "FAKE_SLURM_TASK": task,
        }
    )
    if index:
        environment |= {"SLURM_ARRAY_JOB_ID": str(job), "SLURM_ARRAY_TASK_ID": index}
    words = {"A": str(job), "a": index, "j": str(job), "%": "%"}
    output = re.sub("%([Aaj%])", lambda found: words[found[1]], options["output"])
    with open(output, "ab") as file:
        script = ["bash", str(STATE / f"{job}.sh")]
        batch = subprocess.Popen(script, cwd=record["cwd"], env=environment, stdout=file, stderr=file)
        code = batch.wait()
    end_step(task)  # what is left of a job that ends is killed
    return code


def srun(*arguments):
    values = {}
    arguments = list(arguments)
    while arguments and arguments[0].startswith("-"):
        flag = arguments.pop(0)
        if flag in ("--output", "--error"):
            values[flag] = arguments.pop(0)
    size, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_JOB_NUM_NODES"])
    task = os.environ["FAKE_SLURM_TASK"]
    started = []
    for rank in range(size):
        environment = os.environ | {
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank % (size // nodes)),
            "SLURM_NODEID": str(rank // (size // nodes)),
            "SLURM_STEP_ID": "0",
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_NUM_TASKS": str(size),
            "SLURM_STEP_TASKS_PER_NODE": f"{size // nodes}(x{nodes})",
        }
        out, err = (name_of(values[flag], task, rank) for flag in ("--output", "--error"))
        with open(out, "ab") as out, open(err, "ab") as err:
            started.append(subprocess.Popen(arguments, env=environment, stdout=out, stderr=err))
    (STATE / f"{task}.pids").write_text(json.dumps([process.pid for process in started]))
    sys.exit(max(abs(process.wait()) for process in started))


def name_of(pattern, task, rank):
    job, _, index = task.partition("_")
    return pattern.replace("%A", job).replace("%a", index).replace("%j", job).replace("%t", str(rank))


def scontrol(verb, task):
    if verb == "show":
        print("MaxArraySize            = 1001")
        return
    assert verb == "requeue"
    (STATE / f"{task}.requeue").write_text("")
    print(f"requeued {task}")
    # Slurm ends the steps of a job that it requeues. The one that has asked may already be about to leave.
    pids = json.loads((STATE / f"{task}.pids").read_text())
    command = f"import time, fake_slurm; time.sleep(1); fake_slurm.end_processes({pids})"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    subprocess.Popen([sys.executable, "-c", command], env=environment, start_new_session=True)


def end_step(task):
    pids = STATE / f"{task}.pids"
    end_processes(json.loads(pids.read_text()) if pids.exists() else [])


def end_processes(pids):
    for pid in pids:
        if psutil.pid_exists(pid):
            for process in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
                process.kill()


def squeue(*arguments):
    (wanted,) = (value.partition("=")[2].split(",") for value in arguments if value.startswith("--jobs="))
    for need in wanted:
        for task in members(need):
            print(task, state_of(task), "None", sep="|")


def scancel(*tasks):
    for need in tasks:
        for task in members(need):
            set_state(task, "CANCELLED")
            end_step(task)


def members(need):
    """The tasks meant by `7` (all of an array, or a job) or `7_2`."""
    path = STATE / f"{need}.json"
    return json.loads(path.read_text())["tasks"] if path.exists() else [need]


def set_state(task, state):
    temporary = STATE / f"{task}.state.{os.getpid()}.{threading.get_ident()}"
    temporary.write_text(state)
    temporary.replace(STATE / f"{task}.state")


def state_of(task):
    path = STATE / f"{task}.state"
    return path.read_text() if path.exists() else "UNKNOWN"


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
