"""Task `mt_bench_answers`: a model's answers to questions of one or two turns, in the form that a judge reads."""

from pathlib import Path
from typing import Any

from allam_jax import files
from allam_jax.config import require
from allam_jax.evaluation.mt_bench import read_questions
from allam_jax.generation.over_rows import over_rows, read_answers
from allam_jax.generation.rows import Prompt
from allam_jax.parallel.distributed import broadcast, is_main_process
from allam_jax.settings import Settings
from allam_jax.tasks.generate import backend_of

_TURNS = 2


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Answers the questions of `generate.input` turn by turn; writes `answers.jsonl` as FastChat does.

    A run that was killed goes on. A question whose first answer failed is not asked on, and is missing in the file.
    """
    options = config.generate
    questions = read_questions(
        require(options.input, key="generate.input", hint="give questions"), key="generate.input"
    )
    backend = backend_of(config, ())
    answers: dict[str, list[str]] = {question.id: [] for question in questions}
    errors = 0
    for turn in range(_TURNS):
        prompts = list[Prompt]()
        for question in questions:
            given = answers[question.id]
            if len(question.turns) > turn and len(given) == turn:
                said = [text for pair in zip(question.turns, given, strict=False) for text in pair]
                roles = ("user", "assistant") * _TURNS
                asked = [*said, question.turns[turn]]
                messages = [{"role": role, "content": text} for role, text in zip(roles, asked, strict=False)]
                prompts.append(Prompt(len(prompts), messages, {"question": question.id}))
        counted = over_rows(
            iter(prompts),
            total=len(prompts),
            backend=backend,
            directory=workdir / f"turn_{turn + 1}",
            identity={"prompts": files.sha256_of_json([prompt.asked for prompt in prompts])},
            shard_rows=options.shard_rows,
            max_error_share=options.max_error_share,
            writes=is_main_process(),
            agree=broadcast,
        )
        errors += sum(counted["errors"].values())
        for record in read_answers(workdir / f"turn_{turn + 1}"):
            answers[record["question"]].append(record["answers"][0]["text"])
    whole = [question for question in questions if len(answers[question.id]) == len(question.turns)]
    if is_main_process():
        lines = [
            {"question_id": question.id, "choices": [{"index": 0, "turns": answers[question.id]}]} for question in whole
        ]
        files.write_text(workdir / "answers.jsonl", "".join(files.json_text(line) + "\n" for line in lines))
    return {"questions": len(questions), "answered": len(whole), "errors": errors}
