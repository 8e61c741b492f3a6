"""Compares our likelihood path with lm_eval's own Hugging Face model on CPU: the same weights, tasks and items.

    python benchmarks/likelihood.py --model DIR --acva acva/test.jsonl --mmlu mmlu/test --mmlu_examples mmlu/dev

DIR is a Hugging Face directory with its tokenizer. Items are drawn by a seed. Zero-shot ACVA has two choices of several
tokens behind one context; five-shot MMLU has four letters behind long examples that the items of a subject share. Both
sides get the requests that the harness has built, and are timed from request to score. Ours is timed twice: with the
compilation of its programs, and again. The last line is a JSON object.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags, logging

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from machine import pin  # noqa: E402

MODEL = flags.DEFINE_string("model", None, "Hugging Face directory with weights and tokenizer.", required=True)
ACVA = flags.DEFINE_string("acva", "", "JSON Lines of ACVA; empty: leave it out.")
ACVA_ITEMS = flags.DEFINE_integer("acva_items", 1000, "Items of it.", lower_bound=1)
MMLU = flags.DEFINE_string("mmlu", "", "Folder of MMLU's test files (CSV); empty: leave it out.")
MMLU_EXAMPLES = flags.DEFINE_string("mmlu_examples", "", "Folder of its worked examples.")
MMLU_ITEMS = flags.DEFINE_integer("mmlu_items", 200, "Items of it.", lower_bound=1)
MMLU_SUBJECTS = flags.DEFINE_integer("mmlu_subjects", 57, "The first subjects that they are drawn from.", lower_bound=1)
CORES = flags.DEFINE_integer("cores", 2, "CPU cores to use.", lower_bound=1)
BATCH = flags.DEFINE_string("batch", "16", "lm_eval's batch size; `auto` looks for the largest, which is timed too.")
THEIRS = flags.DEFINE_bool("theirs", True, "Also time lm_eval's model.")


def requests_of(directory: Path) -> dict[str, list[Any]]:
    """Suite -> the harness's requests."""
    import shutil

    from lm_eval.tasks import TaskManager

    from allam_jax.evaluation.harness_tasks import write_suite
    from allam_jax.evaluation.settings import SuiteSettings
    from allam_jax.settings import read
    from configs.suites.arabic import get_config

    found: dict[str, list[Any]] = {}
    given = {}
    if ACVA.value:
        given["acva"] = get_config(f"full?acva={ACVA.value}&items={ACVA_ITEMS.value}").harness.suites.acva
    if MMLU.value:
        chosen = sorted(Path(MMLU.value).glob("*.csv"))[: MMLU_SUBJECTS.value]
        (directory / "mmlu").mkdir()
        for file in chosen:
            shutil.copy(file, directory / "mmlu")
        inputs = f"mmlu={directory / 'mmlu'}&mmlu_examples={MMLU_EXAMPLES.value}&shots=5&items={MMLU_ITEMS.value}"
        given["mmlu_ar"] = get_config(f"full?{inputs}&letters=latin").harness.suites.mmlu_ar
    for name, config in given.items():
        tasks = directory / name
        tasks.mkdir()
        written = write_suite(name, read(SuiteSettings, config), directory=tasks, seed=0, permuted=False)
        manager = TaskManager(include_path=str(tasks), include_defaults=False)
        found[name] = []
        for task in manager.load(list(written.tasks))["tasks"].values():
            task.set_fewshot_seed(seed=0)
            task.build_all_requests(rank=0, world_size=1)
            found[name] += task.instances
    return found


def ours() -> Any:
    """Our adapter on the model."""
    import jax

    from allam_jax.evaluation.harness_model import HarnessModel
    from allam_jax.evaluation.likelihood import Likelihood
    from allam_jax.evaluation.settings import LikelihoodSettings
    from allam_jax.model.llama_config import ComputeOptions
    from allam_jax.parallel.mesh import make_mesh
    from allam_jax.tokenizer.tokenizer import Tokenizer
    from allam_jax.weights.huggingface import import_huggingface

    mesh = make_mesh({}, devices=jax.devices("cpu")[:1])
    params, config = import_huggingface(Path(MODEL.value), mesh=mesh)
    likelihood = Likelihood(params, config=config, options=ComputeOptions(), settings=LikelihoodSettings(), mesh=mesh)
    return HarnessModel(
        Tokenizer.load(MODEL.value), likelihood=likelihood, engine=_no_engine, template=None, max_new_tokens=1
    )


def _no_engine() -> Any:
    raise NotImplementedError("these tasks generate nothing")


def main(argv: list[str]) -> None:
    """Prints both sides' speeds, and all numbers as JSON."""
    if len(argv) > 1:
        raise app.UsageError("no arguments besides flags")
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", JAX_PLATFORMS="cpu")
    pin(CORES.value)
    logging.set_verbosity(logging.WARNING)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        suites = requests_of(Path(folder))
        model = ours()
        for name, requests in suites.items():
            items = len({(request.task_name, request.doc_id) for request in requests})
            seconds, scores = [], []
            for _ in range(2):
                start = time.perf_counter()
                scores = model.loglikelihood(requests)
                seconds.append(time.perf_counter() - start)
            work = model.likelihood_path.work
            result[name] = {"items": items, "ours_with_compilation_s": seconds[0], "ours_s": seconds[1]}
            result[name]["tokens_shared"] = 1 - work.computed / work.tokens
            result[name]["padding"] = 1 - work.computed / work.places
            model.likelihood_path.work = type(work)()
            print(f"{name}: {items / seconds[1]:.2f} items/s, {items / seconds[0]:.2f} with compilation", flush=True)
            if THEIRS.value:
                result[name] |= theirs(requests, items=items, scores=scores, seconds=seconds)
    print(json.dumps(result))


def theirs(
    requests: list[Any], *, items: int, scores: list[tuple[float, bool]], seconds: list[float]
) -> dict[str, Any]:
    """Times lm_eval's model on the same requests, and compares the scores."""
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=MODEL.value, dtype="float32", device="cpu", batch_size=BATCH.value)
    start = time.perf_counter()
    expected = model.loglikelihood(requests, disable_tqdm=True)
    taken = time.perf_counter() - start
    largest = max(abs(a - b) for (a, _), (b, _) in zip(scores, expected, strict=True))
    print(
        f"  lm_eval: {items / taken:.2f} items/s; ours is {taken / seconds[1]:.2f} x; difference at most {largest:.1e}"
    )
    return {"theirs_s": taken, "ratio": taken / seconds[1], "ratio_with_compilation": taken / seconds[0]} | {
        "largest_difference": largest
    }


if __name__ == "__main__":
    app.run(main)
