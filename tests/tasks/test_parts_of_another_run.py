"""What lies in a run's workdir is the run's own: parts of another one, a renamed or a missing one are told."""

import json
import shutil

import pytest

from allam_jax.errors import UserError
from allam_jax.tasks import runner
from allam_jax.tasks.verify import verify
from tests.tasks import tiny

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]


@pytest.fixture(scope="module")
def train(launcher, one_device):
    """Trains the tiny run in this process; keys of the config."""

    def run(workdir, *, steps=4, **values):
        config = tiny.get_config(str(launcher.root))
        config.train.steps = steps
        config.checkpoint.keep_every = 0
        config.train.accumulation = 1
        config.schedule.update(name="constant", warmup_steps=0)
        config.compute.update(dropout_residual=0.0, dropout_embedding=0.0)
        config.eval.update(every=0, batch_size=8)
        config.update_from_flattened_dict(values)
        return runner.run(config, workdir=workdir)

    return run


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train(workdir)
    return workdir


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def damaged(workdir):
    return [reason for row in verify(workdir) if row.state == "damaged" for reason in row.reasons]


def test_a_checkpoint_of_another_run(train, run, tmp_path):
    train(tmp_path / "other", **{"schedule.peak_lr": 1e-2})
    shutil.rmtree(run / "checkpoints" / "4")
    shutil.copytree(tmp_path / "other" / "checkpoints" / "4", run / "checkpoints" / "4")
    (reason,) = damaged(run)  # and not the metrics, of which that checkpoint knows nothing
    assert "4: was written by another run" in reason
    with pytest.raises(UserError, match="4: was written by another run.*move it away"):
        train(run, steps=6)


def test_what_may_change_between_starts_does_not_make_another_run(train, run):
    train(run, steps=6, **{"schedule.peak_lr": 1e-3})
    train(run, steps=8)
    assert not damaged(run)


def test_a_renamed_checkpoint(train, run):
    (run / "checkpoints" / "4").rename(run / "checkpoints" / "6")
    assert any("holds step 4; call it 4 again" in reason for reason in damaged(run))
    with pytest.raises(UserError, match="holds step 4; call it 4 again"):
        train(run, steps=8)


def test_a_link_to_an_earlier_checkpoint(train, run):
    (run / "checkpoints" / "6").symlink_to("4")
    with pytest.raises(UserError, match="6: holds step 4; remove it"):
        train(run, steps=8)


@pytest.mark.parametrize(
    ("name", "target", "what"),
    [
        ("checkpoints", "checkpoints", "is a link that leads nowhere; put back what it led to"),
        ("checkpoints", "nowhere", "is a link that leads nowhere"),
        ("checkpoints/4", "nowhere", "is a link that leads nowhere"),
        ("checkpoints", None, "is a file; the folder of the run's checkpoints belongs there"),
    ],
)
def test_another_thing_in_the_place_of_the_checkpoints(train, run, name, target, what):
    (run / name).rename(run / "elsewhere")
    if target == "nowhere":
        (run / "metrics.jsonl").unlink()
    if target:
        (run / name).symlink_to(target)
    else:
        (run / name).write_text("mine")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"^{run / name}: {what}"):
        train(run, steps=8)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_link_to_nothing_where_a_directory_is_made(train, tmp_path):
    (tmp_path / "tokenizer").symlink_to("nowhere")
    (tmp_path / "config.json").write_text('{"task": "train"}')
    with pytest.raises(UserError, match="tokenizer: file exists; a directory belongs there: move away what is in its"):
        train(tmp_path)


def test_a_missing_folder_of_checkpoints(train, run, caplog):
    before = (run / "metrics.jsonl").read_bytes()
    (run / "checkpoints").rename(run / "elsewhere")
    with pytest.raises(UserError, match="checkpoints: is gone, but metrics.jsonl has a history up to step 4"):
        train(run)
    assert (run / "metrics.jsonl").read_bytes() == before
    (run / "checkpoints").mkdir()  # as after a kill before the first checkpoint
    train(run)
    assert "training begins anew, and so does metrics.jsonl, which had reached step 4" in caplog.text
    assert len((run / "metrics.jsonl").read_text().splitlines()) == len(before.splitlines())


def test_a_refused_start_leaves_the_config(train, run):
    before = (run / "config.json").read_bytes()
    with pytest.raises(UserError, match="another model"):
        train(run, **{"model.dim": 64})
    assert (run / "config.json").read_bytes() == before
    assert not damaged(run)
    train(run, steps=6)
    assert json.loads((run / "config.json").read_bytes())["train"]["steps"] == 6


def test_another_start_or_another_dtype(train, run, trained, caplog):
    train(run, **{"init.weights": str(trained)})
    assert "config.init has changed: nothing of it is read" in caplog.text
    with pytest.raises(UserError, match="set config.optimizer.first_moment_dtype to float32"):
        train(run, steps=6, **{"optimizer.first_moment_dtype": "bfloat16"})
