"""Task `suite_report`: one page that compares several models on the same suites."""

from pathlib import Path
from typing import Any

from allam_jax import files
from allam_jax.config import require
from allam_jax.evaluation.suite_comparison import differences, read_answers, sections_of, unlike, without_touched
from allam_jax.report.markdown import section, table, write_report
from allam_jax.settings import Settings
from allam_jax.tasks.contamination import RESULT
from allam_jax.tasks.harness import ANSWERS


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Writes `suite_report.md` and `suite_report.json`; returns the number of significant differences."""
    options = config.suite_report
    require(options.models, key="suite_report.models", hint="name a harness stage for each model")
    answers = {model: read_answers(Path(directory) / ANSWERS) for model, directory in options.models.items()}
    rows = differences(answers, samples=options.bootstrap, seed=config.seed)
    sections = sections_of(answers, rows, failures=options.failures)
    others = unlike(answers)
    if others:
        said = "Items of one id whose questions differ between two models; they are in no comparison of the two."
        sections.append(section("Other questions", said, table(others)))
    clean: list[dict[str, Any]] = []
    if options.contamination:
        found = files.read_json(Path(options.contamination) / RESULT, keys={"suites": dict, "share": float})
        clean = without_touched(answers, found["suites"])
        said = f"Touched items: {found['share']:.0%} of their n-grams or more occur in a corpus."
        sections.insert(1, section("Without items that occur in a corpus", said, table(clean)))
    files.write_json(
        workdir / "suite_report.json", {"differences": rows, "other_questions": others, "without_touched": clean}
    )
    write_report(workdir / "suite_report.md", title="Models on suites", sections=sections)
    return {"comparisons": len(rows), "significant": sum(row["significant"] for row in rows)}
