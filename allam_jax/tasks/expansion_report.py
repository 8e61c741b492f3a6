"""Task `expansion_report`: the report of a recipe that expands a model in several ways and trains each on.

Reads what the stages wrote, draws the figures of the paper (fertility: Figure 1; embedding initialisation: Figure 5),
and returns the numbers as one JSON object.
"""

import itertools
import shutil
from pathlib import Path
from typing import Any

from allam_jax.errors import UserError
from allam_jax.report import curves as figures
from allam_jax.report.environment import environment
from allam_jax.report.markdown import figure, section, table, write_report
from allam_jax.report.style import language_name
from allam_jax.settings import Settings
from allam_jax.tasks.merge_tokenizer import FERTILITY_FIGURE
from allam_jax.tasks.recipe import read_result
from allam_jax.training.metrics import read_metrics
from allam_jax.training.run_report import evaluation_curves

STEP0_COLUMNS = {
    "method": "method",
    "language": "language",
    "bits_per_byte_base": "base, bits per byte",
    "bits_per_byte_expanded": "expanded, bits per byte",
    "kl": "KL",
    "kl_old_tokens": "KL, base's tokens",
    "new_token_probability": "new tokens",
}

Curves = dict[str, list[tuple[int, float]]]  # language -> (step, bits per byte)


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Writes `report.md` and `figures/`; see the module."""
    stages = config.report
    tokenizers = _result(stages.tokenizers)
    # The baseline comes last: figures and tables compare the others with the first.
    arms = {method: stages.arms[method] for method in sorted(stages.arms, key=lambda name: (name == "random", name))}
    metrics = {method: read_metrics(Path(arm.continued) / "metrics.jsonl") for method, arm in arms.items()}
    curves = {method: evaluation_curves(rows) for method, rows in metrics.items()}
    for method, by_language in curves.items():
        if not by_language:
            raise UserError(
                f"{arms[method].continued}: was trained without evaluations, so there is nothing to compare; give its "
                "stage eval.sources"
            )
    expanded = {method: _result(arm.expand) for method, arm in arms.items()}
    step0 = {method: found["step0"] for method, found in expanded.items()}
    if stages.base and (evaluations := _result(stages.base)["bits_per_byte"]):
        base = {name: value for name, value in evaluations[-1].items() if name != "step"}
    else:
        base = {name: values["bits_per_byte_base"] for name, values in next(iter(step0.values())).items()}
    result = {
        "fertility": {
            name: {domain: counts["tokens_per_word"] for domain, counts in domains.items()}
            for name, domains in tokenizers["fertility"].items()
        },
        "merge": {
            key: value
            for key, value in tokenizers["merge"].items()
            if key.endswith(("_equal", "_saved")) and key != "mixed_equal"
        },
        "bits_per_byte": {
            "base": base,
            "step0": {
                method: {name: curve[0][1] for name, curve in by.items() if curve[0][0] == 0}
                for method, by in curves.items()
            },
            "final": {method: {name: curve[-1][1] for name, curve in by.items()} for method, by in curves.items()},
        },
        "steps_earlier": _steps_earlier(curves),
        "step0_report": step0,
        "new_pieces": next(iter(expanded.values()))["new"],
        "steps": next(iter(metrics.values()))[-1]["step"],
        "export": _result(stages.export)["huggingface"],
        **_evaluated(stages.evaluation),
        "tokens_per_second": _result(next(iter(arms.values())).continued)["tokens_per_second"],
    }
    figures.bits_per_byte_curves(curves, base=base, path=workdir / "figures" / "bits_per_byte.png")
    figures.training_curves(metrics, workdir / "figures" / "training.png")
    shutil.copyfile(Path(stages.tokenizers) / FERTILITY_FIGURE, workdir / "figures" / "fertility.png")
    _write_report(workdir, result=result, curves=curves)
    return result


def steps_until(curve: list[tuple[int, float]], *, target: float) -> float | None:
    """The step at which a curve first comes down to `target`, interpolated between evaluations; None if never."""
    for (step, value), (next_step, next_value) in itertools.pairwise(curve):
        if value <= target:
            return step
        if next_value <= target:
            return step + (next_step - step) * (value - target) / (value - next_value)
    return None


def _steps_earlier(curves: dict[str, Curves]) -> dict[str, dict[str, float | None]]:
    """For each method and language: how many steps before the end it reached what `random` reached at the end."""
    if "random" not in curves:
        return {}
    earlier: dict[str, dict[str, float | None]] = {}
    for method, by_language in curves.items():
        if method == "random":
            continue
        earlier[method] = {}
        for language, curve in by_language.items():
            last_step, target = curves["random"][language][-1]
            reached = steps_until(curve, target=target)
            earlier[method][language] = None if reached is None else round(last_step - reached, 1)
    return earlier


def _result(stage: str) -> dict[str, Any]:
    return read_result(Path(stage))["result"]


def _write_report(workdir: Path, *, result: dict[str, Any], curves: dict[str, Curves]) -> None:
    report = workdir / "report.md"
    folder = workdir / "figures"
    scores = result["bits_per_byte"]
    languages = list(scores["base"])
    summary = [{"model": "base, before", **scores["base"]}]
    for method in curves:
        if scores["step0"][method]:
            summary.append({"model": f"{method}, step 0", **scores["step0"][method]})
        summary.append({"model": f"{method}, end", **scores["final"][method]})
    if "evaluation" in result:
        summary.append({"model": "export, evaluated again", **result["evaluation"]})
    columns = {f"{method} {name}": dict(curve) for method, by in curves.items() for name, curve in by.items()}
    steps = sorted({step for column in columns.values() for step in column})
    by_step = [{"step": step} | {name: column.get(step) for name, column in columns.items()} for step in steps]
    own = {"base", "extended", "merged"}  # the third is of the new language's script
    tokens = [
        {"tokenizer": name if name in own else f"{name} only", **domains}
        for name, domains in result["fertility"].items()
    ]
    earlier = [{"method": method, **steps} for method, steps in result["steps_earlier"].items()]
    step0 = [
        {"method": method, "language": language, **values}
        for method, report_of in result["step0_report"].items()
        for language, values in report_of.items()
    ]
    unmet = [language_name(name) for name, bits in scores["base"].items() if bits > 8]
    remark = (
        f"The base knows no {' and no '.join(unmet)}: 8 bits per byte is what even chances for all bytes would take."
    )
    comparison: tuple[str, ...] = ()
    if "random" in curves:
        comparison = (
            "At step 0, random output rows give logits near 0 in every context, and so take probability from every "
            "English token. Averaged rows get logits like those of the pieces that they average. On the new language "
            "they can get nearly all the probability, but not yet on the right tokens. There the even guess of random "
            "rows may score better before the first steps. The step-0 table shows how much probability each takes.",
            "Steps before the end at which a method reached the final score of random initialisation:",
            table(earlier, ["method", *languages]),
        )
    sections = [
        section("In short", *_in_short(result, method=next(iter(curves)))),
        section(
            "Bits per byte of held-out text",
            table(summary, ["model", *languages]),
            *([remark] if unmet else []),
            figure(
                folder / "bits_per_byte.png",
                caption="Bits per byte during continued pre-training, by language; dashed: the base model.",
                report=report,
            ),
            *comparison,
        ),
        section(
            "Tokenizer",
            table(tokens, list(tokens[0])),
            figure(folder / "fertility.png", caption="Fertility: tokens per word on held-out text.", report=report),
            *_segmentation(result["merge"]),
        ),
        section(
            "Step 0",
            "Before any training. KL: of the expanded model from the base, nats per token, over all tokens and over "
            "the base's tokens alone; new tokens: the probability they are given together.",
            table(step0, STEP0_COLUMNS),
        ),
        section(
            "Training",
            figure(folder / "training.png", caption="Loss, gradient norm and learning rate.", report=report),
        ),
        section("Every evaluation", table(by_step, list(by_step[0]))),
        section("Environment", environment()),
    ]
    title = f"Continued pre-training in {' and '.join(map(language_name, languages))}"
    write_report(report, title=title, sections=sections)


def _in_short(result: dict[str, Any], *, method: str) -> tuple[str, ...]:
    """What the first method did to each language, in a sentence each."""
    base, final = result["bits_per_byte"]["base"], result["bits_per_byte"]["final"][method]
    before, after = next(iter(result["fertility"].values())), list(result["fertility"].values())[-1]
    lines = []
    for name in filter(final.__contains__, base):
        held_out = f" ({result['held_out_bytes'][name]:,} bytes)" if name in result.get("held_out_bytes", {}) else ""
        bits = f"{final[name]:.3f} bits per byte of held-out text{held_out}, "
        bits += f"{_change(base[name], final[name])} the base model's {base[name]:.3f}"
        bits += " (even chances for all bytes take 8)" if base[name] > 8 else ""
        tokens = ""
        if name in after:
            tokens = f"; {after[name]:.2f} tokens per word, {_change(before[name], after[name])} its tokenizer"
        lines.append(f"- {language_name(name)}: {bits}{tokens}.")
    lines.append(
        f"- How: {result['new_pieces']:,} new pieces, whose embeddings began by `{method}` (expand.method), and "
        f"{result['steps']:,} steps of continued pre-training. The model is in `{result['export']}`; counts of the "
        "texts are in report.md of the stage corpus."
    )
    return ("\n".join(lines),)


def _change(before: float, after: float) -> str:
    share = f"{abs(after / before - 1):.1%}"
    return "as many as" if share == "0.0%" else f"{share} {'fewer' if after < before else 'more'} than"


def _evaluated(stage: str) -> dict[str, Any]:
    """Bits per byte of the exported model, if a stage evaluated it."""
    if not stage:
        return {}
    found = _result(stage)
    return {
        "evaluation": {name: values["bits_per_byte"] for name, values in found.items()},
        "held_out_bytes": {name: values["bytes"] for name, values in found.items()},
    }


def _segmentation(shares: dict[str, float]) -> tuple[str, ...]:
    """What the merge kept and saved: a proof for a script of its own, a measurement for a shared one."""
    equal = {key.removesuffix("_equal"): share for key, share in shares.items() if key.endswith("_equal")}
    saved = {name: shares[f"{name}_tokens_saved"] for name in equal if f"{name}_tokens_saved" in shares}
    if saved:
        return (
            "The new language shares its script with the base's, so new pieces can change old text. Shares of held-out "
            "lines whose segmentation changed, and of tokens that are no longer needed. Lines are counted one by one "
            "here, whole documents above.",
            table(
                [
                    {"lines": name, "changed": f"{1 - equal[name]:.2%}", "tokens saved": f"{saved[name]:.2%}"}
                    for name in equal
                ]
            ),
        )
    return (
        "Share of held-out lines that are segmented as before, those of the script by its own tokenizer and those "
        "without it by the base (lines with both are not compared):",
        table(
            [
                {
                    "lines": "without the script" if kind.startswith("non_") else f"in the script {kind} alone",
                    "share": share,
                }
                for kind, share in equal.items()
            ]
        ),
    )
