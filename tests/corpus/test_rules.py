import numpy as np
import pytest

from allam_jax.corpus.rules import describe, drops, failed
from allam_jax.corpus.settings import RuleSettings
from allam_jax.corpus.tags import check_names
from allam_jax.settings import read
from configs import corpus_rules


@pytest.mark.parametrize(("drop", "dropped"), [("<", [1]), ("<=", [1, 2]), (">", [3]), (">=", [2, 3]), ("==", [2])])
def test_comparisons(drop, dropped):
    rule = RuleSettings(tag="word_count", drop=drop, threshold=2.0)
    assert [value for value in (1, 2, 3) if drops(rule, value, key="x")] == dropped
    assert not drops(rule, None, key="x")


def test_all_rules_against_a_document_are_named():
    rules = {
        "a": RuleSettings(tag="ccnet_length", drop=">", threshold=10),
        "b": RuleSettings(tag="word_count", drop="<", threshold=5),
        "c": RuleSettings(tag="ccnet_length", drop="<", threshold=10),
    }
    assert failed(rules, {"word_count": 1.0, "ccnet_length": 20.0}, key="x") == ["a", "b"]


@pytest.mark.parametrize("score", [0.1, 0.5, 0.9, 0.99])
def test_pareto_keeps_as_often_as_numpys(score):
    """GPT-3 keeps a document where np.random.pareto(9) > 1 - score."""
    rule = RuleSettings(tag="rps_doc_ml_palm_score", drop="pareto", threshold=9.0)
    count = 20_000
    kept = count - sum(drops(rule, score, key=f"document {number}") for number in range(count))
    numpys = int((np.random.default_rng(0).pareto(9.0, count) > 1 - score).sum())
    share = (kept + numpys) / (2 * count)
    assert abs(kept - numpys) < 4 * (2 * count * share * (1 - share)) ** 0.5 + 5
    assert drops(rule, score, key="a") == drops(rule, score, key="a")


def test_ready_sets():
    for name in ("english", "arabic", "fineweb2_arabic"):
        rules = [read(RuleSettings, rule) for rule in getattr(corpus_rules, name)().values()]
        assert len(rules) > 5
        check_names([rule.tag for rule in rules], key=name)
    assert describe(read(RuleSettings, corpus_rules.english().short)) == "drop ccnet_length < 150"
    pareto = RuleSettings(tag="word_count", drop="pareto", threshold=9)
    assert describe(pareto) == "sample by word_count, Pareto(9)"
