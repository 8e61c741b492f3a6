"""`run.py --config.task=plan` from the outside: files, figures, and one line for what the user can fix."""

import json
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from allam_jax.errors import UserError
from allam_jax.model.llama import abstract_params
from allam_jax.model.llama_config import preset
from allam_jax.parallel.gpus import GPUS
from allam_jax.planning.gpu_cluster import EFFICIENCIES
from allam_jax.tasks import plan, plan_rewrite
from allam_jax.tasks.registry import settings_of
from allam_jax.weights.directory import save_weights
from configs import base, rewrite
from tests.planning.small_runs import small_config
from tests.small_models import SMALL

ROOT = Path(__file__).resolve().parents[2]


def large_config(**mesh: int):
    """Llama-2 13B on two nodes of A100."""
    config = base.get_config("plan")
    config.model = base.model(preset("llama2_13b"))
    config.compute.update(compute_dtype="bfloat16", remat="dots")
    config.mesh.update(**mesh)
    config.data.update(seq_len=4096, batch_size=64)
    config.train.update(steps=1000, loss_chunks=8)
    config.plan.update(gpu="a100", nodes=2, compile=False)
    return config


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def test_a_plan_by_formula(tmp_path):
    config = large_config(data=1, fsdp=16, tensor=1)
    config.train.accumulation = 4
    result = plan.run(settings_of(config), tmp_path)
    saved = json.loads((tmp_path / "plan.json").read_text())
    report = (tmp_path / "plan.md").read_text()
    assert min(png_size(tmp_path / "plan.png")) > 300

    assert saved["training"]["tokens"] == 1000 * 64 * 4096
    seconds = saved["seconds"]
    parts = sum(seconds[name] for name in ("matmul", "attention", "memory", "tensor", "exposed"))
    assert seconds["total"] == pytest.approx(parts)
    assert saved["tokens_per_second_per_gpu"] == pytest.approx(64 * 4096 / seconds["total"] / 16)
    days = 1000 * seconds["total"] / 86400
    assert saved["training"]["days"] == pytest.approx(days)
    assert saved["training"]["gpu_hours"] == pytest.approx(days * 24 * 16)
    megawatt_hours = days * 24 * 16 * 812.5 * 0.75 * 1.25 / 1e6
    assert saved["training"]["megawatt_hours"] == pytest.approx(megawatt_hours)
    # 6 for each of 12.85 B matmul parameters, and causal attention
    model = 6 * (40 * (4 * 5120**2 + 3 * 5120 * 13824) + 5120 * 32000) + 6 * 40 * 5120 * 4096
    # The cache of a token: keys and values of 40 layers, 5 of 40 heads of 128 on each of 8 GPUs, 2 bytes each.
    token = 2 * 40 * 5 * 128 * 2
    weights = 2 * preset("llama2_13b").num_parameters / 8
    slots = int((saved["memory"]["usable"] - weights) // (token * 4096))
    assert "| a token in the cache | 100 KiB |" in report
    assert f"| slots of 4,096 tokens that fit | {slots:,} |" in report
    assert saved["mfu"] == pytest.approx(model * 64 * 4096 / 16 / (seconds["total"] * 312e12))
    memory = saved["memory"]
    assert memory["fits"]
    assert memory["total"] + memory["headroom"] == memory["usable"]
    assert result["step_seconds"] == pytest.approx(seconds["total"], abs=1e-3)
    factor = 1 + EFFICIENCIES["A100"].error
    band = [seconds["total"] / factor, seconds["total"] * factor]
    assert seconds["band"] == pytest.approx(band)
    assert result["step_seconds_band"] == pytest.approx(band, abs=1e-3)
    assert f"{seconds['total']:.2f} s, between {band[0]:.2f} and {band[1]:.2f} s" in report
    assert f"| days | {days:.1f}, between " in report
    assert "formulas alone" in report


def test_a_budget_of_tokens(tmp_path):
    config = large_config(data=1, fsdp=16, tensor=1)
    config.train.accumulation = 4
    config.plan.tokens = 2_000_000_000
    plan.run(settings_of(config), tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text())["training"]["steps"] == pytest.approx(2e9 / (64 * 4096))


def test_the_weights_to_start_from_decide_the_shapes(tmp_path, caplog):
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_params(SMALL))
    save_weights(tmp_path / "weights", params=params, config=SMALL)
    config = small_config(data=8)
    plan.run(settings_of(config), tmp_path / "stated")
    config.model.update(num_layers=SMALL.num_layers + 3, dim=2 * SMALL.dim)
    config.init.weights = str(tmp_path / "weights")
    plan.run(settings_of(config), tmp_path / "stored")
    stated, stored = (json.loads((tmp_path / name / "plan.json").read_text()) for name in ("stated", "stored"))
    assert stored["memory"] == stated["memory"]
    assert stored["seconds"] == stated["seconds"]
    config.init.weights = str(tmp_path / "elsewhere")
    plan.run(settings_of(config), tmp_path / "absent")
    assert "elsewhere: not here, so the plan takes the shapes of config.model" in caplog.text
    absent = json.loads((tmp_path / "absent" / "plan.json").read_text())
    assert absent["memory"]["total"] > stated["memory"]["total"]


def test_what_does_not_fit_names_what_does(tmp_path):
    config = large_config(data=1, fsdp=16, tensor=1)
    with pytest.raises(UserError) as error:
        plan.run(settings_of(config), tmp_path)
    message = str(error.value)
    assert "\n" not in message
    needed, available = map(float, re.search(r"needs ([\d.]+) of ([\d.]+) GiB", message).groups())
    assert needed > available
    (override,) = re.findall(r"--config\.(\S+)=(\S+)", message)
    assert (tmp_path / "plan.md").is_file()

    # The remedy works.
    section, _, key = override[0].rpartition(".")
    value = override[1]
    config[section][key] = int(value) if value.isdigit() else value
    assert plan.run(settings_of(config), tmp_path / "again")["memory_gib"] <= available


def test_search(tmp_path):
    config = large_config(data=1, fsdp=16, tensor=1)
    config.plan.search = True
    result = plan.run(settings_of(config), tmp_path)
    saved = json.loads((tmp_path / "plan.json").read_text())
    times = [each["seconds"]["total"] for each in saved["candidates"]]
    assert len(times) > 3
    assert times == sorted(times)
    assert result["step_seconds"] == pytest.approx(times[0], abs=1e-3)
    for each in saved["candidates"]:
        layout = each["layout"]
        assert each["memory"]["fits"]
        assert layout["data"] * layout["fsdp"] * layout["tensor"] == 16
        shards = layout["data"] * layout["fsdp"]
        assert shards * layout["rows_per_shard"] * layout["accumulation"] == 64
    assert "Layouts that fit" in (tmp_path / "plan.md").read_text()


def test_search_mends_a_batch_that_does_not_suit_the_mesh(tmp_path):
    config = large_config(data=1, fsdp=16, tensor=1)
    config.train.accumulation = 3
    with pytest.raises(UserError, match="batch_size = 64 is not a multiple of 48"):
        plan.run(settings_of(config), tmp_path)
    config.plan.search = True
    assert plan.run(settings_of(config), tmp_path)["memory_gib"] > 0


def test_nothing_fits_anywhere(tmp_path):
    config = large_config(data=1, fsdp=16, tensor=1)
    config.plan.update(search=True, memory_gib=8.0)
    with pytest.raises(UserError, match="no mesh, remat policy or accumulation of this batch fits on 16"):
        plan.run(settings_of(config), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.vocab_size": 0}, "config.model.vocab_size = 0: a plan opens no tokenizer"),
        ({"mesh.fsdp": 3}, "the sizes multiply to 3, but there are 8 device"),
        ({"data.batch_size": 12}, "batch_size = 12 is not a multiple of 8"),
        ({"model.mlp_dim": 50, "mesh.data": 2, "mesh.tensor": 4}, "not divisible by 4 (mesh tensor)"),
        ({"plan.gpu": "tpu"}, "config.plan.gpu = 'tpu'"),
    ],
)
def test_errors(tmp_path, changes, message):
    config = small_config(data=8, fsdp=1, tensor=1)
    if "mesh.fsdp" in changes:
        config.mesh.data = 1
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        config[section][name] = value
    with pytest.raises(UserError, match=re.escape(message)):
        plan.run(settings_of(config), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_from_the_command_line(tmp_path):
    """No tokenizer, no data, no devices; without the compiler's wheels, one line that says what to install."""
    command = [
        *(sys.executable, "run.py", "--config", "tests/planning/command.py", "--workdir", str(tmp_path)),
        "--config.task=plan",
    ]
    done = subprocess.run([*command, "--config.plan.compile=False"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["compiled"] is False

    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    last = done.stderr.strip().splitlines()[-1]
    if done.returncode:  # the usual case: this environment has no CUDA plugin
        assert done.returncode == 2
        assert re.match(r"error: .*(pip install|JAX_PLATFORMS).*config\.plan\.compile=False", last)
    else:
        assert json.loads(done.stdout)["compiled"] is True


@pytest.mark.parametrize("gpu", GPUS)
def test_every_known_gpu_can_be_planned_for(tmp_path, gpu):
    config = large_config(data=1, fsdp=16, tensor=1)
    config.model = base.model(preset("1b"))
    config.plan.gpu = gpu
    config.train.accumulation = 4
    result = plan.run(settings_of(config), tmp_path)
    saved = json.loads((tmp_path / "plan.json").read_text())
    assert GPUS[gpu].name in saved["cluster"]["description"]
    assert saved["assumptions"]["peak_flops"] == GPUS[gpu].peak_flops["bfloat16"]
    assert 0 < result["mfu"] < 0.67  # no more than the share that matrix products reach


@pytest.mark.parametrize("gpu", [name for name, gpu in GPUS.items() if not gpu.target])
def test_what_the_compiler_has_no_description_of_is_planned_by_formulas_alone(tmp_path, gpu):
    config = small_config(data=8, fsdp=1, tensor=1)
    config.plan.update(gpu=gpu, compile=True)
    with pytest.raises(UserError, match=f"{GPUS[gpu].name}: .*set config.plan.compile=False"):
        plan.run(settings_of(config), tmp_path)


def test_a_preference_run_with_and_without_a_live_reference(tmp_path):
    """A cached reference adds one number a token; a live one a copy of the weights and two forward passes."""
    config = large_config(data=1, fsdp=16, tensor=1)
    config.train.accumulation = 4
    plain = plan.run(settings_of(config), tmp_path / "train")
    config.plan.preference = "cached"
    cached = plan.run(settings_of(config), tmp_path / "cached")
    assert cached["memory_gib"] == pytest.approx(plain["memory_gib"], abs=0.02)
    assert cached["step_seconds"] == plain["step_seconds"]
    config.plan.preference = "live"
    live = plan.run(settings_of(config), tmp_path / "live")["live_reference"]
    weights = json.loads((tmp_path / "live" / "plan.json").read_text())["model"]["parameters"] * 4
    assert live["gib"] == pytest.approx(weights / 16 / 2**30, rel=0.01)
    assert live["seconds"] == pytest.approx(2 / 3 * plain["step_seconds"], rel=0.01)
    assert "Live reference" in (tmp_path / "live" / "plan.md").read_text()
    config.plan.memory_gib = cached["memory_gib"] / 0.92 + 1
    with pytest.raises(UserError, match=r"plan.preference = live: the second copy of the weights takes .* to cached"):
        plan.run(settings_of(config), tmp_path / "small")


def rewrite_config(argument="plan", **changed):
    config = rewrite.get_config(argument)
    config.rewrite_plan.update(gpu="h100", nodes=2, **changed)
    return config


def test_gpu_hours_to_rewrite_a_corpus_by_hand(tmp_path):
    """Qwen3-4B on two nodes of H100, from its matrices: what is read, multiplied and kept."""
    config = rewrite_config(slots=200)
    result = plan_rewrite.run(settings_of(config), tmp_path)
    file = tomllib.loads((ROOT / "configs" / "instructions" / "rewrite.toml").read_text())
    listed = {language: "\n".join(f"- {one}" for one in of.values()) for language, of in file["guidelines"].items()}
    prompts = [text.strip().replace("{guidelines}", listed[language]) for language, text in file["prompts"].items()]
    prompt = 400 + max(math.ceil(len(text.encode()) / 3) for text in prompts)
    answer, texts = 400, 10e9 / 400 * 1.1
    layer = 2560 * 128 * (32 + 8 + 8 + 32) + 3 * 2560 * 9728
    head = 151_936 * 2560
    parameters = 36 * layer + head + 36 * (2 * 2560 + 2 * 128) + 2560  # the head is the embedding
    assert parameters == 4_022_468_096  # as its authors state
    flops, bandwidth = 989.4e12 * 0.85, 3.352e12 * 0.6
    token = 2 * 36 * 8 * 128 * 2
    assert result["slots_that_fit"] == int((84_942_979_072 * 0.92 - 2 * parameters) // (token * 2048))
    prefill = 2 * 36 * layer * prompt / flops + 36 * 2 * 32 * 128 * prompt**2 / (989.4e12 * 0.558)
    assert result["prefill_seconds"] == pytest.approx(prefill, rel=1e-6)
    cached = (prompt + answer / 2) * token * 200
    step = max(2 * (36 * layer + head) * 200 / flops, 2 * parameters / bandwidth) + cached / bandwidth
    assert result["step_seconds"] == pytest.approx(step, rel=1e-6)
    seconds = prefill + (answer + 7.5) * step / 200
    assert result["gpu_hours"] == pytest.approx(texts * seconds / 3600, rel=1e-4)
    assert result["hours"] == pytest.approx(result["gpu_hours"] / 16, abs=0.01)
    assert result["answer_tokens_per_second_per_gpu"] == pytest.approx(answer / seconds, abs=0.06)
    assert result["answer_tokens"] == round(texts * answer)
    report = (tmp_path / "plan.md").read_text()
    assert f"| GPU hours | {result['gpu_hours']:,.0f} |" in report
    assert "| copies of the worker | 16, each on 1 GPU |" in report


def test_sentences_and_copies_over_several_gpus(tmp_path):
    """Prompts are mostly instruction where pieces are sentences; several GPUs make a step faster and cost more."""
    whole = plan_rewrite.run(settings_of(rewrite_config()), tmp_path)
    sentences = plan_rewrite.run(settings_of(rewrite_config("plan_translate")), tmp_path)
    assert sentences["answer_tokens"] == whole["answer_tokens"]
    assert sentences["prompt_tokens"] > 2.5 * whole["prompt_tokens"]
    assert sentences["gpu_hours"] > whole["gpu_hours"]
    one, four = (plan_rewrite.run(settings_of(rewrite_config(slots=64, gpus_per_copy=n)), tmp_path) for n in (1, 4))
    assert four["step_seconds"] < one["step_seconds"]
    assert four["gpu_hours"] > one["gpu_hours"]


def test_a_small_corpus_does_not_fill_the_slots(tmp_path):
    """40 texts for each of 16 copies take as long as with 40 slots; one text takes as long as it takes."""
    tokens = round(16 * 40 * 400 / 1.1)
    small = plan_rewrite.run(settings_of(rewrite_config(tokens=tokens)), tmp_path)
    assert "that fit, 40 with a text" in (tmp_path / "plan.md").read_text()
    fitting = plan_rewrite.run(settings_of(rewrite_config(tokens=tokens, slots=40)), tmp_path)
    assert small["slots"] == small["slots_that_fit"] > 40
    assert {**small, "slots": 40} == fitting
    plan = plan_rewrite.planned(settings_of(rewrite_config(tokens=tokens)))
    assert plan.hours * 3600 == pytest.approx(40 * plan.prefill_seconds + (400 + 7.5) * plan.step_seconds, rel=1e-3)
    plan = plan_rewrite.planned(settings_of(rewrite_config(tokens=100)))
    assert plan.hours * 3600 == pytest.approx(plan.prefill_seconds + (400 + 7.5) * plan.step_seconds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": 10_000}, "10,000 slots of 2,048 tokens do not fit beside 7.5 GiB of weights: "),
        ({"memory_gib": 5.0}, "1 slots of 2,048 tokens do not fit beside 7.5 GiB of weights: 0 do"),
        ({"gpus_per_copy": 3}, "gpus_per_copy = 3: expected a divisor of gpus_per_node = 8"),
        ({"gpus_per_node": 7, "gpus_per_copy": 7}, "gpus_per_copy = 7: does not cut the worker: parameter "),
        ({"capacity": 900}, "capacity = 900: an average prompt with its answer has "),
        ({"instruction": ""}, "rewrite_plan.instruction"),
        ({"capacity": 1 << 20}, "capacity = 1,048,576: the worker's context is 40,960 tokens; lower it"),
    ],
)
def test_a_rewrite_that_cannot_be_planned(tmp_path, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        plan_rewrite.run(settings_of(rewrite_config(**changes)), tmp_path)
    assert not list(tmp_path.iterdir())
