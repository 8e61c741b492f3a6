"""Task `adaptation_report`: ways of teaching a model a second language, by the bytes of it that they have read.

Tokenizers cut a language into different numbers of tokens, so steps are no measure. The data of each run is read again
for the bytes of its targets.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax import files
from allam_jax.config import require
from allam_jax.data.bytes_seen import bytes_of_steps
from allam_jax.data.loader import make_loader
from allam_jax.errors import UserError
from allam_jax.report.adaptation_figure import Bar, adaptation_figure
from allam_jax.report.environment import environment
from allam_jax.report.markdown import figure, quote, section, table, write_report
from allam_jax.report.style import language_name
from allam_jax.settings import Settings
from allam_jax.tasks.recipe import read_result
from allam_jax.tasks.registry import settings_of
from allam_jax.tasks.settings import AdaptedSettings
from allam_jax.tasks.setup import weighted
from allam_jax.tokenizer.tokenizer import Tokenizer
from allam_jax.training.metrics import METRICS_FILE, read_metrics
from allam_jax.training.run_report import evaluation_curves
from allam_jax.weights.directory import TOKENIZER_FOLDER

_POINTS = 4  # amounts of text at which the arms are compared

Curves = dict[str, list[tuple[int, float]]]  # held-out source -> (bytes of the new language seen, bits per byte)


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Writes `report.md` and its figure; returns the numbers."""
    options = config.adaptation
    arms = require(options.arms, key="adaptation.arms", hint="name at least one")
    curves = {name: _curves(arm, target=options.target) for name, arm in arms.items()}
    probes = {"base": options.base} if options.base else {}
    for name, arm in arms.items():
        probes |= {name: arm.probe} if arm.probe else {}
        probes |= {f"{name}, average": arm.average} if arm.average else {}
    found = {name: read_result(Path(stage))["result"] for name, stage in probes.items()}
    base: dict[str, float] = {}
    if options.expanded:
        step0 = read_result(Path(options.expanded))["result"]["step0"]
        base = {name: values["bits_per_byte_base"] for name, values in step0.items()}
    result = {
        "base": base,
        "bits_per_byte": curves,
        "at_equal_bytes": _at_equal_bytes(curves, options.target[0]),
        "probes": found,
    }
    files.write_json(workdir / "adaptation.json", result)
    _write(workdir, result, target=options.target[0], kept=options.kept)
    return result


def at(curve: Sequence[tuple[float, float]], place: float) -> float | None:
    """The value of a curve between two of its points; None outside."""
    for (x, y), (next_x, next_y) in itertools.pairwise(curve):
        if x <= place <= next_x and x < next_x:
            return y + (next_y - y) * (place - x) / (next_x - x)
    return None


def _curves(arm: AdaptedSettings, *, target: Sequence[str]) -> Curves:
    rows = [row for stage in (*arm.before.values(), arm.run) for row in read_metrics(Path(stage) / METRICS_FILE)]
    by_step = evaluation_curves(rows)
    if not by_step:
        raise UserError(f"{arm.run}: was trained without evaluations; give its stage eval.sources")
    seen = _bytes_seen(Path(arm.run), steps=max(row["step"] for row in rows), target=target)
    return {name: [(seen[step], value) for step, value in sorted(curve)] for name, curve in by_step.items()}


def _bytes_seen(run: Path, *, steps: int, target: Sequence[str]) -> list[int]:
    """After each step of a run, from 0 on, the bytes of the new language that it has read."""
    trained = settings_of(files.read_json(run / "config.json", keys={"task": str, "data": dict}))
    tokenizer = Tokenizer.load(run / TOKENIZER_FOLDER)
    total, seen = 0, [0]
    with make_loader(weighted(trained.data), tokenizer=tokenizer, seed=trained.seed) as loader:
        for counts in itertools.islice(bytes_of_steps(loader, tokenizer=tokenizer), steps):
            total += sum(counts.get(name, 0) for name in target)
            seen.append(total)
    return seen


def _at_equal_bytes(curves: Mapping[str, Curves], name: str) -> dict[str, dict[str, float | None]]:
    """For some amounts of text, the last of which all that read any have read, each arm's bits per byte of a source."""
    most = min((c[name][-1][0] for c in curves.values() if c[name][-1][0]), default=0)
    amounts = [most * (number + 1) // _POINTS for number in range(_POINTS)] if most else []
    return {str(amount): {arm: at(c[name], amount) for arm, c in curves.items()} for amount in amounts}


def _write(workdir: Path, result: Mapping[str, Any], *, target: str, kept: str) -> None:
    report, path = workdir / "report.md", workdir / "figures" / "adaptation.png"
    base, curves, probes = result["base"], result["bits_per_byte"], result["probes"]
    names = language_name(target), language_name(kept)
    shots, fewest, most = _shots(probes, kept)
    adaptation_figure(
        {arm: c[target] for arm, c in curves.items() if c[target][-1][0]},
        {arm: c[kept] for arm, c in curves.items()},
        names=names,
        base={name: base[source] for name, source in zip(names, (target, kept), strict=True) if source in base},
        shots=shots,
        speeds={model: found["written_arabic_words_per_second"] for model, found in probes.items()},
        path=path,
    )
    ends = [{"arm": "base model", **base}] if base else []
    ends += [
        {"arm": arm, f"{names[0]} seen (MB)": c[target][-1][0] / 1e6}
        | {name: curve[-1][1] for name, curve in c.items()}
        for arm, c in curves.items()
    ]
    equal = [{f"{names[0]} seen (MB)": int(amount) / 1e6} | by for amount, by in result["at_equal_bytes"].items()]
    sections = [
        figure(path, caption="Bits per byte by text seen, answers with examples, and speed.", report=report),
        section("Bits per byte at the end", table(ends)),
        section(f"{names[0]} after equal amounts of it", table(equal)) if equal else "",
    ]
    if probes:
        sections += [
            section(
                "Capitals of countries, one of four",
                f"Accuracy with its 95 % interval, by likelihood: with {fewest} and {most} worked examples.",
                table([row for model, found in probes.items() for row in _capital_rows(model, found["capitals"])]),
            ),
            section("Copying, reading and writing", table([_skills(model, found) for model, found in probes.items()])),
            section(
                "Translated verses found by hidden states, by layer (0: the embedding)",
                table([{"model": m} | {str(n): v for n, v in enumerate(f["retrieval"])} for m, f in probes.items()]),
            ),
            section("Continuations", *(quote(text) for text in _continuations(probes))),
        ]
    sections.append(section("Environment", environment()))
    write_report(report, title=f"A model of {names[1]} learns {names[0]}", sections=list(filter(None, sections)))


def _shots(probes: Mapping[str, Any], language: str) -> tuple[dict[str, tuple[Bar, Bar]], str, str]:
    """Accuracy on capitals of each model with the fewest and the most examples, and these numbers."""
    found: dict[str, tuple[Bar, Bar]] = {}
    ends = ("", "")
    for model, probe in probes.items():
        by_shots = probe["capitals"][language]
        ends = min(by_shots, key=int), max(by_shots, key=int)
        bars = [Bar(value=v["accuracy"], low=v["low"], high=v["high"]) for v in (by_shots[end] for end in ends)]
        found[model] = (bars[0], bars[1])
    return found, *ends


def _capital_rows(model: str, capitals: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for language, by_shots in capitals.items():
        row: dict[str, Any] = {"model": model, "language": language_name(language)}
        for shots, score in by_shots.items():
            row |= {f"{shots}-shot": f"{score['accuracy']:.3f} ({score['low']:.3f} to {score['high']:.3f})"}
            row |= {f"{shots}-shot, written": score["written"]}
        fewest, most = (by_shots[end]["accuracy"] for end in (min(by_shots, key=int), max(by_shots, key=int)))
        rows.append(row | {"gain": most - fewest})
    return rows


def _skills(model: str, probe: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"model": model}
    for language in probe["copying"]:
        name = language_name(language)
        row |= {f"{name}: bits saved by copying": probe["copying"][language]["saved"]}
        row |= {f"{name} verses, bits per byte": probe["verses"][language]["bits_per_byte"]}
        row |= {f"{name} tokens per word": probe["verses"][language]["tokens_per_word"]}
    row["Arabic words read per second"] = probe["verses"]["ar"]["read_words_per_second"]
    row["Arabic words written per second"] = probe["written_arabic_words_per_second"]
    return row


def _continuations(probes: Mapping[str, Any]) -> list[str]:
    return [
        f"{model}: {text['prompt']} … {text['continuation']}"
        for model, probe in probes.items()
        for text in probe["continuations"]
    ]
