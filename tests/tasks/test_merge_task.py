"""Task `merge`: every kind of model in, both formats out, against sums written out in NumPy; what cannot be merged."""

import dataclasses
import itertools
import json
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from launcher import error_of
from merged_models import CONFIG, assert_params, combine, config_of, merge, params_of, place, tensors
from processes import free_port, wait

from allam_jax.errors import UserError
from allam_jax.model.llama import abstract_params
from allam_jax.tasks import runner
from allam_jax.tokenizer.sentencepiece_training import train_sentencepiece
from allam_jax.training.checkpoints import Checkpointer
from allam_jax.training.load import CHECKPOINTS_FOLDER, load_model, save_run
from allam_jax.training.settings import CheckpointSettings
from allam_jax.weights import directory, orbax_arrays
from allam_jax.weights.directory import load_weights, save_weights
from allam_jax.weights.huggingface import export_huggingface

STEPS = (4, 6, 10, 12)  # of the run
KINDS = ("orbax", "huggingface", "run")


@pytest.fixture(scope="module")
def root(launcher, tmp_path_factory):
    """Models `a` and `b` in every kind of place, and the checkpoints of a run."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = launcher.root / "tokenizer"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orbax_arrays, "CHUNK_BYTES", 5000)  # several chunks an array, as large models have
        place(root, "a", params_of(0), tokenizer=tokenizer)
    place(root, "b", params_of(1), tokenizer=tokenizer)
    save_run(root / "trunk", config=CONFIG, tokenizer_dir=tokenizer, name="a run")
    with Checkpointer(root / "trunk" / CHECKPOINTS_FOLDER, CheckpointSettings(keep_last=9)) as checkpointer:
        for step in STEPS:
            state = {"params": jax.tree.map(jnp.asarray, params_of(step)), "step": jnp.int32(step)}
            checkpointer.save(step, state=state, data={}, metadata={"config": {"param_dtype": "float32"}})
    return root


# -- what comes out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), list(itertools.product(KINDS, KINDS)))
def test_every_kind_with_every_kind(root, tmp_path, first, second):
    config = config_of(root / "a" / first, root / "b" / second, method="weighted")
    config.merge.models.m0.weight, config.merge.models.m1.weight = 1.0, 3.0
    result = runner.run(config, workdir=tmp_path)
    expected = combine([0.25, 0.75], [params_of(0), params_of(1)])
    for name in ("orbax", "huggingface"):
        loaded = load_model(tmp_path / name)
        assert_params(loaded.params, expected)
        assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {jnp.dtype("float32")}
        assert loaded.config == dataclasses.replace(CONFIG, init_std=loaded.config.init_std)
        assert loaded.tokenizer_dir is not None
    assert [model["coefficient"] for model in result["models"]] == [0.25, 0.75]
    assert json.loads((tmp_path / "merge.json").read_text())["models"] == result["models"]
    metadata = load_weights(tmp_path / "orbax").metadata
    assert metadata["merge"]["method"] == "weighted"
    assert len(metadata["tokenizer"]) == 64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [2, 3])
def test_the_average_of_a_model_with_itself_is_the_model(root, tmp_path, kind, count):
    merge(tmp_path, *[root / "a" / kind] * count)
    for name in ("orbax", "huggingface"):
        for found, expected in zip(
            jax.tree.leaves(load_model(tmp_path / name).params), jax.tree.leaves(params_of(0)), strict=True
        ):
            assert np.asarray(found).tobytes() == expected.tobytes()
    given, made = tensors(root / "a" / "huggingface"), tensors(tmp_path / "huggingface")
    assert {name: value.tobytes() for name, value in given.items()} == {n: v.tobytes() for n, v in made.items()}


def test_a_second_run_gives_the_same_bytes(root, tmp_path):
    for workdir in (tmp_path / "one", tmp_path / "other"):
        merge(workdir, root / "a" / "orbax", root / "b" / "huggingface", method="slerp", t=0.3)
    files = [(tmp_path / name / "huggingface" / "model.safetensors").read_bytes() for name in ("one", "other")]
    assert files[0] == files[1]
    before = files[0]
    merge(tmp_path / "one", root / "a" / "orbax", root / "b" / "huggingface", method="slerp", t=0.3)
    assert (tmp_path / "one" / "huggingface" / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "config.json",
        "files.json",
        "huggingface",
        "merge.json",
        "orbax",
    ]


def test_linear(root, tmp_path):
    result = merge(tmp_path, root / "a" / "run", root / "b" / "orbax", method="linear", t=0.2)
    assert_params(load_model(tmp_path / "orbax").params, combine([0.8, 0.2], [params_of(0), params_of(1)]))
    assert [model["step"] for model in result["models"]] == [8, None]


def test_slerp_tensor_by_tensor(root, tmp_path):
    result = merge(tmp_path, root / "a" / "orbax", root / "b" / "huggingface", method="slerp", t=0.3)
    assert result["t"] == 0.3
    first, second, merged = (tensors(path / "huggingface") for path in (root / "a", root / "b", tmp_path))
    assert merged.keys() == first.keys()
    linear = 0
    for name, value in merged.items():
        a, b = first[name].astype(np.float64), second[name].astype(np.float64)
        u, v = a / np.linalg.norm(a), b / np.linalg.norm(b)
        angle = 2 * math.atan2(np.linalg.norm(u - v), np.linalg.norm(u + v))
        expected = (math.sin(0.7 * angle) * a + math.sin(0.3 * angle) * b) / math.sin(angle)
        np.testing.assert_allclose(value, expected, rtol=2e-7, atol=1e-8)
        linear += np.allclose(expected, 0.7 * a + 0.3 * b, rtol=1e-2)
    assert linear < len(merged) / 2


@pytest.mark.parametrize(("shape", "final_fraction"), [("linear", 0.0), ("one_minus_sqrt", 0.1)])
def test_decay(root, tmp_path, shape, final_fraction):
    """Eight updates after the first checkpoint, of which 2, 4 and 2 lie between the next ones."""
    config = config_of(root / "trunk", steps=STEPS, method="decay")
    config.merge.update(decay_shape=shape, final_fraction=final_fraction)
    result = runner.run(config, workdir=tmp_path)
    fall = {"linear": lambda r: 1 - r, "one_minus_sqrt": lambda r: 1 - math.sqrt(r)}[shape]
    rates = [final_fraction + (1 - final_fraction) * fall(update / 8) for update in range(8)]
    w = [1.0, np.mean(rates[:2]), np.mean(rates[2:6]), np.mean(rates[6:]), 0.0]
    expected = [w[j] - w[j + 1] for j in range(4)]
    found = [model["coefficient"] for model in result["models"]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert sum(found) == pytest.approx(1, abs=1e-12)
    assert [model["step"] for model in result["models"]] == list(STEPS)
    assert result["decay"] == {"decay_shape": shape, "final_fraction": final_fraction}
    assert_params(
        load_model(tmp_path / "huggingface").params, combine(found, [params_of(step) for step in STEPS]), rtol=1e-6
    )
    assert load_weights(tmp_path / "orbax").metadata["step"] == STEPS[-1]


def test_without_steps_checkpoints_are_evenly_spaced(root, tmp_path):
    config = config_of(*[root / "a" / "huggingface"] * 3, method="decay")
    config.merge.decay_shape = "linear"
    result = runner.run(config, workdir=tmp_path)
    assert [model["coefficient"] for model in result["models"]] == pytest.approx([0, 0.5, 0.5])


@pytest.mark.slow
def test_dtypes(root, tmp_path, launcher):
    tokenizer = launcher.root / "tokenizer"
    half = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), params_of(0))
    save_weights(tmp_path / "half", params=half, config=CONFIG, tokenizer_dir=tokenizer)
    export_huggingface(tmp_path / "other", params=half, config=CONFIG, tokenizer_dir=tokenizer)

    def dtypes(workdir):
        return {
            leaf.dtype.name
            for name in ("orbax", "huggingface")
            for leaf in jax.tree.leaves(load_model(workdir / name).params)
        }

    merge(tmp_path / "narrow", tmp_path / "half", tmp_path / "other")
    assert dtypes(tmp_path / "narrow") == {"bfloat16"}
    merge(tmp_path / "mixed", tmp_path / "half", root / "b" / "run")
    assert dtypes(tmp_path / "mixed") == {"float32"}
    config = config_of(root / "a" / "orbax", root / "b" / "run")
    config.export.dtype = "bfloat16"
    runner.run(config, workdir=tmp_path / "asked")
    assert dtypes(tmp_path / "asked") == {"bfloat16"}
    expected = combine([0.5, 0.5], [params_of(0), params_of(1)])["layers"]["mlp"]["down"].astype(ml_dtypes.bfloat16)
    found = load_model(tmp_path / "asked" / "huggingface").params["layers"]["mlp"]["down"]
    np.testing.assert_array_equal(np.asarray(found), expected)


# -- what cannot be merged ---------------------------------------------------------------------------------------------


def fails(config, workdir):
    with pytest.raises(UserError) as error:
        runner.run(config, workdir=workdir)
    message = str(error.value)
    assert "\n" not in message
    assert not workdir.exists() or {path.name for path in workdir.iterdir()} <= {"config.json", "files.json"}
    return message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 3}, "orbax has num_layers = 2, but {other} has 3; only models of one architecture"),
        ({"mlp_dim": 64, "rope_theta": 5e5}, "orbax has mlp_dim = 48, but {other} has 64; only"),
        ({"rope_theta": 5e5}, "orbax has rope_theta = 10000.0, but {other} has 500000.0"),
        ({"tie_embeddings": True}, "tie_embeddings = False, but {other} has True"),
    ],
)
def test_other_architectures(root, tmp_path, launcher, change, message):
    config = dataclasses.replace(CONFIG, **change)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), abstract_params(config))
    save_weights(tmp_path / "other", params=params, config=config, tokenizer_dir=launcher.root / "tokenizer")
    error = fails(config_of(root / "a" / "orbax", tmp_path / "other"), tmp_path / "out")
    assert message.format(other=tmp_path / "other") in error


@pytest.mark.slow
def test_padding_may_differ(root, tmp_path, launcher):
    config = dataclasses.replace(CONFIG, vocab_multiple=256)
    params = params_of(1)
    params["embedding"]["table"] = np.pad(params["embedding"]["table"], ((0, 128), (0, 0)))
    params["head"]["kernel"] = np.pad(params["head"]["kernel"], ((0, 0), (0, 128)))
    params = jax.tree.map(jnp.asarray, params)
    save_weights(tmp_path / "padded", params=params, config=config, tokenizer_dir=launcher.root / "tokenizer")
    merge(tmp_path / "out", root / "a" / "run", tmp_path / "padded")
    loaded = load_weights(tmp_path / "out" / "orbax")
    assert loaded.config.padded_vocab_size == 384
    assert_params(loaded.params, combine([0.5, 0.5], [params_of(0), params_of(1)]))
    merge(tmp_path / "wide", tmp_path / "padded", root / "a" / "run")
    wide = load_weights(tmp_path / "wide" / "orbax")
    assert wide.config.padded_vocab_size == 512
    assert not np.asarray(wide.params["embedding"]["table"])[384:].any()
    assert_params(
        load_model(tmp_path / "wide" / "huggingface").params, combine([0.5, 0.5], [params_of(0), params_of(1)])
    )


def test_other_tokenizers(root, tmp_path, launcher):
    words = (launcher.root / "text" / "en.txt").read_text().splitlines()
    train_sentencepiece(words, output=tmp_path / "tokenizer", vocab_size=384)
    params = jax.tree.map(jnp.asarray, params_of(1))
    save_weights(tmp_path / "other", params=params, config=CONFIG, tokenizer_dir=tmp_path / "tokenizer")
    a = root / "a" / "orbax"
    error = fails(config_of(a, tmp_path / "other"), tmp_path / "out")
    assert f"{tmp_path / 'other'} has another tokenizer than {a}: a token would mean" in error
    config = config_of(a, root / "b" / "run")
    config.tokenizer = str(tmp_path / "tokenizer")
    assert f"{a} has another tokenizer than {tmp_path / 'tokenizer'}" in fails(config, tmp_path / "out")


def test_a_model_without_tokenizer(root, tmp_path, launcher):
    save_weights(tmp_path / "bare", params=jax.tree.map(jnp.asarray, params_of(1)), config=CONFIG)
    config = config_of(root / "a" / "orbax", tmp_path / "bare")
    assert f"{tmp_path / 'bare'}: no tokenizer beside the weights; give config.tokenizer" in fails(
        config, tmp_path / "out"
    )
    config.tokenizer = str(launcher.root / "tokenizer")
    runner.run(config, workdir=tmp_path / "out")
    assert load_weights(tmp_path / "out" / "orbax").tokenizer_dir is not None


# name -> (models, keys that are set, what the line must say). Models are below the folder of `root`.
ONE, TWO = ("a/orbax",), ("a/orbax", "b/huggingface")
BAD = {
    "no models": ((), {}, "config.merge.models is empty: name at least two"),
    "one model": (ONE, {}, "config.merge.models: 1 model; a merge needs at least two"),
    "unknown method": (TWO, {"merge.method": "mean"}, "config.merge.method = 'mean': expected one of 'average'"),
    "no path": (TWO, {"merge.models.m1.path": ""}, "config.merge.models.m1.path is empty: give"),
    "no model": (("a/orbax", "x"), {}, "/x: no such directory; expected a weights directory"),
    "no such step": (
        ("a/orbax", "trunk"),
        {"merge.models.m1.steps": (7,)},
        "holds no checkpoint of step 7; there are 4, 6, 10, 12",
    ),
    "steps of no run": (TWO, {"merge.models.m1.steps": (7,)}, "checkpoints: no such checkpoint folder"),
    "three": (
        ("a/orbax", "trunk"),
        {"merge.models.m1.steps": (4, 6), "merge.method": "slerp"},
        "config.merge.models: 3 models; method 'slerp' is between two",
    ),
    "t": (
        TWO,
        {"merge.method": "linear", "merge.t": 1.5},
        "config.merge.t = 1.5: expected a number, at least 0, at most 1",
    ),
    "weight": (
        TWO,
        {"merge.models.m0.weight": 2.0},
        "config.merge.models.m0.weight = 2.0: only merge.method = 'weighted'",
    ),
    "weights": (
        TWO,
        {"merge.models.m0.weight": -1.0, "merge.method": "weighted"},
        "the weights [-1.0, 1.0] have no positive sum",
    ),
    "order": (
        ("trunk",),
        {"merge.models.m0.steps": (6, 4), "merge.method": "decay"},
        "the checkpoints have steps [6, 4]; each must be later",
    ),
    "unknown steps": (("a/orbax", "trunk"), {"merge.method": "decay"}, "a/orbax: its step is not known, but those of"),
    "shape": (
        TWO,
        {"merge.method": "decay", "merge.decay_shape": "square"},
        "merge.decay_shape = 'square': expected one of 'linear'",
    ),
    "exponential to zero": (
        TWO,
        {"merge.method": "decay", "merge.decay_shape": "exponential"},
        "merge.final_fraction = 0: an exponential decay never reaches 0",
    ),
    "format": (
        TWO,
        {"export.formats": ("onnx",)},
        "config.export.formats = ('onnx',): expected a tuple of 'huggingface', 'orbax', 'gguf'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_configs(root, tmp_path, name):
    paths, values, message = BAD[name]
    config = config_of(*[root / path for path in paths])
    config.update_from_flattened_dict(values)
    assert message in fails(config, tmp_path / "out")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_leave_the_old_result(root, tmp_path, launcher, value, monkeypatch):
    merge(tmp_path / "out", root / "a" / "orbax", root / "b" / "run")
    before = sorted((str(path), path.read_bytes()) for path in (tmp_path / "out").rglob("*") if path.is_file())
    params = params_of(1)
    params["layers"]["mlp"]["down"][1, 3, 4] = value  # among the last to be written
    params = jax.tree.map(jnp.asarray, params)
    monkeypatch.setattr(directory, "check_finite", lambda tree, where: None)  # as before it was checked here too
    save_weights(tmp_path / "bad", params=params, config=CONFIG, tokenizer_dir=launcher.root / "tokenizer")
    for formats in (("huggingface",), ("orbax",)):
        config = config_of(root / "a" / "orbax", tmp_path / "bad")
        config.export.formats = formats
        with pytest.raises(UserError, match=r"merge: model\.layers\.1\.mlp\.down_proj\.weight is not finite"):
            runner.run(config, workdir=tmp_path / "out")
    after = sorted((str(path), path.read_bytes()) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert [pair for pair in after if not pair[0].endswith(("out/config.json", "out/files.json"))] == [
        pair for pair in before if not pair[0].endswith(("out/config.json", "out/files.json"))
    ]


@pytest.mark.slow
def test_from_the_command_line(launcher, reference, tmp_path):
    """A real run's checkpoints, and an error as a user sees it."""
    options = {
        "config": f"configs/merge.py:{reference}",
        "merge.models.model_00.steps": "(16, 24, 32)",
        "merge.method": "decay",
        "merge.decay_shape": "linear",
    }
    result = launcher.train(tmp_path / "out", **options)
    # 16 updates at 1, 15/16, ..., 1/16 of the learning rate, eight of them before the second checkpoint.
    w = [np.mean([1 - update / 16 for update in part]) for part in (range(8), range(8, 16))]
    found = [model["coefficient"] for model in result["models"]]
    assert found == pytest.approx([1 - w[0], w[0] - w[1], w[1]], abs=1e-6)
    checkpoints = [load_model(reference / CHECKPOINTS_FOLDER / str(step)).params for step in (16, 24, 32)]
    expected = combine(found, [jax.tree.map(np.asarray, tree) for tree in checkpoints])
    assert_params(load_model(tmp_path / "out" / "huggingface").params, expected, rtol=1e-6)
    error = error_of(launcher.run(tmp_path / "bad", config="configs/merge.py:/nope,/nope"))
    assert error.startswith("/nope: no such directory; expected a weights directory")


@pytest.mark.slow
def test_processes_with_other_workdirs_are_told(launcher, tmp_path):
    job = {"flag_coordinator": f"localhost:{free_port()}", "flag_num_processes": 2}
    processes = [launcher.start(tmp_path / name, **job, flag_process_id=index) for index, name in enumerate("ab")]
    for finished in [wait(process) for process in processes]:
        assert finished.status == 2
        assert "--workdir" in error_of(finished)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(launcher, root, tmp_path):
    options = {"config": f"configs/merge.py:{root}/a/run,{root}/b/huggingface", "merge.method": "slerp"}
    job = {"flag_coordinator": f"localhost:{free_port()}", "flag_num_processes": 2}
    processes = [launcher.start(tmp_path / "two", **options, **job, flag_process_id=index) for index in range(2)]
    for finished in [wait(process) for process in processes]:
        assert finished.status == 0, finished.err[-3000:]
    merge(tmp_path / "one", root / "a" / "run", root / "b" / "huggingface", method="slerp")
    one, two = (tmp_path / name / "huggingface" / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert_params(*(load_model(tmp_path / name / "orbax").params for name in ("one", "two")), rtol=0)
