"""The seed of a worker: the pool by strata, perplexities against numpy, and pairs that task `sft` can read."""

import collections
import json

import numpy as np
import numpy_llama
import pytest
from small_server import CONTEXT, make_params, make_tokenizer, save_model

from allam_jax.alignment.conversations import conversation_of
from allam_jax.corpus.document import Document
from allam_jax.corpus.shards import write_dataset
from allam_jax.data.documents import DocumentSource
from allam_jax.errors import UserError
from allam_jax.rewriting.seed_pairs import chosen, read_seed_pairs
from allam_jax.rewriting.seed_pool import quotas
from allam_jax.tasks import runner
from configs import base
from configs import rewrite as rewrite_config
from configs import seed as seed_config

pytestmark = pytest.mark.usefixtures("one_device")
SIZES = {("web", "en"): 90, ("web", "ar"): 30, ("books", "en"): 6}


def documents(sizes=SIZES):
    for (domain, language), count in sizes.items():
        for n in range(count):
            words = "the cat sat on the mat" if language == "en" else "قال رسول الله صلى الله عليه وسلم"
            yield Document(text=f"{words} {domain} {n}.", id=f"{domain}{n}", source=domain, language=language)


def written(path, found):
    write_dataset(found, directory=path, name="web", validation_share=0)
    return str(path)


def drawn(tmp_path, found, name, **given):
    config = seed_config.get_config()
    config.seed_pool.inputs.web = written(tmp_path / f"{name}_input", found)
    config.seed_pool.update(least_bytes=1, **given)
    result = runner.run(config, workdir=tmp_path / name)
    source = DocumentSource(tmp_path / name / "seed", split="train")
    return result, [source.fields(index) for index in range(len(source))]


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_quotas_are_those_of_one_scale_for_all_strata(balance):
    """Against a bisection for the scale at which min(size, scale * size ** balance) adds up to the total."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        sizes = {(str(n), "en"): int(size) for n, size in enumerate(rng.geometric(0.01, rng.integers(1, 8)))}
        total = int(rng.integers(1, 2 * sum(sizes.values())))
        found = quotas(sizes, total=total, balance=balance)
        assert sum(found.values()) == min(total, sum(sizes.values()))
        low, high = 0.0, 1e9
        for _ in range(200):
            scale = (low + high) / 2
            enough = sum(min(size, scale * size**balance) for size in sizes.values()) >= total
            low, high = (low, scale) if enough else (scale, high)
        for stratum, size in sizes.items():
            assert found[stratum] <= size
            assert abs(found[stratum] - min(size, high * size**balance)) < 1 + 1e-6


def test_a_pool_has_its_strata_and_depends_on_texts_alone(tmp_path):
    result, pool = drawn(tmp_path, documents(), "pool", documents=40, balance=0.0)
    assert result == {"available": 126, "drawn": 40, "strata": 3}
    count = collections.Counter((fields["source"], fields["language"]) for fields in pool)
    assert count == {("web", "en"): 17, ("web", "ar"): 17, ("books", "en"): 6}
    half = collections.Counter(fields["language"] for fields in pool[:20])
    assert abs(half["ar"] - 8.5) <= 1  # every beginning of the pool is balanced
    known = {(document.id, document.text) for document in documents()}
    assert {(fields["id"], fields["text"]) for fields in pool} <= known

    # Another order, every text twice, and documents of other sizes: the same pool.
    more = [*documents()][::-1] * 2 + [Document(text="x" * 400, id="x", source="web", language="en")]
    again, same = drawn(tmp_path, more, "again", documents=40, balance=0.0, most_bytes=300)
    assert again == result
    assert {fields["text"] for fields in same} == {fields["text"] for fields in pool}
    _, proportional = drawn(tmp_path, documents(), "proportional", documents=42, balance=1.0)
    count = collections.Counter((fields["source"], fields["language"]) for fields in proportional)
    assert count == {stratum: size // 3 for stratum, size in SIZES.items()}
    for given, message in (
        ({"domain": "topic"}, "its documents have no topic"),
        ({"least_bytes": 400}, "no document has between"),
        ({"least_bytes": 400, "most_bytes": 300}, "no document would be drawn"),
    ):
        config = seed_config.get_config()
        config.seed_pool.inputs.web = str(tmp_path / "pool_input")
        config.seed_pool.update(given)
        with pytest.raises(UserError, match=message):
            runner.run(config, workdir=tmp_path / "bad")


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def truth(text):
    """The perplexity of a text, window after window, from the equations."""
    tokenizer = make_tokenizer()
    params, config = make_params(tokenizer)
    ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    return np.exp(numpy_llama.nats(params, ids, config=config, window=CONTEXT) / (len(ids) - 1))


def test_pairs_are_chosen_by_the_perplexity_of_their_rewrites(tmp_path):
    save_model(tmp_path)
    texts = ["the cat sat", "قال رسول الله", "x = f(1)", "the dog ran and " * 60, "zzz qqq"]
    rows = [
        {"original": f"old {n}", "rewrite": text, "language": "en", "source": "web", "id": f"d{n}"}
        for n, text in enumerate(texts)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = [truth(text) for text in texts]
    config = seed_config.get_config("pairs")
    config.init.weights = str(tmp_path / "model")
    config.seed_pairs.update(input=str(tmp_path / "rows.jsonl"), choice="low_perplexity", pairs=2)
    result = runner.run(config, workdir=tmp_path / "run")
    assert (result["pairs"], result["chosen"]) == (5, 2)
    assert result["perplexity"]["all"][::4] == pytest.approx([min(values), max(values)], rel=1e-4)
    expected = sorted(np.argsort(values)[:2])
    found = rows_of(tmp_path / "run" / "training.jsonl")
    assert [row["messages"][-1]["content"] for row in found] == [texts[n] for n in expected]
    for number, row in zip(expected, found, strict=True):
        assert row["provenance"]["perplexity"] == pytest.approx(values[number], rel=1e-4)
        assert (row["provenance"]["id"], row["provenance"]["source"]) == (f"d{number}", "web")
    pairs = read_seed_pairs(str(tmp_path / "rows.jsonl"))
    assert chosen(pairs, values, choice="high_perplexity", most=2, seed=0) == sorted(np.argsort(values)[-2:])
    drawn = [tuple(chosen(pairs, [], choice="random", most=2, seed=seed)) for seed in range(40)]
    assert drawn[0] == tuple(chosen(pairs, [], choice="random", most=2, seed=0))
    assert len(set(drawn)) > 5  # of 10


def test_a_pool_that_is_rewritten_becomes_pairs_to_train_on(tmp_path):
    """Task `rewrite` by rules in an expert's place; what passes no check is no pair until people say so."""
    dirty = [
        Document(text=f"{d.text}\n\nBuy now at www.shop.example, call 0551234567!\n\nAn end {d.id}.", **vars_of(d))
        for d in documents({("web", "en"): 4})
    ]
    drawn(tmp_path, dirty, "pool", documents=4)
    config = rewrite_config.get_config()
    config.rewrite.update(input=str(tmp_path / "pool" / "seed"), worker="rules", instruction="", piece_tokens=30)
    runner.run(config, workdir=tmp_path / "expert")
    config = base.get_config("seed_pairs")
    given = {"input": str(tmp_path / "expert" / "aligned.jsonl.gz")}
    config.seed_pairs.update(instruction="configs/instructions/rewrite.toml", **given)
    result = runner.run(config, workdir=tmp_path / "pairs")
    training = rows_of(tmp_path / "pairs" / "training.jsonl")
    assert result["chosen"] == len(training) > 0
    for row in training:
        asked, reply = conversation_of(row)
        assert asked["content"].startswith("Rewrite the text below")
        assert reply["content"] in asked["content"]
        assert row["provenance"]["passed"]
        assert {"id", "source", "language", "model", "instruction", "piece", "asked"} <= row["provenance"].keys()
    config.seed_pairs.pairs = 2
    assert runner.run(config, workdir=tmp_path / "two")["chosen"] == 2
    config.seed_pairs.input = str(tmp_path / "two" / "training.jsonl")
    with pytest.raises(UserError, match="has rows without 'original'"):
        runner.run(config, workdir=tmp_path / "none")


def vars_of(document):
    return {"id": document.id, "source": document.source, "language": document.language}
