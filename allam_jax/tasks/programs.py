"""Task `programs`: a model writes programs, which run against their tests in a sandbox; pass@k.

WORKDIR/answers/        what the model wrote (`over_rows`)
WORKDIR/outcomes.jsonl  how each program ended
WORKDIR/programs.json, WORKDIR/programs.md
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from allam_jax.config import require
from allam_jax.errors import UserError
from allam_jax.evaluation.program_problems import STOPS, Problem, read_problems
from allam_jax.evaluation.program_sandbox import (
    PASSED,
    STATUSES,
    ProgramOutcome,
    check_sandbox,
    pass_at_k,
    run_program,
)
from allam_jax.evaluation.settings import ProgramsSettings
from allam_jax.files import write_json, write_json_lines
from allam_jax.generation.over_rows import over_rows, read_answers
from allam_jax.generation.requests import sampling_of
from allam_jax.generation.rows import Prompt
from allam_jax.parallel.distributed import broadcast, is_main_process
from allam_jax.report.markdown import table, write_report
from allam_jax.settings import Settings
from allam_jax.tasks.answering import content_of, open_answerer
from allam_jax.tasks.inputs_of_task import inputs_of_settings


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Asks for `config.programs.samples` programs a problem and runs them; returns pass@k and how programs ended."""
    options = config.programs
    path = require(options.input, key="programs.input", hint="give a file such as HumanEval.jsonl.gz")
    problems, left_out = read_problems(path, key="programs.input")
    refused: dict[str, str] = {}
    if is_main_process():
        for reason, places in left_out.items():
            logging.warning("%s: %d problems are left out: %s (%s)", path, len(places), reason, places[0])
        refused = _refused(problems, options)
    prompts = [_asked(number, problem, options) for number, problem in enumerate(problems)]
    sampling = sampling_of(options, seed=config.seed, samples=options.samples)
    if not options.as_chat and not sampling.stop_texts:
        sampling = dataclasses.replace(sampling, stop_texts=STOPS)
    over_rows(
        prompts,
        total=len(prompts),
        backend=open_answerer(config, section="programs", prompts=prompts).backend(sampling),
        directory=workdir,
        identity={
            "input": content_of(inputs_of_settings(config)["programs.input"]),
            "as_chat": options.as_chat,
            "instruction": options.instruction if options.as_chat else None,
        },
        shard_rows=options.shard_rows,
        max_error_share=options.max_error_share,
        writes=is_main_process(),
        agree=broadcast,
    )
    result: dict[str, Any] = {}
    if is_main_process():
        result = _results(problems, workdir, options, refused=refused)
        result["left_out"] = {name: len(of) for name, of in left_out.items()}
        write_json(workdir / "programs.json", result)
    return broadcast(result)


def _asked(number: int, problem: Problem, options: ProgramsSettings) -> Prompt:
    if not options.as_chat:
        return Prompt(number, problem.prompt)
    return Prompt(number, [{"role": "user", "content": options.instruction.replace("{prompt}", problem.prompt)}])


def _refused(problems: Sequence[Problem], options: ProgramsSettings) -> dict[str, str]:
    """The problems whose right program, as the file has it, does not pass here, with the reason.

    UserError if the sandbox can run nothing, or if none of them passes: before a model has written for hours.
    """
    check_sandbox(seconds=options.seconds, memory_bytes=options.memory_mib << 20)
    having = [problem for problem in problems if problem.solution]
    ended = _run((problem.program(problem.solution) for problem in having), options)
    refused = {problem.id: one.detail for problem, one in zip(having, ended, strict=True) if one.status != PASSED}
    if refused and len(refused) == len(having):
        name, detail = next(iter(refused.items()))
        raise UserError(
            f"config.programs.input: none of the file's {len(having):,} own solutions passes here ({name}: {detail}); "
            "programs have the standard library alone: mend the file, or raise programs.seconds or memory_mib"
        )
    return refused


def _run(programs: Iterable[str], options: ProgramsSettings) -> list[ProgramOutcome]:
    """Runs programs in the sandbox, some at a time."""
    held = functools.partial(run_program, seconds=options.seconds, memory_bytes=options.memory_mib << 20)
    with ThreadPoolExecutor(options.workers) as pool:
        return list(pool.map(held, programs))


def _results(
    problems: Sequence[Problem], workdir: Path, options: ProgramsSettings, *, refused: Mapping[str, str]
) -> dict[str, Any]:
    """Runs the programs that the model wrote, and counts."""
    answers = [(problems[row["row"]], choice["text"]) for row in read_answers(workdir) for choice in row["answers"]]
    chat = options.as_chat
    whole = (one.program_of_chat(text) if chat else one.program(text) for one, text in answers)
    found = [(problem.id, outcome) for (problem, _), outcome in zip(answers, _run(whole, options), strict=True)]
    lines = [{"task_id": name, **dataclasses.asdict(outcome)} for name, outcome in found]
    write_json_lines(workdir / "outcomes.jsonl", lines)
    passed = Counter(name for name, outcome in found if outcome.status == PASSED)
    # A problem without an answer counts as one that no sample passes.
    scores = {f"pass@{k}": [pass_at_k(options.samples, passed[one.id], k) for one in problems] for k in options.ks}
    statuses = Counter(outcome.status for _, outcome in found)
    result = {
        **{name: float(np.mean(values)) for name, values in scores.items()},
        "problems": len(problems),
        "programs": len(found),
        "ended": {status: statuses[status] for status in STATUSES},
        "files_read": sorted({outcome.files for _, outcome in found if outcome.files}),
        "solutions_refused": refused,
    }
    _write_page(workdir / "programs.md", result, found)
    return result


def _write_page(path: Path, result: Mapping[str, Any], found: Sequence[tuple[str, ProgramOutcome]]) -> None:
    scores = [{"figure": name, "value": f"{value:.1%}"} for name, value in result.items() if name.startswith("pass@")]
    counts = [{"figure": name, "value": f"{count:,}"} for name, count in result["ended"].items()]
    details = Counter(outcome.detail.partition(":")[0] for _, outcome in found if outcome.detail)
    reasons = [{"reason": reason, "programs": count} for reason, count in details.most_common(20)]
    refused = [{"task": name, "reason": detail} for name, detail in result["solutions_refused"].items()]
    parts = [table(scores + counts)]
    parts += [table(reasons)] if reasons else []
    parts += ["The file's own solutions that do not pass here:", table(refused)] if refused else []
    write_report(path, title=f"Programs: {result['problems']:,} problems", sections=parts)
