"""SFT against transformers, preference losses against TRL, adapters against PEFT, from the same weights, in float32."""

import copy
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from llama_pair import make_pair, our_logits, torch_logits

from allam_jax.alignment.packed_samples import PackedRows, items_of
from allam_jax.alignment.preference_loss import REFERENCE, Preference
from allam_jax.alignment.reference_cache import reference_values
from allam_jax.alignment.reply_masks import Made, Sample
from allam_jax.alignment.sample_cache import open_samples, write_samples
from allam_jax.alignment.settings import DpoSettings
from allam_jax.model.llama import LORA
from allam_jax.model.llama_config import ComputeOptions
from allam_jax.model.low_rank import merged, new_adapters
from allam_jax.model.settings import LoraSettings
from allam_jax.parallel.mesh import make_mesh
from allam_jax.training.objective import NextToken
from allam_jax.weights.huggingface import pieces_of
from allam_jax.weights.peft import export_adapter
from benchmarks.trl_stand_in import DpoStandIn, padded, values_of

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"), num_key_value_heads=2)


def samples(directory, *, together, count=6):
    """Samples of random ids and masks, of uneven lengths; of pairs the sides begin alike."""
    rng = np.random.default_rng(0)

    def made(record):
        found = []
        prompt = rng.integers(3, 250, rng.integers(2, 12))
        for _ in range(together):
            reply = rng.integers(3, 250, rng.integers(1, 15))
            turns = np.concatenate([np.zeros(len(prompt)), np.ones(len(reply))]).astype(np.uint8)
            found.append(Sample(np.concatenate([prompt, reply]).astype(np.int32), turns))
        return Made((record,), found, [])

    def make(records):
        return [made(record) for record in records]

    file = directory / "rows.jsonl"
    file.write_text("".join(json.dumps({"n": n}) + "\n" for n in range(count)))
    given = {"make": make, "identity": {}, "vocab_size": 256, "held_out_share": 0.0, "max_bad_share": 0.0}
    write_samples(directory / "samples", paths={"x": str(file)}, **given)
    return open_samples(directory / "samples")


def packed(found, *, together, **columns):
    rows = PackedRows(samples=found, items=items_of(found, together=together), seq_len=64, columns=columns)
    fitted = rows.fitted().rows(np.random.default_rng(0))
    assert len(fitted) < len(rows.items)
    return {name: jnp.asarray(v) for name, v in rows.batch([fitted[row] for row in range(len(fitted))]).items()}


def assert_gradients(gradient, model, config):
    """Ours against those of torch, relative to the largest number of each tensor."""
    theirs = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    for path, pieces in pieces_of(config).items():
        ours = np.asarray(gradient[path[0]][path[1]] if len(path) == 2 else gradient[path[0]][path[1]][path[2]])
        for piece in pieces:
            own = ours if piece.layer is None else ours[piece.layer]
            own = np.transpose(own, np.argsort(piece.mapping.to_ours)).reshape(-1, *piece.stored_shape[1:])
            expected = theirs[piece.name]
            own = own[: expected.shape[0]]
            np.testing.assert_allclose(own, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=piece.name)


def mean_and_gradient(objective, params, batch):
    def mean(params):
        total, sums = objective.summed_loss(params, batch, jax.random.key(0))
        count = objective.normaliser(batch)
        return total / count, {name: value / count for name, value in sums.items()}

    (loss, metrics), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(params)
    return float(loss), metrics, gradient


def test_sft_loss_and_gradient_are_those_of_transformers(pair, tmp_path):
    found = samples(tmp_path, together=1)
    objective = NextToken(model=pair.config, options=ComputeOptions(), num_chunks=2)
    loss, _, gradient = mean_and_gradient(objective, pair.params, packed(found, together=1))
    ids, labels, there = padded(found, range(len(found)))
    pair.torch_model.zero_grad()
    expected = pair.torch_model(input_ids=ids, attention_mask=there, labels=labels).loss
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    assert_gradients(gradient, pair.torch_model, pair.config)


def trl_simpo(settings, model, ids, labels, there):
    """The same by TRL's CPO trainer."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    values = values_of(model, ids, labels, there)
    means = values.log_probs.sum(1) / values.is_top1.sum(1)
    own = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"),
        beta=settings.beta,
        label_smoothing=settings.label_smoothing,
        loss_type="simpo",
        simpo_gamma=settings.simpo_gamma,
        alpha=0.0,
    )
    losses, chosen, rejected = CPOTrainer.cpo_loss(own, *means.chunk(2))
    return losses.mean(), {"rewards/chosen": chosen.mean().item(), "rewards/rejected": rejected.mean().item()}


LOSSES = [
    DpoSettings(beta=0.3),
    DpoSettings(loss="robust", beta=0.3, label_smoothing=0.2),
    DpoSettings(loss="ipo", beta=0.5),
    DpoSettings(loss="sigmoid_norm", beta=4.0),
    DpoSettings(loss="simpo", beta=2.0, simpo_gamma=0.7, label_smoothing=0.1),
]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(each, marks=[] if each.loss in ("sigmoid", "ipo") else pytest.mark.long, id=each.loss)
        for each in LOSSES
    ],
)
def test_preference_losses_rewards_and_gradients_are_those_of_trl(pair, tmp_path, settings):
    found = samples(tmp_path, together=2)
    reference = copy.deepcopy(pair.torch_model)
    for parameter in reference.parameters():
        parameter.data *= 0.95
    batch = padded(found, [*range(0, len(found), 2), *range(1, len(found), 2)])
    pair.torch_model.zero_grad()
    if settings.loss == "simpo":
        expected, logged = trl_simpo(settings, pair.torch_model, *batch)
    else:
        ids, labels, there = batch
        stand_in = DpoStandIn(settings, reference=reference, ids=ids, labels=labels, there=there)
        expected = stand_in.loss(pair.torch_model)
        logged = stand_in.logged()
    expected.backward()

    scaled = jax.tree.map(lambda p: p * np.float32(0.95), pair.params)
    objective = Preference(model=pair.config, options=ComputeOptions(), settings=settings, most_pairs=6, num_chunks=2)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:1])
    rows = PackedRows(samples=found, items=items_of(found, together=2), seq_len=64)
    values = reference_values(scaled, objective=objective, rows=rows, mesh=mesh, batch_size=2)
    ends = np.cumsum(found.lengths - 1)
    column = {REFERENCE: lambda number: values[ends[number] - found.lengths[number] + 1 : ends[number]]}
    columns = column if objective.has_reference else {}
    loss, metrics, gradient = mean_and_gradient(objective, pair.params, packed(found, together=2, **columns))
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    names = {"rewards/chosen": "reward_chosen", "rewards/rejected": "reward_rejected", "rewards/margins": "margin"}
    names |= {"rewards/accuracies": "accuracy", "logps/chosen": "logp_chosen", "logps/rejected": "logp_rejected"}
    scale = max(abs(float(metrics["logp_chosen"])), 1.0)
    for theirs, ours in names.items():
        if theirs in logged:
            np.testing.assert_allclose(float(metrics[ours]), logged[theirs], rtol=1e-5, atol=1e-6 * scale, err_msg=ours)
    assert len(logged) > 1
    assert_gradients(gradient, pair.torch_model, pair.config)


@pytest.mark.parametrize("tables", [pytest.param(False, marks=pytest.mark.long), True])
def test_adapters_load_in_peft_and_give_the_same_logits(tmp_path, tables):
    import peft
    import torch
    import transformers

    own = make_pair(tmp_path / "base", num_key_value_heads=2)
    settings = LoraSettings(rank=4, alpha=6.0)
    adapters = jax.tree_util.tree_map_with_path(
        lambda path, x: x if path[-1].key == "factor" else 0.1 * jax.random.normal(jax.random.key(x.size), x.shape),
        new_adapters(jax.random.key(0), config=own.config, settings=settings),
    )
    params = own.params | {LORA: adapters}
    if tables:
        rows = (np.arange(own.config.padded_vocab_size) < own.config.vocab_size)[:, None]
        params["embedding"] = {"table": own.params["embedding"]["table"] * 1.5}
        params["head"] = {"kernel": (own.params["head"]["kernel"] + 0.02) * rows.T}
    kept = params if tables else {LORA: adapters}
    export_adapter(tmp_path / "adapter", params=kept, config=own.config, settings=settings, base=str(tmp_path / "base"))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    tokens = np.random.default_rng(0).integers(0, own.config.vocab_size, (2, 24))
    expected = torch_logits(model, tokens)
    for found in (params, merged(params)):
        ours = np.asarray(our_logits(found, tokens, config=own.config))[..., : own.config.vocab_size]
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    assert np.abs(own.logits(tokens) - expected).max() > 0.1
