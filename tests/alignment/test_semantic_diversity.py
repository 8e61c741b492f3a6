"""Meanings of rows: neighbours and pairs against all cosines one by one, clusters against planted ones."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_server import make_params, make_tokenizer

from allam_jax.alignment.semantic_diversity import Meanings, centred_directions, nearest_neighbours
from allam_jax.files import write_json_lines
from allam_jax.model.llama import init_params
from allam_jax.tasks import runner
from allam_jax.weights.directory import save_weights
from configs import base

# The same in other words or in another order: too different for shingles of five words.
PARAPHRASES = [
    (
        "In winter the road to the north is closed, because of the snow.",
        "Because of the snow, the road to the north is closed in winter.",
    ),
    ("Egypt: its capital is Cairo, a city on the Nile.", "Cairo, a city on the Nile, is the capital: Egypt."),
    ("في الشتاء يغلق الطريق إلى الشمال بسبب الثلج.", "بسبب الثلج يغلق الطريق إلى الشمال في الشتاء."),
]


def test_neighbours_are_those_of_all_cosines(monkeypatch):
    monkeypatch.setattr("allam_jax.alignment.semantic_diversity._BLOCK", 7)
    states_ND = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32) + 3.0
    states_ND[31] = states_ND[4]
    nearest_N, cosine_N = nearest_neighbours(centred_directions(states_ND))
    mean_D = states_ND.mean(0)
    for row in range(40):
        cosines = []
        for other in range(40):
            a, b = states_ND[row] - mean_D, states_ND[other] - mean_D
            cosines.append(-math.inf if other == row else float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)))
        assert nearest_N[row] == int(np.argmax(cosines))
        assert cosine_N[row] == pytest.approx(max(cosines), abs=1e-5)
    alike = Meanings(np.zeros(40, int), nearest_N, cosine_N).alike(least=0.999)
    assert [pair[:2] for pair in alike] == [(4, 31)]


def test_planted_clusters_are_found_and_counted():
    rng = np.random.default_rng(1)
    sizes = (30, 20, 10)
    centres = rng.standard_normal((3, 16)) * 5
    truth = np.repeat(np.arange(3), sizes)
    order = rng.permutation(60)
    states_ND = (centres[truth] + 0.3 * rng.standard_normal((60, 16)))[order].astype(np.float32)
    found = Meanings.of(states_ND, clusters=3, seed=0)
    np.testing.assert_array_equal(found.cluster_N, truth[order])  # the largest is number 0
    facts = found.summary(range(60), least=0.99)
    entropy = -sum(size / 60 * math.log(size / 60) for size in sizes)
    assert facts["effective_clusters"] == pytest.approx(math.exp(entropy))
    assert facts["largest_cluster"] == 0.5
    assert Meanings.of(np.ones((4, 3), np.float32), clusters=5, seed=0).cluster_N.tolist() == [0] * 4


def conversation(number, text):
    return {"messages": [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": text}]}


def save_bag_of_words(root):
    """A model whose layers add nothing, so that its hidden states are those of the tokens, in any order."""
    tokenizer = make_tokenizer()
    tokenizer.save(root / "tokenizer")
    config = dataclasses.replace(make_params(tokenizer)[1], dim=64)
    params = jax.jit(lambda: init_params(jax.random.key(0), config=config))()
    for room, name in (("attention", "output"), ("mlp", "down")):
        params["layers"][room][name] = jnp.zeros_like(params["layers"][room][name])
    metadata = {"tokenizer": tokenizer.fingerprint}
    save_weights(root / "model", params=params, config=config, tokenizer_dir=root / "tokenizer", metadata=metadata)


def test_paraphrases_are_listed_with_a_model_and_not_by_their_words(tmp_path):
    save_bag_of_words(tmp_path)
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghiklmnoprstuvw"))
    others = ["".join(rng.choice(letters, rng.integers(20, 60))) for _ in range(40)]
    texts = [text for pair in PARAPHRASES for text in pair] + others
    write_json_lines(tmp_path / "chats.jsonl", (conversation(1, text) for text in texts))
    config = base.get_config("sft_quality")
    config.chat_quality.sources.en = base.conversations(path=f"{tmp_path}/chats.jsonl")
    config.chat_quality.update(clusters=4, samples=2)
    assert "meaning" not in runner.run(config, workdir=tmp_path / "without")["en"]
    assert not (tmp_path / "without" / "alike.jsonl").exists()
    config.init.weights = f"{tmp_path}/model"
    found = runner.run(config, workdir=tmp_path / "with")["en"]
    assert "near-duplicate" not in found["faults"]
    alike = [json.loads(line) for line in (tmp_path / "with" / "alike.jsonl").read_text().splitlines()]
    pairs = {tuple(sorted(row["row"] for row in entry["rows"])) for entry in alike}
    assert pairs == {(0, 1), (2, 3), (4, 5)}
    assert found["meaning"]["rows"] == 46
    report = (tmp_path / "with" / "report.md").read_text()
    assert "## Meanings" in report
    assert "meanings.png" in report
    assert PARAPHRASES[0][0][:40] in report
