"""Import and export without transformers: bitwise, on every mesh, within memory, and with errors that name the cause.

That the numbers mean the same to transformers is shown in tests/parity.
"""

import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from processes import child_environment, start, wait
from small_models import SMALL

from allam_jax.errors import UserError
from allam_jax.model.llama import abstract_params
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.parallel.mesh import make_mesh
from allam_jax.parallel.sharding import bytes_per_device
from allam_jax.weights.huggingface import export_huggingface, import_huggingface
from allam_jax.weights.huggingface_config import config_to_huggingface

CONFIG = SMALL
MESHES = {"fsdp8": (1, 8, 1), "tensor4": (1, 1, 4), "2x2x2": (2, 2, 2)}


def mesh_of(name: str):
    data, fsdp, tensor = MESHES[name]
    return make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor}, devices=jax.devices()[: data * fsdp * tensor])


def random_params(config: LlamaConfig, *, dtype: str = "float32"):
    """Every bit pattern may occur but NaN's and padding's: signed zeros and subnormal numbers too."""
    rng = np.random.default_rng(0)

    def leaf(shape):
        values = rng.standard_normal(shape.shape).astype(jnp.dtype(dtype))
        values.flat[:4] = [-0.0, 0.0, 1e-42, -1e-7]
        return values

    params = jax.tree.map(leaf, abstract_params(config))
    params["embedding"]["table"][config.vocab_size :] = 0
    if not config.tie_embeddings:
        params["head"]["kernel"][:, config.vocab_size :] = 0
    return jax.tree.map(jnp.asarray, params)


def assert_bitwise(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


@pytest.mark.parametrize(
    ("dtype", "tied", "model_type"),
    [
        ("float32", False, "llama"),
        ("bfloat16", True, "llama"),
        ("float16", False, "mistral"),
        ("float32", True, "qwen2"),
        ("bfloat16", False, "qwen2"),
        ("float32", True, "qwen3"),
    ],
)
def test_import_after_export_is_bitwise(tmp_path, dtype, tied, model_type):
    config = dataclasses.replace(CONFIG, tie_embeddings=tied, model_type=model_type)
    params = random_params(config, dtype=dtype)
    for shard_bytes in (10**9, 5_000):
        target = tmp_path / str(shard_bytes)
        export_huggingface(target, params=params, config=config, max_shard_bytes=shard_bytes)
        assert len(list(target.glob("*.safetensors"))) == 1 or shard_bytes == 5_000
        again, again_config = import_huggingface(target, vocab_multiple=64)
        assert again_config == config
        assert_bitwise(again, params)


@pytest.mark.parametrize("name", MESHES)
def test_sharded_import_and_export(tmp_path, name):
    params = random_params(CONFIG)
    export_huggingface(tmp_path / "one", params=params, config=CONFIG)
    mesh = mesh_of(name)
    sharded, _ = import_huggingface(tmp_path / "one", mesh=mesh, vocab_multiple=64)
    assert_bitwise(sharded, params)
    split = mesh.shape["fsdp"] * mesh.shape["tensor"]
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert max(bytes_per_device(sharded).values()) < whole / split * 1.1  # norms are not cut
    export_huggingface(tmp_path / "many", params=sharded, config=CONFIG)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "many" / file).read_bytes()


def test_layout_of_the_files(tmp_path):
    """Against the definition: linear maps are [out, in], heads are consecutive rows, padding is not exported."""
    params = jax.tree.map(np.asarray, random_params(CONFIG))
    export_huggingface(tmp_path / "x", params=params, config=CONFIG, generation={"eos_token_id": [2, 7]})
    stored = safetensors.numpy.load_file(tmp_path / "x" / "model.safetensors")
    layers = params["layers"]
    for layer in range(3):
        prefix = f"model.layers.{layer}."
        for name, letter in (("query", "q"), ("key", "k"), ("value", "v")):
            expected = np.stack(
                [column for head in np.moveaxis(layers["attention"][name][layer], 1, 0) for column in head.T]
            )
            np.testing.assert_array_equal(stored[f"{prefix}self_attn.{letter}_proj.weight"], expected)
        flat = layers["attention"]["output"][layer].reshape(48, 32)
        np.testing.assert_array_equal(stored[prefix + "self_attn.o_proj.weight"], flat.T)
        for name in ("gate", "up", "down"):
            np.testing.assert_array_equal(stored[f"{prefix}mlp.{name}_proj.weight"], layers["mlp"][name][layer].T)
    assert stored["model.embed_tokens.weight"].shape == (125, 32)
    np.testing.assert_array_equal(stored["lm_head.weight"], params["head"]["kernel"][:, :125].T)
    assert len(stored) == 3 + 9 * 3
    assert json.loads((tmp_path / "x" / "generation_config.json").read_text()) == {"eos_token_id": [2, 7]}
    assert json.loads((tmp_path / "x" / "config.json").read_text())["eos_token_id"] == [2, 7]


def test_export_converts(tmp_path):
    params = random_params(CONFIG)
    export_huggingface(tmp_path / "x", params=params, config=CONFIG, dtype="bfloat16")
    assert json.loads((tmp_path / "x" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    again, _ = import_huggingface(tmp_path / "x", vocab_multiple=64)
    assert_bitwise(again, jax.tree.map(lambda p: p.astype(jnp.bfloat16), params))
    widened, _ = import_huggingface(tmp_path / "x", vocab_multiple=64, param_dtype="float32")
    assert_bitwise(widened, jax.tree.map(lambda p: p.astype(jnp.float32), again))


def test_imported_parameters_survive_donation(tmp_path):
    """They lie in memory that JAX took over from NumPy; devices may share it."""
    export_huggingface(tmp_path / "x", params=random_params(CONFIG), config=CONFIG)
    params, _ = import_huggingface(tmp_path / "x", mesh=mesh_of("2x2x2"), vocab_multiple=64)
    expected = jax.tree.map(lambda p: np.array(p) + 1, params)
    add = jax.jit(lambda tree: jax.tree.map(lambda p: p + 1, tree), donate_argnums=0)
    assert_bitwise(add(params), expected)


def test_a_failed_export_leaves_the_old_one(tmp_path):
    export_huggingface(tmp_path / "x", params=random_params(CONFIG), config=CONFIG)
    before = {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()}
    with pytest.raises(TypeError, match="not JSON serializable"):  # found when the tensors are written
        export_huggingface(
            tmp_path / "x", params=random_params(CONFIG), config=CONFIG, dtype="bfloat16", generation={"x": object()}
        )
    with pytest.raises(UserError, match="neither tokenizer.model nor tokenizer.json"):
        export_huggingface(
            tmp_path / "x", params=random_params(CONFIG), config=CONFIG, dtype="bfloat16", tokenizer_dir=tmp_path
        )
    assert {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_tokenizer_files_go_along(tmp_path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "unrelated.safetensors"):
        (tokenizer / name).write_text(name)
    export_huggingface(tmp_path / "x", params=random_params(CONFIG), config=CONFIG, tokenizer_dir=tokenizer)
    assert (tmp_path / "x" / "tokenizer.json").read_text() == "tokenizer.json"
    assert not (tmp_path / "x" / "unrelated.safetensors").exists()


# -- tensors that do not fit -------------------------------------------------------------------------------------------


@pytest.fixture
def exported(tmp_path):
    export_huggingface(tmp_path / "x", params=random_params(CONFIG), config=CONFIG)
    return tmp_path / "x"


def change_tensors(directory: Path, change) -> None:
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    (directory / "files.json").unlink(missing_ok=True)  # now it is like another program's


def change_config(directory: Path, **values) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | values))
    (directory / "files.json").unlink(missing_ok=True)


def test_missing_and_unexpected_tensors(exported):
    change_tensors(exported, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(UserError, match=r"1 missing tensors: model\.layers\.1\.mlp\.up_proj\.weight"):
        import_huggingface(exported)
    up = "model.layers.1.mlp.up_proj.weight"
    change_tensors(exported, lambda tensors: tensors.update({f"_orig_mod.{up}": np.zeros((48, 32), np.float32)}))
    with pytest.raises(UserError, match=rf"1 missing tensors: {up} and 1 unexpected tensors: _orig_mod\.{up};"):
        import_huggingface(exported)
    change_tensors(exported, lambda tensors: tensors.pop(f"_orig_mod.{up}"))
    zeros = np.zeros((48, 32), np.float32)
    change_tensors(exported, lambda tensors: tensors.update({"model.layers.1.mlp.up_proj.weight": zeros, "odd": zeros}))
    with pytest.raises(UserError, match="1 unexpected tensors: odd"):
        import_huggingface(exported)


def test_fewer_layers_than_stored(exported):
    change_config(exported, num_hidden_layers=2)
    with pytest.raises(UserError, match=r"9 unexpected tensors: model\.layers\.2"):
        import_huggingface(exported)


def test_vocabulary_that_does_not_match_the_weights(exported):
    change_config(exported, vocab_size=126)
    with pytest.raises(UserError, match="the weights hold 125 tokens, vocab_size is 126"):
        import_huggingface(exported)


def test_wrong_shape_is_named(exported):
    change_config(exported, intermediate_size=50)
    with pytest.raises(UserError, match=r"gate_proj\.weight has shape \(48, 32\), but config\.json implies \(50, 32\)"):
        import_huggingface(exported)


def test_integers_are_no_weights(exported):
    change_tensors(exported, lambda t: t.update({"model.norm.weight": np.ones(32, np.int32)}))
    with pytest.raises(UserError, match=r"model\.norm\.weight is int32"):
        import_huggingface(exported)


@pytest.mark.parametrize(
    ("name", "values", "method"),
    [
        ("model.layers.0.mlp.up_proj.qweight", np.ones((4, 6), np.int32), "GPTQ or AWQ"),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", np.ones((1, 1), np.float32), "FP8"),
        ("model.layers.0.mlp.up_proj.weight", np.ones((48, 32), ml_dtypes.float8_e4m3fn), "FP8"),
    ],
)
def test_quantised_weights_say_what_to_do(exported, name, values, method):
    change_tensors(exported, lambda t: t.update({name: values}))
    with pytest.raises(UserError, match=rf"{name}: the weights are quantised \({method}\).*save_pretrained") as error:
        import_huggingface(exported)
    assert "\n" not in str(error.value)


def test_float64_needs_a_choice(exported):
    change_tensors(exported, lambda t: t.update({"model.norm.weight": np.ones(32, np.float64)}))
    with pytest.raises(UserError, match="choose a param_dtype"):
        import_huggingface(exported)
    params, _ = import_huggingface(exported, param_dtype="float32")
    assert params["final_norm"]["scale"].dtype == jnp.float32


def test_rotary_buffers_of_old_exports_are_ignored(exported):
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32) for i in range(3)}
    change_tensors(exported, lambda tensors: tensors.update(buffers))
    import_huggingface(exported)


def test_tied_head_that_is_stored_as_well(tmp_path):
    config = dataclasses.replace(CONFIG, tie_embeddings=True)
    export_huggingface(tmp_path / "x", params=random_params(config), config=config)
    change_tensors(tmp_path / "x", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    assert "head" not in import_huggingface(tmp_path / "x")[0]

    def narrow(tensors):
        table = tensors["model.embed_tokens.weight"].astype(ml_dtypes.bfloat16)
        tensors |= {"model.embed_tokens.weight": table, "lm_head.weight": table.astype(np.float32)}

    change_tensors(tmp_path / "x", narrow)  # the same values in two dtypes
    assert import_huggingface(tmp_path / "x")[0]["embedding"]["table"].dtype == jnp.bfloat16
    change_tensors(tmp_path / "x", lambda t: t["lm_head.weight"].__setitem__((100, 3), 9.0))
    with pytest.raises(UserError, match="differs from the embedding"):
        import_huggingface(tmp_path / "x")


def test_a_head_that_is_not_there(exported):
    change_tensors(exported, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(UserError, match=r"1 missing tensors: lm_head\.weight;.*set tie_word_embeddings to true there"):
        import_huggingface(exported)


def test_tied_weights_that_are_stored_as_the_head_alone(tmp_path):
    config = dataclasses.replace(CONFIG, tie_embeddings=True)
    params = random_params(config)
    export_huggingface(tmp_path / "x", params=params, config=config)
    change_tensors(tmp_path / "x", lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    found, _ = import_huggingface(tmp_path / "x")
    assert_bitwise(found, params)


def test_of_two_sets_of_weights_the_single_file_is_read_as_by_transformers(exported):
    params = random_params(CONFIG)
    other = jax.tree.map(jnp.zeros_like, params)
    export_huggingface(exported.parent / "old", params=other, config=CONFIG, max_shard_bytes=50_000)
    for path in (exported.parent / "old").glob("*.safetensors*"):
        shutil.copy(path, exported)
    with pytest.raises(UserError, match="is not among the files that were written here"):
        import_huggingface(exported)
    (exported / "files.json").unlink()
    assert_bitwise(import_huggingface(exported)[0], params)


def test_no_directory(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        import_huggingface(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        import_huggingface(tmp_path / "empty")


# -- memory ------------------------------------------------------------------------------------------------------------

_MEASURE = """
import json, sys
import jax

def memory(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

from allam_jax.weights.huggingface import import_huggingface
jax.block_until_ready(jax.numpy.zeros(1))
before = memory("VmRSS")
params, _ = import_huggingface(sys.argv[1])
jax.block_until_ready(params)
held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(json.dumps({"before": before, "peak": memory("VmHWM"), "held": held}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
def test_an_import_holds_little_beside_the_model(tmp_path):
    config = dataclasses.replace(
        CONFIG, vocab_size=32_000, dim=1024, num_layers=16, num_heads=16, num_kv_heads=8, head_dim=64, mlp_dim=5632
    )
    size = sparse_directory(tmp_path, config)
    assert size > 7e8
    run = wait(start([sys.executable, "-c", _MEASURE, tmp_path], environment=child_environment()))
    assert run.status == 0, run.err
    grown = run.result["peak"] - run.result["before"]
    assert run.result["held"] >= size * 0.99
    assert grown < 1.2 * size, f"{run.result} of {size}: {grown / size:.3f} of its size"


def sparse_directory(directory: Path, config: LlamaConfig) -> int:
    """A Hugging Face directory in bfloat16 whose tensors are holes in two files; returns its size in bytes."""
    D, F, N, K, H, V = (config.dim, config.mlp_dim, config.num_heads, config.num_kv_heads, config.head_dim, 32_000)
    shapes = {"model.embed_tokens.weight": (V, D), "lm_head.weight": (V, D), "model.norm.weight": (D,)}
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{x}_proj.weight": (n * H, D) for x, n in (("q", N), ("k", K), ("v", K))}
        shapes |= {f"{prefix}self_attn.o_proj.weight": (D, N * H), f"{prefix}mlp.down_proj.weight": (D, F)}
        shapes |= {f"{prefix}mlp.{x}_proj.weight": (F, D) for x in ("gate", "up")}
        shapes |= {f"{prefix}{x}_layernorm.weight": (D,) for x in ("input", "post_attention")}
    names, weight_map, total = list(shapes), {}, 0
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        header, offset = {}, 0
        for name in part:
            end = offset + 2 * math.prod(shapes[name])
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [offset, end]}
            weight_map[name] = f"part{number}.safetensors"
            offset = end
        raw = json.dumps(header).encode()
        with open(directory / f"part{number}.safetensors", "wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            file.truncate(8 + len(raw) + offset)
        total += 8 + len(raw) + offset
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    values = config_to_huggingface(config, dtype="bfloat16", token_ids={})
    (directory / "config.json").write_text(json.dumps(values))
    return total
