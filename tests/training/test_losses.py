import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allam_jax.parallel.mesh import make_mesh
from allam_jax.training import losses
from allam_jax.training.losses import chunked_cross_entropy, token_nll

B, T, D, VOCAB, PADDED = 3, 11, 16, 37, 48
CHUNKS = pytest.mark.parametrize("num_chunks", [1, 2, 4, 11])


def inputs(dtype=jnp.float32, head_dtype=None):
    rng = np.random.default_rng(0)
    x_BTD = jnp.asarray(rng.standard_normal((B, T, D)), dtype)
    # Padding columns are not zero here: they must be ignored whatever they hold.
    head_DV = jnp.asarray(rng.standard_normal((D, PADDED)), head_dtype or dtype)
    targets_BT = jnp.asarray(rng.integers(0, VOCAB, (B, T)), jnp.int32)
    weights_BT = jnp.asarray(rng.random((B, T)) * (rng.random((B, T)) < 0.7), jnp.float32)
    return x_BTD, head_DV, targets_BT, weights_BT


def torch_reference(x_BTD, head_DV, targets_BT, weights_BT, *, z_loss: float):
    """Loss, z-loss and the gradients of their sum in torch float64, from torch's own cross-entropy."""
    torch = pytest.importorskip("torch")
    x, head = (torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in (x_BTD, head_DV))
    weights = torch.tensor(np.asarray(weights_BT, np.float64)).flatten()
    logits = (x @ head)[..., :VOCAB].flatten(0, 1)
    targets = torch.tensor(np.asarray(targets_BT)).long().flatten()
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    loss = (weights * nll).sum()
    z = z_loss * (weights * torch.logsumexp(logits, -1) ** 2).sum()
    (loss + z).backward()
    return loss.item(), z.item(), nll.detach().numpy().reshape(B, T), x.grad.numpy(), head.grad.numpy()


def total(x_BTD, head_DV, *, targets_BT, weights_BT, **options):
    sums = chunked_cross_entropy(
        x_BTD, head_DV, targets_BT=targets_BT, weights_BT=weights_BT, vocab_size=VOCAB, **options
    )
    return sums.total, sums


def loss_and_gradients(arrays, **options):
    x_BTD, head_DV, targets_BT, weights_BT = arrays
    call = functools.partial(total, targets_BT=targets_BT, weights_BT=weights_BT, **options)
    (_, sums), gradients = jax.jit(jax.value_and_grad(call, argnums=(0, 1), has_aux=True))(x_BTD, head_DV)
    return sums, *gradients


@CHUNKS
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_against_torch(num_chunks, z_loss):
    arrays = inputs()
    loss, z, _, dx, dhead = torch_reference(*arrays, z_loss=z_loss)
    sums, dx_BTD, dhead_DV = loss_and_gradients(arrays, z_loss=z_loss, num_chunks=num_chunks)
    np.testing.assert_allclose(sums.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(sums.z_loss, z, rtol=1e-6)
    np.testing.assert_allclose(sums.total, loss + z, rtol=1e-6)
    np.testing.assert_allclose(sums.weight, np.sum(arrays[3]), rtol=1e-6)
    np.testing.assert_allclose(dx_BTD, dx, atol=2e-6)
    np.testing.assert_allclose(dhead_DV, dhead, atol=5e-6)


@CHUNKS
def test_value_is_the_same_with_and_without_gradient(num_chunks):
    arrays = inputs()
    sums, _, _ = loss_and_gradients(arrays, z_loss=1e-2, num_chunks=num_chunks)
    _, plain = total(*arrays[:2], targets_BT=arrays[2], weights_BT=arrays[3], z_loss=1e-2, num_chunks=num_chunks)
    np.testing.assert_allclose(sums, plain, rtol=1e-6)


def test_padding_columns_get_exactly_nothing():
    _, _, dhead_DV = loss_and_gradients(inputs(), z_loss=1e-2, num_chunks=4)
    np.testing.assert_array_equal(dhead_DV[:, VOCAB:], 0.0)
    assert np.all(np.any(np.asarray(dhead_DV[:, :VOCAB]) != 0, axis=0))


def test_tokens_of_weight_zero_get_exactly_nothing():
    arrays = inputs()
    _, dx_BTD, _ = loss_and_gradients(arrays, z_loss=1e-2, num_chunks=4)
    unweighted = np.asarray(arrays[3]) == 0
    assert unweighted.any()
    np.testing.assert_array_equal(np.asarray(dx_BTD)[unweighted], 0.0)


def test_gradient_scales_with_the_cotangent():
    x_BTD, head_DV, targets_BT, weights_BT = inputs()
    call = functools.partial(total, targets_BT=targets_BT, weights_BT=weights_BT, num_chunks=4)
    whole = jax.grad(lambda x: call(x, head_DV)[0])(x_BTD)
    quarter = jax.grad(lambda x: call(x, head_DV)[0] / 4)(x_BTD)
    np.testing.assert_allclose(quarter, whole / 4, rtol=1e-6)


@CHUNKS
def test_token_nll_against_torch(num_chunks):
    x_BTD, head_DV, targets_BT, weights_BT = inputs()
    _, _, nll, _, _ = torch_reference(x_BTD, head_DV, targets_BT, weights_BT, z_loss=0.0)
    actual = token_nll(x_BTD, head_DV, targets_BT=targets_BT, vocab_size=VOCAB, num_chunks=num_chunks)
    assert actual.shape == (B, T)
    np.testing.assert_allclose(actual, nll, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("head_dtype", [jnp.bfloat16, jnp.float32])
def test_bfloat16_compute(head_dtype):
    arrays = inputs(jnp.bfloat16, head_dtype)
    rounded = (arrays[0], arrays[1].astype(jnp.bfloat16), *arrays[2:])  # what enters the matmuls
    loss, _, _, dx, dhead = torch_reference(*rounded, z_loss=0.0)
    sums, dx_BTD, dhead_DV = loss_and_gradients(arrays, num_chunks=4)
    assert (dx_BTD.dtype, dhead_DV.dtype) == (jnp.bfloat16, head_dtype)
    np.testing.assert_allclose(sums.loss, loss, rtol=1e-5)  # logits and sums are float32
    np.testing.assert_allclose(dx_BTD.astype(jnp.float32), dx, atol=2e-2 * np.abs(dx).max())
    np.testing.assert_allclose(dhead_DV.astype(jnp.float32), dhead, atol=2e-2 * np.abs(dhead).max())


def test_large_logits_stay_finite():
    x_BTD, head_DV, targets_BT, weights_BT = inputs()
    sums, dx_BTD, dhead_DV = loss_and_gradients((1e3 * x_BTD, head_DV, targets_BT, weights_BT), num_chunks=2)
    assert all(np.all(np.isfinite(a)) for a in (sums.total, dx_BTD, dhead_DV))


def test_tied_head_gradient_reaches_the_embedding():
    x_BTD, head_DV, targets_BT, weights_BT = inputs()
    call = functools.partial(total, targets_BT=targets_BT, weights_BT=weights_BT, num_chunks=4)
    tied = jax.grad(lambda table_VD: call(x_BTD, table_VD.T)[0])(head_DV.T)
    untied = jax.grad(lambda head_DV: call(x_BTD, head_DV)[0])(head_DV)
    np.testing.assert_allclose(tied, untied.T, atol=1e-6)


def _gradient_program(num_chunks: int, *, T: int, V: int):
    def call(x, head, targets, weights):
        return chunked_cross_entropy(
            x, head, targets_BT=targets, weights_BT=weights, vocab_size=V, num_chunks=num_chunks
        ).total

    shapes = [(1, T, 8), (8, V), (1, T), (1, T)]
    dtypes = [jnp.float32, jnp.float32, jnp.int32, jnp.float32]
    abstract = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    return jax.jit(jax.grad(call, argnums=(0, 1))).lower(*abstract).compile()


def test_full_logits_never_exist():
    T, V = 512, 4096
    logits_bytes = 4 * T * V
    assert _gradient_program(1, T=T, V=V).memory_analysis().temp_size_in_bytes >= logits_bytes
    assert _gradient_program(16, T=T, V=V).memory_analysis().temp_size_in_bytes < logits_bytes / 4


def test_same_on_a_mesh_without_gathering_logits():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    rng = np.random.default_rng(0)
    x_BTD, head_DV = (
        rng.standard_normal((8, 12, 16)).astype(np.float32),
        rng.standard_normal((16, 48)).astype(np.float32),
    )
    targets_BT, weights_BT = rng.integers(0, VOCAB, (8, 12)).astype(np.int32), rng.random((8, 12)).astype(np.float32)
    call = functools.partial(total, z_loss=1e-2, num_chunks=4)
    gradient = jax.grad(
        lambda x, head, targets, weights: call(x, head, targets_BT=targets, weights_BT=weights)[0], argnums=(0, 1)
    )
    alone = jax.jit(gradient)(x_BTD, head_DV, targets_BT, weights_BT)

    P, N = jax.sharding.PartitionSpec, jax.sharding.NamedSharding
    rows, columns = N(mesh, P(("data", "fsdp"))), N(mesh, P("fsdp", "tensor"))
    with jax.set_mesh(mesh):
        program = (
            jax.jit(gradient, in_shardings=(rows, columns, rows, rows), out_shardings=(rows, columns))
            .lower(x_BTD, head_DV, targets_BT, weights_BT)
            .compile()
        )
        meshed = program(*jax.device_put((x_BTD, head_DV, targets_BT, weights_BT), (rows, columns, rows, rows)))
    for a, b in zip(meshed, alone, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    # No device holds the logits of a whole chunk, nor the whole vocabulary of its own rows.
    assert "f32[2,3,24]" in program.as_text()
    assert "f32[8,3,48]" not in program.as_text()
    assert "f32[2,3,48]" not in program.as_text()


# (8, 12): everything can be cut. (3, 11): neither rows nor positions. tensor 8: the last device holds padding only.
@pytest.mark.parametrize(
    ("sizes", "rows", "length"),
    [
        ((2, 2, 2), 8, 12),
        ((2, 2, 2), 8, 11),
        ((2, 2, 2), 3, 11),
        ((1, 2, 4), 3, 11),
        ((1, 1, 8), 8, 12),
        ((4, 2, 1), 8, 11),
    ],
)
def test_any_mesh_gives_what_one_device_gives(sizes, rows, length):
    data, fsdp, tensor = sizes
    mesh = make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor})
    rng = np.random.default_rng(0)
    x_BTD = rng.standard_normal((rows, length, 16)).astype(np.float32)
    head_DV = rng.standard_normal((16, 48)).astype(np.float32)
    targets_BT = rng.integers(0, VOCAB, (rows, length)).astype(np.int32)
    weights_BT = rng.random((rows, length)).astype(np.float32)

    @jax.jit
    def everything(x_BTD, head_DV, targets_BT, weights_BT):
        call = functools.partial(
            total, targets_BT=targets_BT, weights_BT=weights_BT, z_loss=1e-2, num_chunks=4 if length == 12 else 2
        )
        (_, sums), gradients = jax.value_and_grad(call, argnums=(0, 1), has_aux=True)(x_BTD, head_DV)
        nll_BT = token_nll(x_BTD, head_DV, targets_BT=targets_BT, vocab_size=VOCAB, num_chunks=2)
        return sums, gradients, nll_BT

    alone = everything(x_BTD, head_DV, targets_BT, weights_BT)
    with jax.set_mesh(mesh):
        meshed = everything(x_BTD, head_DV, targets_BT, weights_BT)
    for a, b in zip(jax.tree.leaves(meshed), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("statistics", [losses._one_pass, losses._three_passes])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_statistics_against_float64(statistics, scale):
    """Both ways, of which GPUs take the first and CPUs the second; some rows see nothing but padding."""
    rng = np.random.default_rng(0)
    logits = (scale * rng.standard_normal((2, 5, 300))).astype(np.float32)
    logits[:, :, 250:] = losses.MASKED
    logits[0, 0] = losses.MASKED
    targets = rng.integers(0, 250, (2, 5))
    largest, sums, target = jax.jit(statistics)(logits, targets[..., None] == np.arange(300))
    exact = logits.astype(np.float64)
    # Where there is padding only, the sum counts for nothing beside any real column: its largest is MASKED.
    np.testing.assert_array_equal(largest, logits.max(-1))
    real = exact.max(-1) > losses.MASKED
    expected = np.exp(exact - exact.max(-1, keepdims=True)).sum(-1)
    np.testing.assert_allclose(np.asarray(sums)[real], expected[real], rtol=1e-6)
    assert np.all(np.isfinite(sums))
    np.testing.assert_array_equal(target, np.take_along_axis(logits, targets[..., None], -1)[..., 0])
