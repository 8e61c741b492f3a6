"""What Slurm says: the states of jobs, the limit of its arrays, and why it refuses a job."""

import dataclasses
import re
import subprocess
from collections.abc import Collection, Iterable, Sequence

from allam_jax.errors import UserError

_SECONDS = 60
# States in which a job will never run again by itself; squeue shows them for a few minutes after the end.
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT", "GONE"),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """What Slurm says of a job."""

    slurm_id: str
    state: str  # Slurm's word, such as PENDING or OUT_OF_MEMORY; GONE: Slurm does not know it any more
    reason: str = ""  # why it waits or has ended

    @property
    def queued(self) -> bool:
        """Whether it waits or runs."""
        return self.state not in ENDED

    def describe(self) -> str:
        """For example `pending: Resources`."""
        if self.state == "GONE":
            return "Slurm does not know it any more"
        return self.state.lower() + (f": {self.reason}" if self.reason not in ("", "None") else "")


def states(slurm_ids: Collection[str]) -> dict[str, Entry]:
    """The entry of every job, by its Slurm id (`7`, or `7_2` of an array).

    Raises:
        UserError: squeue fails. What it does not say is unknown, which is not the same as an empty queue.
    """
    known = {entry.slurm_id: entry for entry in states_of_arrays(one.partition("_")[0] for one in slurm_ids)}
    return {one: known.get(one, Entry(one, "GONE")) for one in slurm_ids}


def states_of_arrays(slurm_ids: Iterable[str]) -> list[Entry]:
    """The entries of all jobs of these arrays (or single jobs) that Slurm knows; UserError as `states`."""
    ids = ",".join(dict.fromkeys(slurm_ids))
    if not ids:
        return []
    shown = run(
        ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={ids}"],
        unknown_job_is_fine=True,
    )
    rows = [[part.strip() for part in line.split("|", 2)] for line in shown.splitlines()]
    return [Entry(*row) for row in rows if len(row) == 3]


def max_array_size() -> int:
    """The most jobs that an array may have here; 1 if Slurm does not say it."""
    try:
        shown = run(["scontrol", "show", "config"])
    except UserError:
        return 1
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown, flags=re.M)
    return max(int(found[1]), 1) if found else 1


def cancel(slurm_ids: Sequence[str]) -> None:
    """Takes jobs out of the queue, or ends them."""
    if slurm_ids:
        run(["scancel", *slurm_ids], unknown_job_is_fine=True)


def run(command: Sequence[str], *, unknown_job_is_fine: bool = False) -> str:
    """What one of Slurm's commands prints. UserError with its own words if it fails, is missing or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not on the path; run this on a host of the cluster") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} has not answered within {_SECONDS} s; is the controller up?") from None
    if done.returncode and not (unknown_job_is_fine and "invalid job id" in done.stderr.lower()):
        raise UserError(
            f"{command[0]} failed: {refusal(done.stderr) or f'status {done.returncode}'}; nothing was changed"
        )
    return done.stdout


def refusal(text: str) -> str:
    """Slurm's own words in what a command has printed, on one line."""
    lines = [
        line.strip() for line in text.splitlines() if re.match(r"\s*(sbatch|squeue|scancel|scontrol|slurm\w*): ", line)
    ]
    words = [re.sub(r"^\w+: (?:error: |fatal: )?", "", line) for line in lines]
    return "; ".join(dict.fromkeys(words))[:300] or " ".join(text.split())[:300]
