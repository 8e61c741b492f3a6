"""What these kernels do on a real GPU, in one command: numbers, times, a training step, memory and a profile.

    python -m kernels.workshop.gpu_report --out report --minutes 8

The parts run in order of worth, each in a process of its own with an end to its time: a part that hangs, crashes or
needs too long loses only what it had not written. `report.json` and `report.md` in the folder are written anew after
each part. On a machine without a GPU everything runs with tiny shapes, which shows that the command works and no more.
Times are medians after a warm-up; errors are relative to float64.
"""

import argparse
import dataclasses
import functools
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from allam_jax.files import json_text
from allam_jax.report.environment import package_versions
from allam_jax.report.markdown import table
from kernels import aot
from kernels.workshop import gpu_attention, gpu_step
from kernels.workshop.measure import PartOptions, Record

SHORTEST = 5.0  # seconds that a part must have left to be started
PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "tokamax", "torch", "transformers")


@dataclasses.dataclass(frozen=True)
class ReportPart:
    """One part of the report: it must have ended when the share `until` of all the time is over."""

    name: str
    title: str
    until: float
    run: Callable[[PartOptions], Iterator[Record]]


def _machine(options: PartOptions) -> Iterator[Record]:
    device = jax.devices()[0]
    if not options.small and device.platform != "gpu":
        raise RuntimeError('there is an NVIDIA driver, but JAX does not use the GPU: pip install "jax[cuda13]"')
    about = {"device": device.device_kind, "devices": jax.device_count(), "platform": device.platform}
    yield {**about, "capability": getattr(device, "compute_capability", None), "python": platform.python_version()}
    yield {"device": "packages", **dict.fromkeys(PACKAGES, "not installed"), **package_versions(PACKAGES)}
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm", "--format=csv"]
    if not options.small:
        yield {"device": "nvidia-smi", "says": subprocess.run(query, capture_output=True, text=True).stdout}


def _numbers(*backends: str) -> Callable[[PartOptions], Iterator[Record]]:
    return functools.partial(gpu_attention.numbers, backends=backends)


_PARTS = (
    ReportPart("machine", "Machine", 0.1, _machine),
    ReportPart("triton", "Triton kernels against float64", 0.25, _numbers("triton")),
    ReportPart("mosaic", "Mosaic kernels against float64", 0.4, _numbers("mosaic")),
    ReportPart("times", "Times of attention", 0.6, gpu_attention.times),
    ReportPart("step", "A training step", 0.85, gpu_step.our_step),
    ReportPart("torch", "The same step by transformers and torch", 0.95, gpu_step.torch_step),
    ReportPart("others", "Other backends against float64", 1.0, _numbers("xla_chunked", "xla", "cudnn", "tokamax")),
)
PARTS = {part.name: part for part in _PARTS}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m kernels.workshop.gpu_report", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--minutes", type=float, default=8.0, help="end of everything, whatever is done by then")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, as on a machine without a GPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="only these parts")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # what this command starts for itself
    args = parser.parse_args(argv)
    small = args.tiny or not aot.has_gpu()
    end = time.monotonic() + 60 * args.minutes
    if args.part:
        return run_part(PARTS[args.part], PartOptions(small=small, folder=args.out, deadline=end))
    args.out.mkdir(parents=True, exist_ok=True)
    started, results = time.monotonic(), []
    total = end - started - 1.0  # a second to write and to stop
    for name in args.parts:
        part = PARTS[name]
        seconds = min(part.until * total, total) - (time.monotonic() - started)
        print(f"{part.title}: at most {max(seconds, 0):.0f} s", flush=True)
        results.append({"part": part.name, "title": part.title, **_in_process(part, args.out, seconds, small=small)})
        _write(args.out, results, small=small, minutes=args.minutes)
    print(f"{args.out / 'report.md'} and report.json are written", flush=True)
    return 0


def run_part(part: ReportPart, options: PartOptions) -> int:
    """Runs a part in this process and appends its records to a file as they come; 1 where it raises."""
    with _records_file(part, options.folder).open("a", encoding="utf-8") as file:
        try:
            for record in part.run(options):
                file.write(json_text(record) + "\n")
                file.flush()
        except Exception:
            traceback.print_exc()
            return 1
    return 0


def _in_process(part: ReportPart, out: Path, seconds: float, *, small: bool) -> Record:
    """Runs a part in a process that is killed when its time is over; what came of it."""
    if seconds < SHORTEST:
        return {"status": "not started: no time was left", "seconds": 0.0, "records": []}
    _records_file(part, out).unlink(missing_ok=True)
    log = out / f"{part.name}.log"
    # The part itself stops two seconds early, between its pieces.
    command = [sys.executable, "-m", "kernels.workshop.gpu_report", "--part", part.name, "--out", str(out)]
    command += ["--minutes", str((seconds - 2.0) / 60), *(["--tiny"] if small else [])]
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", **os.environ}
    started = time.monotonic()
    with log.open("w") as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = child.wait(timeout=seconds)
            last = (log.read_text().strip().splitlines() or [f"exit code {code}"])[-1]
            status = "done" if code == 0 else f"failed: {last}"
        except subprocess.TimeoutExpired:
            status = "cut: its time was over"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    file = _records_file(part, out)
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]  # the last one may be cut
    if status == "done" and records and all("refused" in record for record in records):
        status = "nothing ran: every piece was refused"
    return {"status": status, "seconds": time.monotonic() - started, "records": records}


def _records_file(part: ReportPart, out: Path) -> Path:
    return out / f"{part.name}.jsonl"


def _write(out: Path, results: list[Record], *, small: bool, minutes: float) -> None:
    shapes = "tiny shapes: they show that the command works, not how fast anything is" if small else "full shapes"
    about = {"date": time.strftime("%Y-%m-%d %H:%M"), "minutes": minutes, "shapes": shapes}
    (out / "report.json").write_text(json_text({**about, "parts": results}, indent=1) + "\n", encoding="utf-8")
    page = [f"# Kernels on a GPU\n\n{about['date']}, {minutes:g} minutes, {shapes}."]
    for part in results:
        page.append(f"## {part['title']}\n\n{part['status']} ({part['seconds']:.0f} s)")
        # Records of one kind stand together; another kind starts a table of its own.
        kinds: dict[tuple, list[Record]] = {}
        for record in part["records"]:  # type: ignore[attr-defined]
            kinds.setdefault((*record.keys(),), []).append(record)
        page += map(table, kinds.values())
    (out / "report.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
