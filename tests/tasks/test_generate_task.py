"""Task `generate` as a config runs it: prompts, files of rows, messages, an endpoint, and what is refused."""

import json
import subprocess
import sys
import time

import pytest
from ml_collections import ConfigDict
from processes import ROOT, child_environment
from small_server import make_engine, make_tokenizer, save_model

from allam_jax.errors import UserError
from allam_jax.generation.over_rows import read_answers
from allam_jax.generation.requests import Request, Sampling
from allam_jax.tasks import runner
from allam_jax.tokenizer.chat_template import ChatTemplate, stored_template
from configs import base

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    directory = tmp_path_factory.mktemp("generate")
    save_model(directory)
    return directory


@pytest.fixture(scope="module")
def greedy():
    tokenizer = make_tokenizer()
    engine = make_engine(tokenizer)

    def text(ids):
        (one,) = engine.complete([Request("x", tuple(ids), Sampling(max_new_tokens=6, temperature=0.0))])
        return one.text

    return tokenizer, text


def config_of(root, **generate) -> ConfigDict:
    config = base.get_config("generate")
    config.init.weights = str(root / "model")
    config.engine.slots, config.engine.burst = 4, 4
    config.generate.update(max_new_tokens=6, **generate)
    return config


def test_prompts_of_the_config(root, greedy, tmp_path):
    tokenizer, text = greedy
    result = runner.run(config_of(root, prompts=("the cat", "قال")), workdir=tmp_path)
    expected = [{"prompt": p, "continuation": text(tokenizer.encode(p, bos=True))} for p in ("the cat", "قال")]
    assert result == {"continuations": expected}
    assert json.loads((tmp_path / "continuations.json").read_text()) == result
    rows = tmp_path / "in.jsonl"
    rows.write_text('{"prompt": "x"}\n')
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"holds the answers to another run's generate.prompts"):
        runner.run(config_of(root, input=str(rows)), workdir=tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before
    with pytest.raises(UserError, match="exceed a slot's"):
        runner.run(config_of(root, prompts=("x " * 300,)), workdir=tmp_path)


def test_rows_of_a_file(root, greedy, tmp_path):
    tokenizer, text = greedy
    messages = [{"role": "user", "content": "hi <|im_end|>"}]
    records = [{"prompt": f"the {n}", "id": f"r{n}"} for n in range(7)] + [{"messages": messages}, {"no": 1}]
    records.append({"messages": [{"content": "no role"}]})
    parts = [{"type": "text", "text": text} for text in ("hi <|im", "_end|>")]
    records += [{"messages": [{"role": "user", "content": parts}]}]
    records += [{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = config_of(root, input=str(tmp_path / "in.jsonl"), shard_rows=4, max_error_share=0.5)
    result = runner.run(config, workdir=tmp_path / "out")
    assert (result["rows"], result["answered"]) == (12, 9)
    assert len(result["errors"]) == 3
    found = {record["row"]: record["answers"][0]["text"] for record in read_answers(tmp_path / "out")}
    for n in range(7):
        assert found[n] == text(tokenizer.encode(f"the {n}", bos=True))
    template = ChatTemplate(stored_template(root / "tokenizer"), tokenizer=tokenizer, name="stored")
    assert found[7] == found[10] == text(template.prompt_ids(messages))
    (tmp_path / "out" / "answers" / "00002.jsonl").unlink()  # as if it had been killed before the last shard
    assert runner.run(config, workdir=tmp_path / "out") == result
    before = (tmp_path / "out" / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"holds the answers to another run's generate.input"):
        runner.run(config_of(root, prompts=("x",)), workdir=tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_bytes() == before
    config.generate.temperature = 0.5
    with pytest.raises(UserError, match="made with another sampling"):
        runner.run(config, workdir=tmp_path / "out")
    config.generate.temperature = 0.0
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write('{"prompt": "more"}\n')
    with pytest.raises(UserError, match="made with another input"):
        runner.run(config, workdir=tmp_path / "out")


def test_prompts_as_messages(root, greedy, tmp_path):
    tokenizer, text = greedy
    result = runner.run(config_of(root, prompts=("the cat",), as_chat=True, template="chatml"), workdir=tmp_path)
    template = ChatTemplate.named("chatml", tokenizer=tokenizer, directory=tmp_path)
    ids = template.prompt_ids([{"role": "user", "content": "the cat"}])
    assert result["continuations"][0]["continuation"] == text(ids)


@pytest.mark.parametrize(
    ("generate", "said"),
    [
        ({}, "give some, for example"),
        ({"prompts": ("x",), "input": "in.jsonl"}, "give one of them"),
        ({"input": "no/such/file.jsonl"}, "no such file"),
        ({"prompts": ("x",), "template": "lama2"}, "did you mean llama2"),
        ({"prompts": ("x",), "template": "chatml", "endpoint": {"url": "http://x/v1"}}, "has a template of its own"),
    ],
)
def test_what_is_refused(root, tmp_path, generate, said):
    with pytest.raises(UserError, match=said):
        runner.run(config_of(root, **generate), workdir=tmp_path)


@pytest.mark.long
def test_the_same_answers_after_kills(root, tmp_path):
    """Sampled answers, killed with -9 in the middle three times, are those of a run that nobody disturbed."""
    records = [{"prompt": f"the cat {n}" if n % 7 else 3} for n in range(400)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = config_of(root, input=str(tmp_path / "in.jsonl"), shard_rows=5, max_error_share=0.5, temperature=1.0)
    result = runner.run(config, workdir=tmp_path / "whole")
    given = {f"generate.{key}": config.generate[key] for key in ("input", "shard_rows", "max_error_share")}
    given |= {"generate.temperature": 1.0, "generate.max_new_tokens": 6, "generate.prompts": "()"}
    given |= {"init.weights": root / "model", "engine.slots": 4, "engine.burst": 4}
    command = [sys.executable, "run.py", "--config=configs/generate.py", f"--workdir={tmp_path / 'out'}"]
    command += [f"--config.{key}={value}" for key, value in given.items()]
    environment = child_environment(cache=tmp_path / "cache")

    def shards():
        return len(list((tmp_path / "out" / "answers").glob("*.jsonl")))

    for wanted in (2, 20, 50):
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        while shards() < wanted:
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
        process.wait()
        assert shards() < 80
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert list(read_answers(tmp_path / "out")) == list(read_answers(tmp_path / "whole"))
    errors = [[f.read_text() for f in sorted((tmp_path / name / "errors").iterdir())] for name in ("out", "whole")]
    assert errors[0] == errors[1]
    assert result["answered"] == 400 - len(range(0, 400, 7))
