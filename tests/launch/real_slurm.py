"""A real Slurm on this machine: munge, a controller and two nodes on the loopback, in one folder, for one test run.

Needs root and Debian's packages slurm-wlm and munge. The second node has a name that follows this host's: the first
node of a job is where its process 0 is looked for, and only the host's own name has an address.
"""

import os
import shutil
import signal
import socket
import subprocess
import time

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue")

CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=1,kill_invalid_depend
PreemptType=preempt/none
SlurmdParameters=config_overrides
MaxArraySize=4
MinJobAge=300
KillWait=5
ReturnToService=2
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2 RealMemory=8000
NodeName={host}2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2 RealMemory=8000
PartitionName=main Nodes={host},{host}2 Default=YES MaxTime=60 DefaultTime=10 State=UP
PartitionName=short Nodes={host},{host}2 MaxTime=1 DefaultTime=1 State=UP
"""


def missing() -> str:
    """Why it cannot be set up here; empty if it can."""
    if os.geteuid():
        return "needs root"
    absent = [program for program in PROGRAMS if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")]
    return f"needs {', '.join(absent)} (apt-get install slurm-wlm munge)" if absent else ""


class Cluster:
    """The daemons, started in `folder`; `environment` is what a user of it sets."""

    def __init__(self, folder):
        """Starts all and waits until both nodes are idle."""
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
        self.daemons = []
        ports = [free_port() for _ in range(3)]
        names = dict(zip(("controller", "first", "second"), ports, strict=True))
        host = socket.gethostname().partition(".")[0]
        (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, **names))
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        folder.chmod(0o711)
        places = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={folder}/munge.{place}" for option, place in places.items()]
        self._start("munged", "--foreground", "--force", *options)
        self._start("slurmctld", "-D")
        time.sleep(1)
        for node in (host, f"{host}2"):
            self._start("slurmd", "-D", "-N", node)
        end = time.monotonic() + 60
        while self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T").split() != ["idle", "idle"]:
            assert time.monotonic() < end, self.run("sinfo")
            time.sleep(0.5)

    def _start(self, *command):
        with open(self.folder / "daemons.log", "ab") as log:
            self.daemons.append(
                subprocess.Popen(
                    command, env=os.environ | self.environment, stdout=log, stderr=log, start_new_session=True
                )
            )

    def run(self, *command):
        """What one of Slurm's commands prints."""
        return subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True).stdout

    def clear(self):
        """Cancels all jobs and waits until they have ended."""
        self.run("scancel", "--user=root", "--full", "--signal=KILL")
        self.run("scancel", "--user=root")
        end = time.monotonic() + 60
        while self.run("squeue", "--noheader"):
            assert time.monotonic() < end, self.run("squeue")
            time.sleep(0.5)

    def stop(self):
        """Ends the daemons that it has started."""
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self.daemons:
            try:
                daemon.wait(timeout=15)
            except subprocess.TimeoutExpired:
                daemon.kill()


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
