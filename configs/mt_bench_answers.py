"""Answers to MT-bench's questions, for a judge (configs/judge.py).

python run.py --config configs/mt_bench_answers.py --config.init.weights=DIR --config.generate.input=question.jsonl

Decoding is greedy unless --config.generate.temperature is above 0; FastChat takes 0.7 for writing and roleplay only.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Needs init.weights (or generate.endpoint.url) and generate.input."""
    config = base.get_config("mt_bench_answers")
    config.generate.max_new_tokens = 1024
    config.generate.shard_rows = 1
    return config
