"""AdamW, clipping, decay and group norms against torch and plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from allam_jax.errors import UserError
from allam_jax.training.optimizer import check_no_decay, decay_mask, grad_norms, make_optimizer, optimizer_metrics
from allam_jax.training.schedules import make_schedule
from allam_jax.training.settings import GuardSettings, OptimizerSettings, ScheduleSettings

LAYERS, WIDTH = 3, 4


def llama_tree(seed, *, scale=1.0, dtype=np.float32):
    rng = np.random.default_rng(seed)

    def array(*shape):
        return (scale * rng.standard_normal(shape)).astype(dtype)

    return {
        "embedding": {"table": array(8, WIDTH)},
        "layers": {
            "attention": {name: array(LAYERS, WIDTH, 2, 2) for name in ("query", "key", "value", "output")},
            "attention_norm": {"scale": array(LAYERS, WIDTH)},
            "mlp": {name: array(LAYERS, WIDTH, 6) for name in ("gate", "up", "down")},
            "mlp_norm": {"scale": array(LAYERS, WIDTH)},
        },
        "final_norm": {"scale": array(WIDTH)},
        "head": {"kernel": array(WIDTH, 8)},
    }


def run(optimizer, params, grads_by_step, losses=None):
    """Parameters after each step, with the optimizer jitted as in training."""

    @jax.jit
    def step_fn(params, state, grads, step, loss):
        updates, state = optimizer.update(
            grads, state, params, step=step, loss=loss, grad_norm=grad_norms(grads)["global"]
        )
        return optax.apply_updates(params, updates), state

    state, history = optimizer.init(params), []
    for step, grads in enumerate(grads_by_step):
        params, state = step_fn(params, state, grads, step, 1.0 if losses is None else losses[step])
        history.append((params, state))
    return history


@pytest.mark.parity
@pytest.mark.parametrize("clip_norm", [1.0, 0.0])
@pytest.mark.parametrize("eps", [1e-8, 1e-5])
def test_equals_torch_adamw_with_clipping(clip_norm, eps):
    torch = pytest.importorskip("torch")
    params = llama_tree(0)
    # Norms on both sides of the clip: some steps are clipped, some are not.
    grads_by_step = [llama_tree(100 + i, scale=0.02 if i % 3 else 1.0) for i in range(30)]
    schedule = make_schedule(ScheduleSettings(name="cosine", peak_lr=0.01, warmup_steps=5), total_steps=30)
    ours = run(
        make_optimizer(
            OptimizerSettings(eps=eps, clip_norm=clip_norm, weight_decay=0.1),
            schedule=schedule,
            guard=GuardSettings(sigma=0.0),
        ),
        params,
        grads_by_step,
    )

    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    tensors = [torch.nn.Parameter(torch.tensor(leaf)) for _, leaf in paths]
    is_norm = ["scale" in jax.tree_util.keystr(path) for path, _ in paths]
    adamw = torch.optim.AdamW(
        [
            {"params": [t for t, norm in zip(tensors, is_norm, strict=True) if not norm], "weight_decay": 0.1},
            {"params": [t for t, norm in zip(tensors, is_norm, strict=True) if norm], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        eps=eps,
    )
    for step, grads in enumerate(grads_by_step):
        for tensor, gradient in zip(tensors, jax.tree.leaves(grads), strict=True):
            tensor.grad = torch.tensor(gradient)
        for group in adamw.param_groups:
            group["lr"] = float(schedule(step))
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(tensors, clip_norm)
        adamw.step()
        for tensor, leaf in zip(tensors, jax.tree.leaves(ours[step][0]), strict=True):
            expected = tensor.detach().numpy()
            np.testing.assert_allclose(leaf, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
        np.testing.assert_allclose(ours[step][1].learning_rate, schedule(step), rtol=1e-5)


def test_decay_spares_norms_and_what_is_named():
    params = llama_tree(0)
    zero_grads = jax.tree.map(np.zeros_like, params)
    schedule = make_schedule(ScheduleSettings(name="constant", peak_lr=0.1, warmup_steps=0), total_steps=9)
    for no_decay in (("scale",), ("scale", "embedding")):
        optimizer = make_optimizer(
            OptimizerSettings(weight_decay=0.5, no_decay=no_decay), schedule=schedule, guard=GuardSettings()
        )
        after = run(optimizer, params, [zero_grads])[0][0]
        for (path, before), leaf in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(after), strict=True
        ):
            spared = any(name in jax.tree_util.keystr(path) for name in no_decay)
            factor = 1.0 if spared else 1 - 0.1 * 0.5
            np.testing.assert_allclose(leaf, before * np.float32(factor), rtol=1e-6)
    biased = {"attention": {"bias": {"query": params["final_norm"]["scale"]}, "query": 1}, "norm": {"scale": 1}}
    assert jax.tree.leaves(decay_mask(biased)) == [False, True, False]
    with pytest.raises(UserError, match=r"optimizer\.no_decay.*'embeding'"):
        check_no_decay(params, no_decay=("scale", "embeding"))


def test_rewarm_counts_updates_made_with_the_moments_not_global_steps():
    params = llama_tree(0)
    schedule = make_schedule(ScheduleSettings(name="constant", peak_lr=0.1, warmup_steps=0), total_steps=1000)
    optimizer = make_optimizer(
        OptimizerSettings(rewarm_mode="freeze", rewarm_steps=3), schedule=schedule, guard=GuardSettings()
    )
    state, rates, update = optimizer.init(params), [], jax.jit(optimizer.update)
    for step in range(500, 506):  # parameters from step 500, fresh moments
        loss = np.nan if step == 501 else 1.0  # skipped: must not count
        updates, state = update(llama_tree(step), state, params, step=step, loss=loss, grad_norm=jnp.float32(1.0))
        rates.append(float(optimizer_metrics(state)["learning_rate"]))
        if rates[-1] == 0:
            jax.tree.map(lambda p, u: np.testing.assert_array_equal(p + np.asarray(u), p), params, updates)
    np.testing.assert_allclose(rates, [0, 0, 0, 0, 0.1, 0.1])
    assert int(state.updates) == 5
    assert all(np.abs(v).max() > 0 for v in jax.tree.leaves(state.nu))


def test_moment_types():
    schedule = make_schedule(ScheduleSettings(name="constant", peak_lr=0.1, warmup_steps=0), total_steps=9)
    params = llama_tree(0, dtype=jnp.bfloat16)
    optimizer = make_optimizer(
        OptimizerSettings(first_moment_dtype="bfloat16"), schedule=schedule, guard=GuardSettings()
    )
    after, state = run(optimizer, params, [llama_tree(1, dtype=jnp.bfloat16)] * 2)[-1]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.mu)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.nu)} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(after)} == {"bfloat16"}
    before = jax.eval_shape(optimizer.init, params)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), before) == jax.tree.map(lambda a: (a.shape, a.dtype), state)


def test_grad_norms_against_numpy():
    grads = llama_tree(3)
    norms = grad_norms(grads)
    layers = grads["layers"]

    def norm(*trees):
        return np.sqrt(sum(np.sum(leaf.astype(np.float64) ** 2) for leaf in jax.tree.leaves(trees)))

    expected = {
        "global": norm(grads),
        "embedding": norm(grads["embedding"]),
        "head": norm(grads["head"]),
        "norms": norm(grads["final_norm"], layers["attention_norm"], layers["mlp_norm"]),
        "attention": norm(layers["attention"]),
        "mlp": norm(layers["mlp"]),
    }
    of_layer = [jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(LAYERS)]
    expected["layers"] = [norm(layer) for layer in of_layer]
    expected["layers_attention"] = [norm(layer["attention"]) for layer in of_layer]
    expected["layers_mlp"] = [norm(layer["mlp"]) for layer in of_layer]
    assert set(norms) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(norms[name], value, rtol=1e-6, err_msg=name)
    assert "head" not in grad_norms({"embedding": grads["embedding"], "layers": layers})


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"b1": 1.0}, "optimizer.b1"),
        ({"b2": -0.1}, "optimizer.b2"),
        ({"eps": -1.0}, "optimizer.eps"),
        ({"weight_decay": float("nan")}, "optimizer.weight_decay"),
        ({"clip_norm": -1.0}, "optimizer.clip_norm"),
        ({"first_moment_dtype": "float16"}, "optimizer.first_moment_dtype"),
    ],
)
def test_errors_name_the_key(change, key):
    with pytest.raises(UserError, match=rf"^config\.{key} = "):
        OptimizerSettings(**change)


def test_the_guarded_update_works_in_place():
    params = {"matrix": jnp.ones((512, 512)), "scale": jnp.ones(512)}
    optimizer = make_optimizer(
        OptimizerSettings(),
        schedule=make_schedule(ScheduleSettings(name="constant", peak_lr=0.1, warmup_steps=0), total_steps=9),
        guard=GuardSettings(),
    )

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params, step=0, loss=1.0, grad_norm=grad_norms(grads)["global"])
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, jax.eval_shape(optimizer.init, params), params)
    memory = compiled.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.1 * params["matrix"].nbytes, "something is copied: skipping has a price again"
