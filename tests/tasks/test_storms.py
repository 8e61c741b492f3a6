"""A sample of storms.py, which says what must hold."""

import os
import random

import pytest
import storms
from launcher import TINY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def storm(launcher, reference, tmp_path_factory):
    """On the run of tiny.py, with TensorBoard; `reference` has warmed the compilation cache."""
    folder = tmp_path_factory.mktemp("storm")
    flags = ["--config.metrics.tensorboard=True", "--config.train.steps=12", "--config.schedule.decay_steps=5"]
    flags.append("--config.schedule.decay_start=7")
    return storms.Storm(folder, config=f"{TINY}:{launcher.root}", flags=flags, cache=launcher.cache)


# Signals and full disks of a run: test_resume.py too.
@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param("kills", 4, marks=pytest.mark.long),
        pytest.param("signals", 6, marks=pytest.mark.long),
        pytest.param("disks", 2, marks=pytest.mark.long),
    ],
)
def test_a_sample_of_storms(storm, name, number):
    if name == "disks" and os.geteuid() != 0:
        pytest.skip("needs the right to mount a small tmpfs")
    random.seed()
    storm.faults.clear()
    storms.STORMS[name](storm, number)
    assert storm.faults == []
