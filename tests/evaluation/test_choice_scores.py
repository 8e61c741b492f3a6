"""Scores of choices against scipy, scikit-learn and counts by hand."""

import json

import numpy as np
import pyarrow.parquet
import pytest
from scipy import stats

from allam_jax.errors import UserError
from allam_jax.evaluation.choice_scores import Answered, flips, macro_f1, mcnemar, summary, wilson
from allam_jax.evaluation.items import read_items
from allam_jax.evaluation.settings import SuiteSettings

CHANCE = np.random.default_rng(0)


@pytest.mark.parametrize(("hits", "count"), [(0, 5), (3, 7), (50, 100), (5227, 8711), (12, 12)])
def test_intervals_are_those_of_scipy(hits, count):
    expected = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert wilson(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("first", "second"), [(5, 1), (0, 0), (3, 3), (20, 8)])
def test_the_paired_test_is_that_of_scipy(first, second):
    a = [True] * first + [False] * second + [True] * 4
    b = [False] * first + [True] * second + [True] * 4
    expected = stats.binomtest(min(first, second), first + second).pvalue if first + second else 1.0
    assert mcnemar(a, b) == pytest.approx(expected)


def test_macro_f1():
    from sklearn.metrics import f1_score

    right, chosen = CHANCE.integers(0, 4, 60).tolist(), CHANCE.integers(0, 4, 60).tolist()
    assert macro_f1(right, chosen) == pytest.approx(f1_score(right, chosen, average="macro"))
    assert macro_f1([0, 0, 1], [0, 0, 0]) == pytest.approx((0.8 + 0) / 2)


def test_equal_choices_are_asked_where_letters_tell_them_apart(tmp_path):
    path = tmp_path / "items.jsonl"
    rows = [
        {"id": answer, "question": "?", "A": "x", "B": "x", "C": "y", "answer": answer} for answer in ("B", "y", "x")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_items(str(path), SuiteSettings(), key="path")
    assert [(item.id, item.answer) for item in found.items] == [("B", 1), ("y", 2)]
    assert found.problems == {"an answer in field 'answer' that is none of the choices": ("x",)}
    with pytest.raises(UserError, match="3 with two equal choices"):
        read_items(str(path), SuiteSettings(letters=()), key="path")


LABELLED = [  # choices, answer, number of the right one
    ({"text": ["w", "x", "y", "z"], "label": ["A", "B", "C", "D"]}, "C", 2),
    ({"text": ["w", "x", "y"], "label": ["1", "2", "3"]}, "1", 0),
    ({"text": ["w", "x"], "label": ["1", "2"]}, 2, 1),
    ({"text": ["2", "3", "1"], "label": ["1", "2", "3"]}, "1", 0),  # a label, not the text
    ([{"text": "w", "label": "ب"}, {"text": "x", "label": "أ"}], "أ", 1),
    ({"A": "w", "B": "x", "C": "y"}, "B", 1),
    ({"text": ["w", "x"], "label": ["A", "B"]}, "x", 1),
]
MISLABELLED = [
    ({"text": ["w", "x", "y"], "label": ["A", "B"]}, "A", "choices whose labels do not fit their texts"),
    ({"text": ["w", "x"], "label": ["A", "A"]}, "A", "choices whose labels do not fit their texts"),
    ({"text": ["w"], "label": ["A"]}, "A", "a missing choice"),
    ({"text": ["w", "", "y"], "label": ["A", "B", "C"]}, "A", "a missing choice"),
    ({"label": ["A", "B"]}, "A", "a missing choice"),
    ({"text": "wx", "label": "AB"}, "A", "a missing choice"),
    ([{"text": "w", "label": "A"}, "x"], "A", "a missing choice"),
    ({"text": ["w", "x"], "label": ["A", "B"]}, "E", "an answer in field 'answerKey' that is none of the choices"),
]


def test_choices_with_labels_of_their_own(tmp_path):
    """As in ARC, whose files mix labels A to D with 1 to 4; also as a list of objects, or one field a label."""
    suite = SuiteSettings(choices="choices", answer="answerKey")
    rows = [(choices, answer) for choices, answer, _ in LABELLED + MISLABELLED]
    rows = [{"id": str(n), "question": "?", "choices": row[0], "answerKey": row[1]} for n, row in enumerate(rows)]
    (tmp_path / "arc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_items(str(tmp_path / "arc.jsonl"), suite, key="path")
    assert [item.answer for item in found.items] == [right for _, _, right in LABELLED]
    assert found.items[0].choices == ("w", "x", "y", "z")
    reasons = {}
    for number, (_, _, reason) in enumerate(MISLABELLED, start=len(LABELLED)):
        reasons.setdefault(reason, []).append(str(number))
    assert found.problems == {reason: tuple(ids) for reason, ids in reasons.items()}
    columns = [{**row, "answerKey": str(row["answerKey"])} for row in (rows[0], rows[1], rows[3])]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(columns), tmp_path / "arc.parquet")
    again = read_items(str(tmp_path / "arc.parquet"), suite, key="path")
    assert again.items == (found.items[0], found.items[1], found.items[3])
    letters = [{**rows[5], "choices": {"A": "w", "B": "x", "C": letter}} for letter in (None, "y")]
    letters[1]["id"] = "other"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(letters), tmp_path / "letters.parquet")
    assert [len(item.choices) for item in read_items(str(tmp_path / "letters.parquet"), suite, key="path").items] == [
        2,
        3,
    ]


def item(name, right, chosen, texts=("x", "y"), **given):
    return Answered(name, right, chosen, texts, by_characters=1.0, by_bytes=0.0, **given)


def test_a_summary_and_flips():
    items = [item("a", 0, 0, fixed=True), item("b", 0, 1, fixed=True), item("c", 1, 0, fixed=True)]
    found = summary(items)
    assert (found["accuracy"], found["chance"], found["majority"]) == pytest.approx((1 / 3, 0.5, 2 / 3))
    assert (found["by_characters"], found["by_bytes"]) == (1, 0)
    assert summary([item("a", 0, 0)])["majority"] is None
    turned = [item("a", 1, 1, ("y", "x")), item("b", 1, 1, ("y", "x")), item("z", 0, 0)]
    assert flips(items, turned)["flipped"] == 0.5  # a: x both times; b: y, then x
