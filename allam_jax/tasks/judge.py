"""Task `judge`: a model behind an endpoint grades the answers of others, as MT-bench does."""

from pathlib import Path
from typing import Any

from absl import logging

from allam_jax import files
from allam_jax.config import require
from allam_jax.errors import UserError
from allam_jax.evaluation import judge_report
from allam_jax.evaluation.judgments import Judgment, agreement, pairwise_scores, read_judgments, single_scores
from allam_jax.evaluation.mt_bench import read_bench
from allam_jax.generation.endpoint import EndpointBackend
from allam_jax.generation.over_rows import over_rows, read_answers, read_errors
from allam_jax.generation.requests import sampling_of
from allam_jax.settings import Settings

_BYTES_PER_TOKEN = 4.0  # an estimate, before the endpoint has counted
_MILLION = 1e6


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Has all answers judged; writes the judgments in shards, `judge.json`, a report and figures.

    A run that was killed goes on; what has been judged is not asked again.
    """
    options = config.judge
    require(options.answers, key="judge.answers", hint="give a file of answers for each model")
    if options.mode == "pairwise" and (len(options.answers) < 2 or options.baseline not in ("", *options.answers)):
        raise UserError("config.judge: pairwise needs answers of two models or more, and a baseline among them")
    bench = read_bench(options)
    prompts = list(bench.single() if options.mode == "single" else bench.pairwise(baseline=options.baseline))
    asked = [prompt for prompt in prompts if not prompt.problem]
    size = sum(len(files.json_text(prompt.asked).encode()) for prompt in asked)
    planned = {"requests": len(asked), "prompt_tokens": round(size / _BYTES_PER_TOKEN)}
    lacking = sum(prompt.kept["lacks_reference"] for prompt in asked)
    logging.info("%d requests, about %d tokens of prompts", planned["requests"], planned["prompt_tokens"])
    if lacking:
        logging.warning("%d prompts of %s lack a reference answer", lacking, ", ".join(options.reference_categories))
    if options.dry_run:
        return planned | {"lack_reference": lacking, "cost": _cost(options, planned["prompt_tokens"], 0)}
    counted = over_rows(
        iter(prompts),
        total=len(prompts),
        backend=EndpointBackend(
            options.endpoint, sampling=sampling_of(options.sampling, seed=config.seed), section="judge"
        ),
        directory=workdir,
        identity={"prompts": files.sha256_of_json([[prompt.asked, prompt.problem] for prompt in prompts])},
        shard_rows=options.shard_rows,
        max_error_share=1.0,  # what has no answer is counted and reported
    )
    judgments = _judgments(workdir, mode=options.mode)
    answers = list(read_answers(workdir))
    prompt_tokens = sum(row["prompt_tokens"] for row in answers)
    tokens = sum(choice["tokens"] for row in answers for choice in row["answers"])
    scores = (single_scores if options.mode == "single" else pairwise_scores)(judgments, seed=config.seed)
    found = {
        "mode": options.mode,
        "scores": scores,
        "lack_reference": lacking,
        "errors": counted["errors"],
        "agreement": agreement(judgments, _judgments(Path(options.other), mode=options.mode))
        if options.other
        else None,
        "cost": {
            "requests": counted["answered"],
            "prompt_tokens": prompt_tokens,
            "tokens": tokens,
            "cost": _cost(options, prompt_tokens, tokens),
        },
    }
    files.write_json(workdir / "judge.json", found)
    judge_report.write(workdir / "judge.md", found, title=f"Judged by {options.endpoint.model}")
    rated = {model: of_model["rating"] for model, of_model in scores.items()} if options.mode == "single" else {}
    return rated | {"judgments": len(judgments), "missing": sum(bool(judgment.missing) for judgment in judgments)}


def _judgments(directory: Path, *, mode: str) -> list[Judgment]:
    return read_judgments(read_answers(directory), read_errors(directory), mode=mode)


def _cost(options: Any, prompt_tokens: int, tokens: int) -> float:
    return (prompt_tokens * options.price + tokens * options.price_answers) / _MILLION
