"""Task `tuning_report`: what post-training has given and cost, from the stages that measured each model.

Bits per byte of held-out text, losses of held-out replies, exact answers to held-out prompts, and capitals that were
never taught, each with what it was before. The workdir holds tuning.json and report.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.config import require
from allam_jax.errors import UserError
from allam_jax.evaluation.exact_answers import ExactAnswer, compared, exact_answers, scores
from allam_jax.files import write_json
from allam_jax.generation.over_rows import read_answers
from allam_jax.report.environment import environment
from allam_jax.report.markdown import Markdown, plain, section, table, write_report
from allam_jax.report.style import language_name
from allam_jax.settings import Settings
from allam_jax.tasks.recipe import read_result
from allam_jax.tasks.settings import TunedSettings

Table = Sequence[Mapping[str, Any]]


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Writes the report; returns its numbers by model."""
    options = config.tuning
    require(options.models, key="tuning.models", hint="name at least one")
    models = {name: options.models[name] for name in options.order}
    answers = {
        name: exact_answers(read_answers(Path(model.answers)), where=model.answers)
        for name, model in models.items()
        if model.answers
    }
    made = {"data": options.data, "quality": options.quality, "pairs": options.pairs}
    result = {
        "made": {name: _result(stage) for name, stage in made.items() if stage},
        "models": {name: _measured(model, answers.get(name, ())) for name, model in models.items()},
        "compared": compared(answers, samples=options.bootstrap, seed=config.seed),
    }
    write_json(workdir / "tuning.json", result)
    _write(workdir / "report.md", result, answers, shown=options.shown)
    return result


def _result(stage: str) -> dict[str, Any]:
    return read_result(Path(stage))["result"]


def _measured(model: TunedSettings, answers: Sequence[ExactAnswer]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if model.bits:
        found["bits_per_byte"] = _bits(_result(model.bits), where=model.bits)
    if model.losses:
        found["losses"] = {name: value["loss"] for name, value in _result(model.losses).items()}
    if answers:
        found["answers"] = scores(answers)
    if model.probe:
        found["capitals"] = _result(model.probe)["capitals"]
    return found


def _bits(result: Mapping[str, Any], *, where: str) -> dict[str, float]:
    """Bits per byte by source: of an evaluation, or the last of a training run."""
    if "evaluations" not in result:
        return {name: value["bits_per_byte"] for name, value in result.items() if isinstance(value, dict)}
    if not result["bits_per_byte"]:
        raise UserError(f"{where}: was trained without evaluations; give its stage eval.sources")
    return {name: value for name, value in result["bits_per_byte"][-1].items() if name != "step"}


# ---- the report ----


def _write(path: Path, result: Mapping[str, Any], answers: Mapping[str, Sequence[ExactAnswer]], *, shown: int) -> None:
    models, made = result["models"], result["made"]
    sections = []
    if made:
        sections.append(section("What was made", *_made(made)))
    if bits := _of(models, "bits_per_byte"):
        text = "Bits per byte of held-out text; in brackets the change against the first model."
        sections.append(section("Text", text, table(_changes(bits))))
    if losses := _of(models, "losses"):
        text = "Nats per token of held-out replies, by language and turn; in brackets the change."
        sections.append(section("Replies", text, table(_changes(losses))))
    if found := _of(models, "answers"):
        text = "Share of held-out prompts that are answered to the letter, with its 95 % interval (Wilson)."
        lengths = "Lengths: words of an answer, and the share of answers that did not end by themselves."
        sections.append(section("Exact answers", text, table(_shares(found)), lengths, table(_lengths(found))))
    if result["compared"]:
        text = (
            "The same prompts, answered by two models: how often only the second (wins) or only the first (losses) is "
            "right. 95 % interval of the difference: paired bootstrap over prompts; p: McNemar's exact test, adjusted "
            "for the number of comparisons (Holm)."
        )
        sections.append(section("Models compared", text, table(result["compared"])))
    if capitals := _of(models, "capitals"):
        text = "Capitals of countries that were never taught, one of four, by likelihood, with 95 % intervals."
        sections.append(section("Capitals kept", text, table(list(_capitals(capitals)))))
    if shown and answers:
        sections.append(section("Samples", table(list(_samples(answers, shown=shown)))))
    sections.append(section("Environment", environment()))
    write_report(path, title="Post-training, before and after", sections=sections)


def _of(models: Mapping[str, Any], measure: str) -> dict[str, Any]:
    return {name: found[measure] for name, found in models.items() if measure in found}


def _made(made: Mapping[str, Any]) -> list[str]:
    blocks = []
    if "data" in made:
        replies = made["data"]["replies"]
        kinds = sorted({kind for counts in replies.values() for kind in counts})
        blocks += [
            table([{"replies": kind} | {part: replies[part].get(kind, 0) for part in replies} for kind in kinds])
        ]
    if "quality" in made:
        rows = [
            {"source": name, "rows": facts["rows"], "kept": facts["kept"], "left out": _counts(facts["dropped_for"])}
            for name, facts in made["quality"].items()
            if isinstance(facts, dict)
        ]
        blocks += ["Conversations that passed the checks:", table(rows)]
    if "pairs" in made:
        pairs = made["pairs"]
        blocks.append(
            f"Pairs: {pairs['pairs']:,} from {pairs['answered']:,} prompts; answers left out: "
            f"{plain(_counts(pairs['left_out']))}."
        )
    return blocks


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none"


def _changes(values: Mapping[str, Mapping[str, float]]) -> Table:
    first = next(iter(values.values()))
    return [
        {"model": model}
        | {
            name: f"{value:.3f} ({value - first[name]:+.3f})" if own is not first and name in first else f"{value:.3f}"
            for name, value in own.items()
        }
        for model, own in values.items()
    ]


def _shares(found: Mapping[str, Mapping[str, Any]]) -> Table:
    groups = list(dict.fromkeys(name for own in found.values() for name in own))
    rows = []
    for group in groups:
        row: dict[str, Any] = {"prompts": group}
        for model, own in found.items():
            if value := own.get(group):
                row["number"] = value["prompts"]
                row[model] = f"{value['right']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
        rows.append(row)
    return rows


def _lengths(found: Mapping[str, Mapping[str, Any]]) -> Table:
    return [{"model": model, "words": own["all"]["words"], "cut": own["all"]["cut"]} for model, own in found.items()]


def _capitals(found: Mapping[str, Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    for model, by_language in found.items():
        for language, by_shots in by_language.items():
            row: dict[str, Any] = {"model": model, "language": language_name(language)}
            for shots, score in by_shots.items():
                row[f"{shots}-shot"] = f"{score['accuracy']:.3f} ({score['low']:.3f} to {score['high']:.3f})"
            yield row


def _samples(answers: Mapping[str, Sequence[ExactAnswer]], *, shown: int) -> Iterable[dict[str, Any]]:
    """The first prompts of each kind, with what every model has answered; right answers are marked."""
    by_id = {model: {answer.id: answer for answer in own} for model, own in answers.items()}
    seen: dict[str, int] = {}
    for asked in next(iter(answers.values())):
        kind = f"{asked.kind} ({asked.language})"
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] <= shown:
            row: dict[str, Any] = {"kind": kind, "question": asked.question, "right": asked.expected}
            for model, own in by_id.items():
                if answer := own.get(asked.id):
                    row[model] = Markdown(f"**{plain(answer.text)}**") if answer.is_right else answer.text
            yield row
