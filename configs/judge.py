"""MT-bench: a judge behind an endpoint with OpenAI's API grades the answers of models.

python run.py --config configs/judge.py --config.questions=question.jsonl --config.prompts=judge_prompts.jsonl \
    --config.model=NAME --config.answers=answers/NAME.jsonl --config.judge=gpt-4o --config.url=https://api.openai.com/v1

The key comes from the environment (OPENAI_API_KEY). `--config.dry_run=True` only counts requests and tokens.
"""

from ml_collections import ConfigDict

from allam_jax import recipe_inputs
from allam_jax.settings import Section, setting
from configs import base


class Inputs(Section):
    """Files in FastChat's form, and the judge."""

    questions: str = setting("", "question.jsonl")
    prompts: str = setting("", "judge_prompts.jsonl")
    references: str = setting("", "reference answers; empty: none")
    model: str = setting("model", "name of the model that is judged")
    answers: str = setting("", "its answers")
    other_model: str = setting("", "pairwise: name of a second model")
    other_answers: str = setting("", "its answers")
    judge: str = setting("", "the judge's name at the endpoint")
    url: str = setting("", "the endpoint, up to /v1")
    key_variable: str = setting("OPENAI_API_KEY", "environment variable with the key; empty: none")
    dry_run: bool = setting(False, "only count requests and tokens")


INPUTS = {"single": Inputs(), "pairwise": Inputs()}


def get_config(arg: str = "single") -> ConfigDict:
    mode, given = recipe_inputs.read(INPUTS, arg)
    config = base.get_config("judge")
    config.judge.mode = mode
    for name in ("questions", "prompts", "references", "dry_run"):
        config.judge[name] = getattr(given, name)
    config.judge.answers[given.model] = given.answers
    if given.other_model:
        config.judge.answers[given.other_model] = given.other_answers
    config.judge.endpoint.url, config.judge.endpoint.model = given.url, given.judge
    config.judge.endpoint.key_variable = given.key_variable
    return config
