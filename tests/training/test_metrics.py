"""metrics.jsonl: nothing missing, nothing twice, exact float32; and what TensorBoard is given."""

import json
import sys
import time
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from allam_jax.errors import UserError
from allam_jax.training import metrics, wandb_sink
from allam_jax.training.metrics import MetricsWriter, read_metrics
from allam_jax.training.settings import MetricsSettings


def lines(workdir):
    return (workdir / "metrics.jsonl").read_text().splitlines()


def write_steps(workdir, steps, *, resume_step=None, flush=True):
    writer = MetricsWriter(workdir, MetricsSettings(tensorboard=False), resume_step=resume_step)
    for step in steps:
        writer.write(step, {"loss": jnp.float32(1 / step)}, timing={"seconds": 0.5})
    if flush:
        writer.close()
    return writer


def test_rows_are_fetched_late_and_none_is_lost(tmp_path):
    with MetricsWriter(tmp_path, MetricsSettings(tensorboard=False), lag=2) as writer:
        assert writer.write(1, {"loss": jnp.float32(4)}) == []
        assert writer.write(2, {"loss": 3}) == []
        assert lines(tmp_path) == []
        assert writer.write(3, {"loss": np.float32(2)}, timing={"eta": 1.5}) == [{"step": 1, "loss": 4.0}]
        assert lines(tmp_path) == ['{"step": 1, "loss": 4.0}'], "a written row must be in the file at once"
        assert [row["step"] for row in writer.flush()] == [2, 3]
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 4.0},
        {"step": 2, "loss": 3},
        {"step": 3, "loss": 2.0, "eta": 1.5},
    ]


def test_float32_comes_back_bit_for_bit(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    special = np.array([0.0, -0.0, 1e-45, np.finfo(np.float32).max, 0.1], np.float32)
    values = np.concatenate([special, bits.view(np.float32)])
    values = values[np.isfinite(values)]
    with MetricsWriter(tmp_path, MetricsSettings(tensorboard=False)) as writer:
        writer.write(1, {"vector": values, "scalar": jnp.float32(0.1), "half": jnp.bfloat16(0.1)})
        writer.write(1, {"nan": jnp.nan, "vector": np.array([np.inf, 1.5], np.float32)})
        writer.write(2, {"double": 0.1 + 0.2, "count": np.int64(2**60), "int": jnp.int32(7)})
    first, odd, second = read_metrics(tmp_path / "metrics.jsonl")
    np.testing.assert_array_equal(np.array(first["vector"], np.float32).view(np.uint32), values.view(np.uint32))
    assert '"scalar": 0.1,' in lines(tmp_path)[0]
    assert first["half"] == float(jnp.bfloat16(0.1))
    assert lines(tmp_path)[1] == '{"step": 1, "nan": null, "vector": [null, 1.5]}', "JSON has no NaN and no Infinity"
    assert np.isnan(odd["nan"])
    assert second == {"step": 2, "double": 0.1 + 0.2, "count": 2**60, "int": 7}


@pytest.mark.parametrize("cut", [0, 1, 10, 30])
def test_resuming_after_a_crash_gives_the_uninterrupted_file(tmp_path, cut):
    write_steps(tmp_path / "whole", range(1, 21))
    write_steps(tmp_path / "crash", range(1, 16))
    path = tmp_path / "crash" / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[: -cut or None])  # the last line half written
    write_steps(tmp_path / "crash", range(11, 21), resume_step=10)
    assert path.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_without_a_checkpoint_a_run_starts_afresh(tmp_path):
    write_steps(tmp_path, range(1, 6))
    write_steps(tmp_path, range(1, 4))
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_reading_names_the_bad_line_and_forgives_only_a_cut_last_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]
    for bad in ("{oops}", "3", '{"loss": 1}', '{"step": "a"}'):
        path.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 3}}\n')
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: "):
            read_metrics(path)
    for end in ("\n", "\n\0\0\0\n", "\n{oops}\n", '\n{"step": 2, "lo'):
        path.write_text('{"step": 1}' + end)
        assert read_metrics(path) == [{"step": 1}]
    with pytest.raises(UserError, match="no such file"):
        read_metrics(tmp_path / "nothing.jsonl")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda path: None, ""),
        (lambda path: path.write_bytes(path.read_bytes()[:-120]), "bytes are there of the"),
        (lambda path: path.unlink(), "0 bytes are there of the"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"0.5", b"0.6")), "not those that were written"),
    ],
)
def test_a_history_that_is_not_what_a_checkpoint_knew_is_told_once(tmp_path, monkeypatch, change, told):
    warnings = []
    monkeypatch.setattr(metrics.logging, "warning", lambda text, *values: warnings.append(text % values))
    written = write_steps(tmp_path, range(1, 6)).written
    write_steps(tmp_path, range(6, 8), resume_step=5)
    change(tmp_path / "metrics.jsonl")
    settings = MetricsSettings(tensorboard=False)
    with MetricsWriter(tmp_path, settings, resume_step=5, expected=written) as writer:
        writer.write(6, {"loss": 1.0})
    assert len(warnings) == bool(told)
    assert all(told in warning for warning in warnings)
    assert read_metrics(tmp_path / "metrics.jsonl")[-1] == {"step": 6, "loss": 1.0}


def test_timing_and_values_are_kept_apart(tmp_path):
    with MetricsWriter(tmp_path, MetricsSettings(tensorboard=False)) as writer:
        with pytest.raises(ValueError, match="seconds"):
            writer.write(1, {"loss": 1.0, "seconds": 2.0})
        with pytest.raises(ValueError, match="loss"):
            writer.write(1, {}, timing={"loss": 1.0})


def test_tensorboard_gets_the_same_numbers_and_hides_what_comes_again(tmp_path):
    def events():
        from tensorboardX.proto.event_pb2 import Event  # the format TensorBoard reads: length, crc, message, crc

        found = []
        for file in sorted((tmp_path / "tensorboard").iterdir(), key=lambda f: f.stat().st_mtime_ns):
            data = file.read_bytes()
            while data:
                size = int.from_bytes(data[:8], "little")
                event = Event()
                event.ParseFromString(data[12 : 12 + size])
                found.append(event)
                data = data[12 + size + 4 :]
        return found

    def run(steps, resume_step):
        with MetricsWriter(tmp_path, MetricsSettings(), resume_step=resume_step) as writer:
            for step in steps:
                writer.write(step, {"loss": jnp.float32(1 / step), "layers": jnp.arange(2) * step})

    run(range(1, 6), None)
    values = {(v.tag, e.step): v.simple_value for e in events() for v in e.summary.value}
    expected = {("loss", s): np.float32(1 / s) for s in range(1, 6)}
    expected |= {(f"layers/{i:02d}", s): i * s for s in range(1, 6) for i in range(2)}
    assert values == expected
    run(range(4, 8), 3)
    starts = [e.step for e in events() if e.HasField("session_log")]
    assert starts == [0, 4], "TensorBoard purges what lies at or after the step of a session start"


class Full:
    """A file system without room, as the event file sees it."""

    def __init__(self, file, after):
        self.file, self.left = file, after

    def write(self, data):
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("after", [0, 1, 7])
def test_a_sink_in_trouble_is_dropped_and_the_run_goes_on(tmp_path, monkeypatch, caplog, after):
    from tensorboardX import record_writer

    monkeypatch.setattr(record_writer, "open_file", lambda path: Full(Path(path).open("wb"), after))  # noqa: SIM115
    write = MetricsWriter(tmp_path, MetricsSettings())
    for step in range(1, 40):
        write.write(step, {"loss": 1 / step})
    write.close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 40))
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("TensorBoard: [Errno 28] No space left on device; the run goes on without it")


class Wandb:
    """The library, with trouble."""

    def __init__(self, *, key="k", viewer="me", log=None):
        self.api = types.SimpleNamespace(api_key=key)
        self.viewer, self.do_log, self.rows = viewer, log, []

    def Api(self, timeout):
        if isinstance(self.viewer, Exception):
            raise self.viewer
        if self.viewer is None:
            time.sleep(20)
        return types.SimpleNamespace(viewer=self.viewer)

    def init(self, **_):
        return self

    def log(self, row, step):
        self.rows.append(row)
        if len(self.rows) > 2 and self.do_log:
            self.do_log()

    def finish(self):
        pass


def test_a_tracker_that_cannot_be_imported_is_told(monkeypatch, tmp_path):
    (tmp_path / "wandb.py").write_text("raise ValueError('numpy is too new')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    wandb_sink.check_wandb.cache_clear()
    with pytest.raises(UserError, match=r"which cannot be imported \(numpy is too new\); run `pip install wandb`"):
        wandb_sink.check_wandb("arabic")


@pytest.mark.parametrize(
    ("wandb", "words"),
    [
        (Wandb(key=None), "nobody is logged in; log in with `wandb login`"),
        (Wandb(viewer=OSError("Connection refused")), "does not answer (Connection refused)"),
        (Wandb(viewer=None), "does not answer (no answer within 0 s)"),
        (Wandb(), None),
    ],
)
def test_a_tracker_is_asked_before_anything_starts(monkeypatch, wandb, words):
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(wandb_sink, "_SECONDS", 0.2)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wandb_sink.check_wandb.cache_clear()
    if words is None:
        wandb_sink.check_wandb("arabic")
        return
    with pytest.raises(UserError) as error:
        wandb_sink.check_wandb("arabic")
    assert words in str(error.value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb_sink.check_wandb("arabic")


def broken_pipe():
    raise BrokenPipeError("the service has ended")


@pytest.mark.parametrize("trouble", [broken_pipe, lambda: time.sleep(20)])
def test_a_tracker_that_dies_later_stops_no_run(tmp_path, monkeypatch, caplog, trouble):
    wandb = Wandb(log=trouble)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(wandb_sink, "_SECONDS", 0.2)
    with MetricsWriter(tmp_path, MetricsSettings(tensorboard=False, wandb_project="p")) as writer:
        for step in range(1, 7):
            writer.write(step, {"loss": 1 / step})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 6
    assert [row["step"] for row in wandb.rows] == [1, 2, 3]
    assert "the run goes on without it" in caplog.text


def test_the_file_is_strict_json_and_comes_back(tmp_path):
    values = {"loss": float("nan"), "layers": np.array([1.0, -np.inf, np.inf])}
    with MetricsWriter(tmp_path, MetricsSettings(tensorboard=False)) as writer:
        writer.write(1, values)
    (line,) = lines(tmp_path)
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1,
        "loss": None,
        "layers": [1.0, None, None],
    }
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert np.isnan(row["loss"])
    np.testing.assert_array_equal(row["layers"], [1.0, np.nan, np.nan])


def test_asking_for_wandb_without_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"metrics\.wandb_project: 'arabic' needs the package wandb"):
        MetricsWriter(tmp_path, MetricsSettings(tensorboard=False, wandb_project="arabic"))


def test_rows_are_json_objects(tmp_path):
    write_steps(tmp_path, [1])
    assert json.loads(lines(tmp_path)[0]) == {"step": 1, "loss": 1.0, "seconds": 0.5}
