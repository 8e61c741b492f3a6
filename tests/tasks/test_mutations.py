"""A sample of random damage to configs (`mutation_runs.py` runs thousands): one line or a result, nothing else."""

import pytest
from mutation_runs import run_all
from processes import child_environment

# Those that need nothing but texts and a tokenizer.
TASKS = ("corpus", "mixture", "plan", "tokenize", "tokenizer", "train")


@pytest.mark.slow
def test_damaged_configs_end_in_one_line_or_a_result(launcher, tmp_path):
    jobs = [(task, seed) for seed in ("none", *range(2)) for task in TASKS]
    environment = child_environment(cache=launcher.cache)
    done = list(run_all(jobs, root=launcher.root, folder=tmp_path, environment=environment))
    assert [(task, seed, fault) for task, seed, fault, _ in done if fault] == []
    assert {status for _, seed, _, status in done if seed == "none"} == {0}
    statuses = [status for _, seed, _, status in done if seed != "none"]
    assert {0, 2} == set(statuses)
    assert statuses.count(2) > len(statuses) / 3
