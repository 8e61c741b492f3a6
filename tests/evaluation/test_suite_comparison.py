"""Several models on the same items, against scipy, brute force and counts by hand; items in training texts."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from allam_jax.corpus.ngram_index import NgramIndex
from allam_jax.errors import UserError
from allam_jax.evaluation.choice_scores import Answered, paired_bootstrap, wilson
from allam_jax.evaluation.contamination import overlap, together, touched
from allam_jax.evaluation.suite_comparison import differences, holm, read_answers, unlike, without_touched
from allam_jax.tasks import runner
from configs import base

CHANCE = np.random.default_rng(0)


def test_intervals_of_differences_are_those_of_scipy():
    first, second = CHANCE.random(400) < 0.5, CHANCE.random(400) < 0.6
    difference, low, high = paired_bootstrap(first, second, samples=20_000, seed=0)
    drawn = stats.bootstrap(
        (second.astype(float) - first,), np.mean, n_resamples=20_000, method="percentile", random_state=1
    )
    assert difference == pytest.approx(second.mean() - first.mean())
    assert (low, high) == pytest.approx(drawn.confidence_interval, abs=4e-3)


@pytest.mark.parametrize("kind", ["wilson", "paired"])
def test_intervals_cover(kind):
    """The truth lies within 95 % of the intervals, ± 2 %, over simulated answers of two models."""
    runs, count, hits = 2000, 400, 0
    for run in range(runs):
        level = CHANCE.random(count)  # how hard an item is for both models
        first, second = (CHANCE.random(count) < 0.5 * level + 0.5 * strength for strength in (0.3, 0.5))
        if kind == "wilson":
            low, high = wilson(int(first.sum()), count)
            hits += low <= 0.5 * 0.5 + 0.5 * 0.3 <= high
        else:
            _, low, high = paired_bootstrap(first, second, samples=400, seed=run)
            hits += low <= 0.5 * (0.5 - 0.3) <= high
    assert hits / runs == pytest.approx(0.95, abs=0.02)


def test_several_comparisons_are_adjusted():
    # Holm 1979, by hand: sorted 0.01, 0.02, 0.03, 0.6 times 4, 3, 2, 1, never less than the one before.
    assert holm([0.03, 0.6, 0.01, 0.02]) == pytest.approx([0.06, 0.6, 0.04, 0.06])
    assert holm([]) == []


QUESTIONS = [
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen",
    "the river Nile flows through eleven countries",
    "too short",
    "nothing of this sentence was ever written anywhere else at all",
]


def test_items_in_texts():
    index = NgramIndex.build(QUESTIONS, n=13)
    documents = [f"before {QUESTIONS[1].upper()}, and after"] * 300 + ["one two three", QUESTIONS[0].rsplit(" ", 1)[0]]
    found = overlap(index, iter(documents))
    assert found.shares.tolist() == [pytest.approx(2 / 3), 1, 0, 0]  # 2 of the 3 n-grams of 13 of 15 words
    assert found.searchable.tolist() == [True, True, False, True]
    assert (found.documents, found.documents_with) == (302, 301)
    other = overlap(index, [QUESTIONS[3]])
    shares = together({"a": found, "b": other})
    assert touched("abcd", shares, share=0.7) == {"b": 1, "d": 1}


def _write_answers(directory, name, chosen):
    (directory / name).mkdir()
    lines = [
        {"suite": "facts", "id": f"q{number}", "right": 0, "chosen": int(choice), "texts": ["yes", "no"]}
        | {"by_characters": None, "by_bytes": None, "category": "ab"[number % 2], "question": QUESTIONS[number % 4]}
        for number, choice in enumerate(chosen)
    ]
    (directory / name / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(directory / name)


def test_a_page_of_two_models(tmp_path):
    config = base.get_config("suite_report")
    config.suite_report.models["first"] = _write_answers(tmp_path, "first", [1] * 30 + [0] * 10)
    config.suite_report.models["second"] = _write_answers(tmp_path, "second", [0] * 25 + [1] * 5 + [0] * 10)
    (tmp_path / "found").mkdir()
    suites = {"facts": {"items": 40, "touched": {f"q{number}": 1.0 for number in range(30, 40)}}}
    (tmp_path / "found" / "contamination.json").write_text(json.dumps({"share": 0.5, "suites": suites}))
    config.suite_report.contamination = str(tmp_path / "found")
    assert runner.run(config, workdir=tmp_path / "out") == {"comparisons": 1, "significant": 1}
    found = json.loads((tmp_path / "out" / "suite_report.json").read_text())
    (row,) = found["differences"]
    assert row["difference"] == pytest.approx(25 / 40)
    assert row["p"] == pytest.approx(stats.binomtest(0, 25).pvalue)
    weak, strong = found["without_touched"]
    assert (weak["all"][:4], weak["without touched"][:3], weak["touched only"][:5]) == ("25.0", "0.0", "100.0")
    assert strong["without touched"].startswith("83.3")
    page = (tmp_path / "out" / "suite_report.md").read_text()
    assert "5 items that no model gets right" in page
    assert "+62.5" in page


@pytest.mark.parametrize(
    "change", [{"texts": []}, {"right": 2}, {"chosen": -1}, {"right": None}, {"chosen": True}, {"texts": None}]
)
def test_an_answer_that_is_none_is_named(tmp_path, change):
    file = Path(_write_answers(tmp_path, "first", [0, 1])) / "answers.jsonl"
    first, second = map(json.loads, file.read_text().splitlines())
    file.write_text(json.dumps(first) + "\n" + json.dumps(second | change) + "\n")
    with pytest.raises(UserError, match="line 2: no answer of task harness"):
        read_answers(file)


def test_items_of_one_id_and_other_questions_are_not_compared():
    def of(questions, chosen):
        return {"s": [Answered(str(i), 0, chosen, ("a", "b"), None, None, question=q) for i, q in enumerate(questions)]}

    answers = {"first": of("uvwx", 0), "second": of("uvyz", 1)}
    (row,) = differences(answers, samples=100, seed=0)
    assert (row["items"], row["difference"]) == (2, -1)
    assert unlike(answers) == [{"suite": "s", "first": "first", "second": "second", "other questions": 2}]
    assert unlike({"first": of("uv", 0), "second": of("uv", 1)}) == []
    # All items touched: the suite is told, without a score.
    rows = without_touched({"first": of("uv", 0)}, {"s": {"touched": {"0": 1.0, "1": 1.0}}})
    assert [(row["touched"], row["without touched"]) for row in rows] == [(2, None)]
