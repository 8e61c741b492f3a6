"""The job scripts of docs/jobs: what they set is what `run.py` reads, and what they call exists."""

import re
import signal
import subprocess

import pytest
import yaml
from processes import ROOT

from allam_jax.errors import PEER_ENDED, STALLED, USER_ERROR, stopped_by
from allam_jax.parallel.cluster import detect

JOBS = ROOT / "docs" / "jobs"


@pytest.mark.parametrize("index", ["0", "5"])
def test_a_pod_finds_its_place(index):
    service, job = yaml.safe_load_all((JOBS / "train.yaml").read_text())
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]} | {"JOB_COMPLETION_INDEX": index}
    launch = detect(environment)
    assert (launch.num_processes, launch.process_id) == (spec["completions"], int(index))
    assert spec["completions"] == spec["parallelism"]
    # Kubernetes calls the first pod NAME-0, under the name of the service that selects it.
    host = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert re.fullmatch(rf"{host}:\d+", launch.coordinator)
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [USER_ERROR]
    assert rule["onExitCodes"]["containerName"] == container["name"]


def test_the_slurm_script_knows_the_statuses_and_is_valid_bash():
    script = JOBS / "train.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    assert set(re.findall(r'"\$status" = (\d+)', script.read_text())) == {
        str(status) for status in (STALLED, PEER_ENDED, stopped_by(signal.SIGTERM))
    }


def test_the_image_has_what_it_copies_and_starts():
    text = (JOBS / "Dockerfile").read_text()
    for source in re.findall(r"^COPY (\S+) ", text, re.M):
        assert (ROOT / source).exists(), source
    (entry,) = re.findall(r'^ENTRYPOINT \["python", "(.*)"\]', text, re.M)
    assert (ROOT / entry).is_file()
