import numpy as np
import pytest

from allam_jax.corpus.rules import Rule, failed, read_rules
from allam_jax.errors import UserError
from allam_jax.settings import as_dict
from configs import corpus_rules


@pytest.mark.parametrize(("drop", "dropped"), [("<", [1]), ("<=", [1, 2]), (">", [3]), (">=", [2, 3]), ("==", [2])])
def test_comparisons(drop, dropped):
    rule = Rule(name="r", tag="word_count", drop=drop, threshold=2.0)
    assert [value for value in (1, 2, 3) if rule.drops(value, key="x")] == dropped
    assert not rule.drops(None, key="x")


def test_all_rules_against_a_document_are_named():
    rules = read_rules(
        {
            "b": {"tag": "word_count", "drop": "<", "threshold": 5},
            "a": {"tag": "ccnet_length", "drop": ">", "threshold": 10},
            "c": {"tag": "ccnet_length", "drop": "<", "threshold": 10},
        },
        key="corpus.rules.mine",
    )
    assert [rule.name for rule in failed(rules, {"word_count": 1.0, "ccnet_length": 20.0}, key="x")] == ["a", "b"]


@pytest.mark.parametrize("score", [0.1, 0.5, 0.9, 0.99])
def test_pareto_keeps_as_often_as_numpys(score):
    """GPT-3 keeps a document where np.random.pareto(9) > 1 - score."""
    rule = Rule(name="quality", tag="rps_doc_ml_palm_score", drop="pareto", threshold=9.0)
    count = 20_000
    kept = count - sum(rule.drops(score, key=f"document {number}") for number in range(count))
    numpys = int((np.random.default_rng(0).pareto(9.0, count) > 1 - score).sum())
    share = (kept + numpys) / (2 * count)
    assert abs(kept - numpys) < 4 * (2 * count * share * (1 - share)) ** 0.5 + 5
    assert rule.drops(score, key="a") == rule.drops(score, key="a")


def test_ready_sets():
    for name in ("english", "arabic", "fineweb2_arabic"):
        rules = read_rules(as_dict(getattr(corpus_rules, name)()), key=name)
        assert len(rules) > 5
    english = {rule.name: str(rule) for rule in read_rules(as_dict(corpus_rules.english()), key="")}
    assert english["short"] == "drop ccnet_length < 150"
    assert str(Rule(name="q", tag="word_count", drop="pareto", threshold=9)) == "sample by word_count, Pareto(9)"


def test_errors():
    with pytest.raises(UserError, match=r"config.corpus.rules.a.x.tag: no tag 'nope'; known: "):
        read_rules({"x": {"tag": "nope", "drop": "<", "threshold": 1}}, key="corpus.rules.a")
    with pytest.raises(UserError, match="config.a.x.drop = '!': expected one of <, <=, >, >=, ==, pareto"):
        read_rules({"x": {"tag": "word_count", "drop": "!", "threshold": 1}}, key="a")
