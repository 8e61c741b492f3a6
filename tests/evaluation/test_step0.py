"""The step-0 report against a Llama in numpy and sums written out token by token."""

import dataclasses

import jax
import numpy as np
import numpy_llama
import pytest
from small_models import TINY, init_jit

from allam_jax.data.batch import DTYPES, padding
from allam_jax.data.evaluation_rows import EvaluationRows
from allam_jax.data.packing import write_segment
from allam_jax.errors import UserError
from allam_jax.evaluation.step0 import step0_report
from allam_jax.model.expansion import expand
from allam_jax.model.llama_config import ComputeOptions
from allam_jax.model.settings import ExpandSettings
from allam_jax.parallel.mesh import make_mesh
from allam_jax.tokenizer.provenance import ExpansionPlan
from allam_jax.weights.directory import shardings_on

OLD, NEW, SEQ_LEN = 29, 45, 24
CONFIG = dataclasses.replace(TINY, vocab_size=OLD)
rng = np.random.default_rng(0)
PLACES = rng.permutation(NEW)
PLAN = ExpansionPlan(
    OLD,
    NEW,
    np.stack([PLACES[:OLD], np.arange(OLD)], axis=1).astype(np.int64),
    {int(i): rng.integers(0, OLD, 3).tolist() for i in PLACES[OLD:]},
    {},
)
BASE_DOCUMENTS = [rng.integers(0, OLD, length) for length in (24, 9, 3, 17)]
MERGED_DOCUMENTS = [rng.integers(0, NEW, length) for length in (19, 12, 7)]


def rows_of(documents: list[np.ndarray]) -> EvaluationRows:
    """One document in each row but the last, which holds two."""
    rows = [padding(SEQ_LEN) for _ in documents[1:]]
    for row, document in zip(rows, documents, strict=False):
        write_segment(row, document, start=0, segment=1)
    write_segment(rows[-1], documents[-1], start=len(documents[-2]) - 1, segment=2)
    tokens = sum(len(document) - 1 for document in documents)
    return EvaluationRows(
        rows={key: np.stack([row[key] for row in rows]) for key in DTYPES},
        documents=len(documents),
        bytes=100,
        tokens=tokens,
    )


def log_probabilities(params, tokens, *, config) -> np.ndarray:
    """[T - 1, vocabulary]: of what follows each token but the last."""
    logits = numpy_llama.logits(params, tokens[:-1], config=config)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def expected_report(base, expanded, config) -> dict[str, float]:
    kl_old, kl, base_nats, expanded_nats, mass = [], [], 0.0, 0.0, []
    for tokens in BASE_DOCUMENTS:
        p = log_probabilities(base, tokens, config=CONFIG)
        base_nats -= p[np.arange(len(p)), tokens[1:]].sum()
        q = log_probabilities(expanded, PLACES[tokens], config=config)[:, PLACES[:OLD]]
        kl.extend((np.exp(p) * (p - q)).sum(axis=-1))
        q = q - np.log(np.exp(q).sum(axis=-1, keepdims=True))
        kl_old.extend((np.exp(p) * (p - q)).sum(axis=-1))
    for tokens in MERGED_DOCUMENTS:
        q = log_probabilities(expanded, tokens, config=config)
        expanded_nats -= q[np.arange(len(q)), tokens[1:]].sum()
        mass.extend(np.exp(q[:, PLACES[OLD:]]).sum(axis=-1))
    return {
        "bits_per_byte_base": base_nats / np.log(2) / 100,
        "bits_per_byte_expanded": expanded_nats / np.log(2) / 100,
        "kl_old_tokens": np.mean(kl_old),
        "kl": np.mean(kl),
        "new_token_probability": np.mean(mass),
    }


def report(base, expanded, config, *, mesh_sizes=(1, 1, 1), batch_size=2) -> dict[str, float]:
    data, fsdp, tensor = mesh_sizes
    mesh = make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor}, devices=jax.devices()[: data * fsdp * tensor])
    base = jax.device_put(base, shardings_on(CONFIG, mesh=mesh))
    expanded = jax.device_put(expanded, shardings_on(config, mesh=mesh))
    return step0_report(
        base=(base, CONFIG),
        expanded=(expanded, config),
        plan=PLAN,
        base_rows={"en": rows_of(BASE_DOCUMENTS)},
        expanded_rows={"en": rows_of(MERGED_DOCUMENTS)},
        options=ComputeOptions(),
        mesh=mesh,
        batch_size=batch_size,
        num_chunks=5,  # does not divide the row
    )["en"]


@pytest.fixture(scope="module")
def networks():
    base = init_jit(jax.random.key(0), config=CONFIG)
    expanded, config = expand(base, config=CONFIG, plan=PLAN, settings=ExpandSettings(), seed=0)
    return base, expanded, config


def test_after_expansion(networks):
    base, expanded, config = networks
    found, expected = report(*networks), expected_report(base, expanded, config)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
    # The old tokens' rows are copies: only the new tokens' share moves the distribution.
    assert found["kl_old_tokens"] == pytest.approx(0, abs=1e-6)
    assert found["kl"] > 0.1


@pytest.fixture(scope="module")
def others(networks):
    """Networks that differ everywhere, and their report on one device."""
    base, _, config = networks
    other = init_jit(jax.random.key(1), config=config)
    return base, other, config, report(base, other, config)


def test_networks_that_differ_everywhere(others):
    *networks, found = others
    expected = expected_report(*networks)
    assert expected["kl_old_tokens"] > 0.1
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-4), key


def test_on_a_mesh(others):
    *networks, one = others
    many = report(*networks, mesh_sizes=(2, 2, 2), batch_size=4)
    for key, value in one.items():
        assert many[key] == pytest.approx(value, rel=1e-5), key


def test_a_dropped_token_that_the_text_needs(networks):
    base, expanded, config = networks
    kept = PLAN.kept[PLAN.kept[:, 1] != BASE_DOCUMENTS[0][0]]
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:1])
    with pytest.raises(UserError, match=f"base token {BASE_DOCUMENTS[0][0]} is not in the new vocabulary"):
        step0_report(
            base=(base, CONFIG),
            expanded=(expanded, config),
            plan=dataclasses.replace(PLAN, kept=kept),
            base_rows={"en": rows_of(BASE_DOCUMENTS)},
            expanded_rows={"en": rows_of(MERGED_DOCUMENTS)},
            options=ComputeOptions(),
            mesh=mesh,
            batch_size=2,
        )
