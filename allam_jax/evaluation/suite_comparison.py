"""Several models on the same items: their scores, which differences are no accident, and what they fail at."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.corpus.record_formats import json_records
from allam_jax.errors import UserError
from allam_jax.evaluation.choice_scores import Answered, grouped, mcnemar, paired_bootstrap, summary
from allam_jax.evaluation.harness_tasks import PERMUTED
from allam_jax.report.markdown import quote, section, table

SIGNIFICANT = 0.05
_LARGEST_LINE = 1 << 24

Answers = Mapping[str, Mapping[str, Sequence[Answered]]]  # model -> suite -> items


def read_answers(path: Path) -> dict[str, list[Answered]]:
    """Suite -> the answers of one model, from a file of task `harness`. UserError for a line that is none."""
    found: dict[str, list[Answered]] = {}
    for number, record in enumerate(json_records(path, limit=_LARGEST_LINE), start=1):
        try:
            values: dict[str, Any] = dict(record)  # type: ignore[arg-type]  # an error is text, which is no pair
            name = values.pop("suite")
            item = Answered(**values | {"texts": tuple(values["texts"])})
            if not all(type(choice) is int and 0 <= choice < len(item.texts) for choice in (item.right, item.chosen)):
                raise ValueError("a number of no choice")
            found.setdefault(name, []).append(item)
        except (TypeError, ValueError, KeyError):
            raise UserError(f"{path}, line {number}: no answer of task harness; run that stage again") from None
    return found


def differences(answers: Answers, *, samples: int, seed: int) -> list[dict[str, Any]]:
    """For each suite and pair of models, how their accuracies differ on the items that both were asked.

    `p` is that of McNemar's exact test, adjusted for the number of all comparisons (Holm 1979).
    """
    rows: list[dict[str, Any]] = []
    for first, second in itertools.combinations(answers, 2):
        for suite in answers[first]:
            if suite not in answers[second] or suite.endswith(PERMUTED):
                continue
            other = {(item.id, item.question): item for item in answers[second][suite]}
            asked = ((item, other.get((item.id, item.question))) for item in answers[first][suite])
            pairs = [(one, two) for one, two in asked if two is not None]
            if not pairs:
                continue
            right = [[item.chosen == item.right for item in side] for side in zip(*pairs, strict=True)]
            difference, low, high = paired_bootstrap(*right, samples=samples, seed=seed)
            values = {"suite": suite, "first": first, "second": second, "items": len(pairs)}
            rows.append(values | {"difference": difference, "low": low, "high": high, "p": mcnemar(*right)})
    adjusted = holm([row["p"] for row in rows])
    return [row | {"p": p, "significant": p < SIGNIFICANT} for row, p in zip(rows, adjusted, strict=True)]


def unlike(answers: Answers) -> list[dict[str, Any]]:
    """For each suite and pair of models, how many items have one id but other questions, and so are not compared."""
    rows: list[dict[str, Any]] = []
    for first, second in itertools.combinations(answers, 2):
        for suite in answers[first]:
            other = {item.id: item.question for item in answers[second].get(suite, ())}
            count = sum(other.get(item.id, item.question) != item.question for item in answers[first][suite])
            if count and not suite.endswith(PERMUTED):
                rows.append({"suite": suite, "first": first, "second": second, "other questions": count})
    return rows


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, so that one below a level among true null hypotheses is as rare as the level says."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, number in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = largest
    return adjusted


def without_touched(answers: Answers, touched: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Accuracies on all items, on those that do not occur in a corpus, and on those that do."""
    rows = []
    for model, suites in answers.items():
        for suite, items in suites.items():
            known = touched.get(suite, {}).get("touched", {})
            clean = [item for item in items if item.id not in known]
            hit = [item for item in items if item.id in known]
            if suite in touched:
                rows.append(
                    {"suite": suite, "model": model, "touched": len(hit), "items": len(items)}
                    | {"all": _shown(items), "without touched": _shown(clean) if clean else None}
                    | {"touched only": _shown(hit) if hit else None}
                )
    return rows


def sections_of(answers: Answers, rows: Sequence[Mapping[str, Any]], *, failures: int) -> list[str]:
    """The sections of a report: scores, differences, categories, and items to read."""
    names = list(dict.fromkeys(suite for suites in answers.values() for suite in suites))
    plain = [name for name in names if not name.endswith(PERMUTED)]
    scores = []
    for name in plain:
        first = next(summary(suites[name]) for suites in answers.values() if name in suites)
        row = {"suite": name, "items": first["items"], "chance": _percent(first["chance"])}
        row |= {"majority answer": _percent(first["majority"])}
        scores.append(
            row | {model: _shown(suites[name]) if name in suites else None for model, suites in answers.items()}
        )
    sections = [section("Accuracy, % (95 % interval)", table(scores))]
    if rows:
        shown = [
            {key: row[key] for key in ("suite", "first", "second", "items")}
            | {"second − first": f"{100 * row['difference']:+.1f}"}
            | {"95 %": f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}", "p": row["p"]}
            | {"significant": "yes" if row["significant"] else "no"}
            for row in rows
        ]
        said = (
            "Intervals: paired bootstrap over items. p: McNemar's exact test on the items that both models were asked, "
            f"adjusted for {len(rows)} comparisons (Holm); significant: p < {SIGNIFICANT}."
        )
        sections.append(section("What is significant", said, table(shown)))
    for name in plain:
        parts = {model: grouped(suites[name], "category") for model, suites in answers.items() if name in suites}
        categories = sorted({category for of_model in parts.values() for category in of_model})
        if len(categories) > 1:
            by_category: list[dict[str, Any]] = [
                {"category": category}
                | {model: _percent(of.get(category, {}).get("accuracy")) for model, of in parts.items()}
                for category in categories
            ]
            sections.append(section(f"{name}: categories", table(by_category)))
        sections += _failures(name, answers, most=failures)
    return sections


def _failures(suite: str, answers: Answers, *, most: int) -> list[str]:
    """Items that all models get wrong, as they were asked, and what each chose."""
    chosen = {model: {item.id: item for item in suites[suite]} for model, suites in answers.items() if suite in suites}
    first = next(iter(chosen.values()))
    wrong = [id_ for id_ in first if all(id_ in of and of[id_].chosen != of[id_].right for of in chosen.values())]
    blocks = []
    for id_ in wrong[:most]:
        item = first[id_]
        gave = ", ".join(f"{model}: {of[id_].texts[of[id_].chosen]}" for model, of in chosen.items())
        blocks += [quote(item.question), quote(f"right: {item.texts[item.right]}; {gave}")]
    if not blocks:
        return []
    return [section(f"{suite}: wrong answers", f"{len(wrong)} items that no model gets right, of which:", *blocks)]


def _shown(items: Sequence[Answered]) -> str:
    found = summary(items)
    return f"{100 * found['accuracy']:.1f} ({100 * found['low']:.1f}–{100 * found['high']:.1f})"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}"
