"""Rows through a model: order, resumption after kill -9, errors, and endpoints that misbehave."""

import collections
import dataclasses
import http.server
import itertools
import json
import os
import random
import signal
import threading
import time
from email.utils import formatdate

import pyarrow
import pyarrow.parquet
import pytest
from small_server import make_engine, make_tokenizer

from allam_jax.corpus.document import Document
from allam_jax.corpus.shards import write_dataset
from allam_jax.errors import UserError
from allam_jax.generation.endpoint import EndpointBackend
from allam_jax.generation.engine_backend import EngineBackend
from allam_jax.generation.over_rows import Choice, RowAnswer, over_rows, read_answers
from allam_jax.generation.requests import Request, Sampling
from allam_jax.generation.rows import Prompt, PromptRows
from allam_jax.generation.settings import EndpointSettings


class Echo:
    """A backend that repeats the prompt, with as many rows ahead as it likes."""

    def __init__(self, *, ahead=7, delay=0.0, kind="echo"):
        self.ahead, self.delay, self.kind, self.asked = ahead, delay, kind, []

    def describe(self):
        return {"model": self.kind}

    def answers(self, prompts):
        prompts = iter(prompts)
        while some := list(itertools.islice(prompts, self.ahead)):
            for prompt in some:
                self.asked.append(prompt.row)
                time.sleep(self.delay)
                yield RowAnswer(error="odd") if prompt.asked == "odd" else RowAnswer((Choice(prompt.asked, "stop", 1),))


def rows_of(count, *, bad=()):
    return [Prompt(n, f"row {n}", {"id": f"i{n}"}, "a row not JSON" if n in bad else "") for n in range(count)]


def mapped(rows, backend, directory, **given):
    settings = {"identity": {"input": "x"}, "shard_rows": 10, "max_error_share": 0.5}
    return over_rows(rows, total=len(rows), backend=backend, directory=directory, **(settings | given))


def numbers(directory):
    """Row numbers of answers and of errors."""
    errors = [json.loads(line) for f in sorted((directory / "errors").iterdir()) for line in f.open()]
    return [record["row"] for record in read_answers(directory)], [record["row"] for record in errors]


def test_rows_keep_their_order_and_errors_lie_beside(tmp_path):
    result = mapped(rows_of(37, bad={0, 4, 5, 9, 10, 36}), Echo(), tmp_path)
    assert result == {"rows": 37, "answered": 31, "errors": {"a row not JSON": 6}}
    answered, errors = numbers(tmp_path)
    assert errors == [0, 4, 5, 9, 10, 36]
    assert answered == [n for n in range(37) if n not in errors]
    record = list(read_answers(tmp_path))[3]
    assert record == {
        "row": 6,
        "id": "i6",
        "prompt": "row 6",
        "answers": [{"text": "row 6", "finish_reason": "stop", "tokens": 1}],
        "prompt_tokens": 0,
    }
    assert sorted(file.name for file in (tmp_path / "answers").iterdir()) == [f"0000{n}.jsonl" for n in range(4)]
    again = Echo()
    assert mapped(rows_of(37, bad={0, 4, 5, 9, 10, 36}), again, tmp_path) == result
    assert again.asked == []


@pytest.mark.parametrize("count", [0, 1, 10, 11])
def test_any_number_of_rows(tmp_path, count):
    assert mapped(rows_of(count), Echo(), tmp_path)["answered"] == count
    assert numbers(tmp_path) == (list(range(count)), [])


def test_no_row_is_missing_or_twice_after_kills(tmp_path):
    """The process is killed six times, each a moment after it has written a shard, and then ends by itself."""
    count, kills = 200, 6
    rows, rng = rows_of(count, bad=range(0, count, 9)), random.Random(3)
    for kill in range(1, kills + 1):
        if (pid := os.fork()) == 0:
            mapped(rows, Echo(delay=0.001), tmp_path)
            os._exit(0)
        while len(list(tmp_path.glob("answers/?????.jsonl"))) < 2 * kill:
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.02))
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    last = Echo()
    mapped(rows, last, tmp_path)
    assert 0 < len(last.asked) < count - 20 * kills
    answered, errors = numbers(tmp_path)
    assert errors == list(range(0, count, 9))
    assert sorted(answered + errors) == list(range(count))
    assert not [name for name in os.listdir(tmp_path / "answers") if name.startswith(".")]


def test_another_model_or_input_is_refused(tmp_path):
    mapped(rows_of(5), Echo(), tmp_path)
    with pytest.raises(UserError, match="made with another model"):
        mapped(rows_of(5), Echo(kind="other"), tmp_path)
    with pytest.raises(UserError, match="made with another input and shard_rows"):
        mapped(rows_of(5), Echo(), tmp_path, identity={"input": "y"}, shard_rows=3)


def test_too_many_errors_end_the_run_and_lose_nothing(tmp_path):
    rows = [Prompt(n, "odd" if n >= 20 else "x") for n in range(100)]
    with pytest.raises(UserError, match=r"20 of 40 rows have no answer \(20 odd"):
        mapped(rows, Echo(), tmp_path, max_error_share=0.4)
    assert numbers(tmp_path) == (list(range(20)), list(range(20, 40)))


def test_a_few_rows_that_are_all_errors_end_the_run(tmp_path):
    with pytest.raises(UserError, match=r"3 of 3 rows have no answer \(3 a row not JSON; all are in"):
        mapped(rows_of(3, bad=range(3)), Echo(), tmp_path)
    assert mapped(rows_of(3, bad=range(2)), Echo(), tmp_path / "one")["answered"] == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("3 tokens and 1,024 more: too long", "N tokens and N more"),
        ("status 503: busy", "status 503"),
        ("/data/v2/chat template: no role 'tool' here: 3", "no role 'tool' here"),
        ("in/loop.jinja: takes more than 1 s", "takes more than N s"),
    ],
)
def test_reasons_are_counted_by_their_kind(tmp_path, error, kind):
    found = mapped([Prompt(n, "x", problem=error if n else "") for n in range(2)], Echo(), tmp_path)["errors"]
    assert found == {kind: 1}


def test_a_kept_field_replaces_none_of_an_answers_own(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "row": 99}\n')
    with pytest.raises(UserError, match="generate.keep: answers have fields of their own called error, row"):
        PromptRows(str(tmp_path), split="train", field="prompt", keep=("row", "error", "x"))


# -- what rows are read from -------------------------------------------------------------------------------------------

RECORDS = [
    {"prompt": "مرحبا", "id": 7, "topic": "x"},
    {"messages": [{"role": "user", "content": "hi"}]},
    {"text": "no prompt"},
    {"prompt": 3},
    {"messages": "hi"},
    {"prompt": "half \ud83d"},
    {"prompt": "x", "topic": ["half \ud83d"]},
]


def test_jsonl_rows(tmp_path):
    lines = [json.dumps(record) for record in RECORDS] + ["{", "3"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    rows = PromptRows(str(tmp_path), split="train", field="prompt", keep=("topic",))
    found = list(rows)
    assert len(rows) == len(found) == 9
    assert found[0] == Prompt(0, "مرحبا", {"id": 7, "topic": "x"})
    assert found[1].asked == RECORDS[1]["messages"]
    problems = [
        "no field 'prompt' and no 'messages': the row has text",
        "is not a string",
        "no list",
        "invalid Unicode",
        "invalid Unicode",
        "not JSON",
        "not a JSON object",
    ]
    for row, said in zip(found[2:], problems, strict=True):
        assert said in row.problem


def test_parquet_rows_and_datasets(tmp_path):
    conversations = [[{"role": "user", "content": f"q{n}"}] for n in range(3)]
    table = pyarrow.table({"messages": conversations, "id": ["a", "b", "c"], "other": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"q": ["x", "y"]}), tmp_path / "p.parquet")
    not_utf8 = pyarrow.Array.from_buffers(pyarrow.string(), 2, pyarrow.array([b"good", b"\xff"]).buffers())
    mixed = pyarrow.table({"messages": [None, None], "prompt": not_utf8})
    pyarrow.parquet.write_table(mixed, tmp_path / "mixed.parquet")
    given = {"split": "train", "keep": ("other",)}
    found = list(PromptRows(str(tmp_path / "m.parquet"), field="prompt", **given))
    assert [row.asked for row in found] == conversations
    assert found[1].kept == {"id": "b", "other": 2}
    assert [row.asked for row in PromptRows(str(tmp_path / "p.parquet"), field="q", **given)] == ["x", "y"]
    first, second = PromptRows(str(tmp_path / "mixed.parquet"), field="prompt", **given)
    assert (first.asked, second.problem) == ("good", "a row with field 'prompt' with invalid UTF-8")
    documents = (Document(text=f"d{n}", id=str(n), source="s", language="en") for n in range(8))
    write_dataset(documents, directory=tmp_path / "set", name="set", validation_share=0.0)
    rows = PromptRows(str(tmp_path / "set"), field="prompt", **given)
    assert sorted(row.asked for row in rows) == [f"d{n}" for n in range(8)]
    assert [row.row for row in rows] == list(range(8))


# -- our engine --------------------------------------------------------------------------------------------------------


def test_the_engine_answers_rows_as_it_answers_alone(tmp_path):
    tokenizer = make_tokenizer()
    engine = make_engine(tokenizer)
    texts = ["the cat", "قال رسول", "x" * 400, "the dog ran", "", "sat"] * 4
    sampling = Sampling(max_new_tokens=12, temperature=1.0, samples=2, seed=5, logprobs=0)
    encode = lambda prompt: tokenizer.encode(prompt.asked, bos=True)  # noqa: E731
    backend = EngineBackend(engine, encode=encode, sampling=sampling, identity={"model": "m"})

    def answered(order, directory):
        result = mapped([Prompt(n, texts[n]) for n in order], backend, directory, max_error_share=1.0)
        return result, {record["row"]: record["answers"] for record in read_answers(directory)}

    order = list(range(len(texts)))
    result, found = answered(order, tmp_path / "a")
    assert result["answered"] == 20
    (reason,) = result["errors"]
    assert "tokens and max_new_tokens" in reason
    random.Random(0).shuffle(order)
    assert answered(order, tmp_path / "b")[1] == found  # neither the neighbours nor the order matter
    assert found[0] != found[6]  # equal prompts get other samples
    for row in (0, 1, 23):
        assert len({choice["text"] for choice in found[row]}) == 2
        assert all(len(choice["logprobs"]) == choice["tokens"] for choice in found[row])
    alone = dataclasses.replace(sampling, seed=backend.seed_of(1))
    completions = engine.complete([Request("x", tuple(tokenizer.encode(texts[1], bos=True)), alone)])
    assert [one.text for one in completions] == [choice["text"] for choice in found[1]]


# -- endpoints ---------------------------------------------------------------------------------------------------------


class Endpoint(http.server.ThreadingHTTPServer):
    """Answers as its script says: row text -> what it does at each attempt."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = {}
        self.seen = collections.defaultdict(list)  # text -> (time, body, headers)
        self.under_way = self.most = 0
        self.guard = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        endpoint = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body.get("prompt") or body["messages"][-1]["content"]
        with endpoint.guard:
            endpoint.seen[text].append((time.monotonic(), body, dict(self.headers)))
            attempt = len(endpoint.seen[text]) - 1
            endpoint.under_way += 1
            endpoint.most = max(endpoint.most, endpoint.under_way)
        try:
            steps = endpoint.script.get(text, [])
            self.act(steps[attempt] if attempt < len(steps) else "good", body, text)
        finally:
            with endpoint.guard:
                endpoint.under_way -= 1

    def act(self, step, body, text):
        if step == "hang":
            time.sleep(3)
        elif step == "close":
            self.close_connection = True
        elif step == "drip":
            self.wfile.write(b"HTTP/1.0 200 OK\r\n")
            for _ in range(40):
                time.sleep(0.1)
                self.wfile.write(b"X-Drip: 1\r\n" if text == "drips its head" else b"\r\n ")
        elif isinstance(step, bytes):
            self.reply(200, step, {})
        elif step == "html":
            self.reply(200, b"<html>\n<h1>Welcome</h1>", {"Content-Type": "text/html"})
        elif isinstance(step, tuple):
            self.reply(step[0], json.dumps({"error": {"message": f"no {step[0]}"}}).encode(), step[1])
        else:
            time.sleep(0.005)
            reason = "content_filter" if text == "filtered" else "length"
            content = {"filtered": None, "cut": "half \ud83d"}.get(text, f"re: {text}")
            choice = {"text": content} if "prompt" in body else {"message": {"role": "assistant", "content": content}}
            choices = [{"index": n, **choice, "finish_reason": reason} for n in reversed(range(body.get("n", 1)))]
            usage = {"prompt_tokens": 3, "completion_tokens": 5}
            self.reply(200, json.dumps({"choices": choices, "usage": usage}).encode(), {})

    def reply(self, status, content, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def endpoint():
    server = Endpoint()
    yield server
    server.shutdown()
    server.server_close()


def asking(endpoint, monkeypatch, *, sampling=None, **settings):
    monkeypatch.setenv("A_KEY", "sk-secret")
    given = {"url": endpoint.url, "model": "m", "key_variable": "A_KEY", "attempts": 3, "timeout": 1.0}
    settings = EndpointSettings(**(given | settings))
    return EndpointBackend(settings, sampling=sampling or Sampling(max_new_tokens=9, temperature=0.0))


def test_an_endpoint_that_misbehaves_loses_nothing(endpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("allam_jax.generation.endpoint._LONGEST_PAUSE", 0.05)
    endpoint.script = {
        "once 500": [(500, {})],
        "always 500": [(500, {})] * 9,
        "once 429": [(429, {"Retry-After": "0"})],
        "html": ["html"],
        "always html": ["html"] * 9,
        "closes": ["close"],
        "always closes": ["close"] * 9,
        "hangs": ["hang"] * 9,
        "too long": [(400, {})],
        "sk-secret": [(422, {})],
        "drips": ["drip"] * 9,
        "drips its head": ["drip"] * 9,
    }
    rows = [Prompt(n, text) for n, text in enumerate([*endpoint.script, "good", "filtered", "cut"])]
    rows.append(Prompt(len(rows), [{"role": "user", "content": "as chat"}]))
    result = mapped(rows, asking(endpoint, monkeypatch), tmp_path, max_error_share=1.0)
    errors = [json.loads(line) for f in (tmp_path / "errors").iterdir() for line in f.open()]
    found = {record["prompt"]: record["error"] for record in errors}
    drips = {"drips", "drips its head"}
    assert {found[text] for text in drips} == {"no answer: it was not whole after 1 s"}
    assert found.keys() == {"always 500", "always html", "always closes", "hangs", "too long", "sk-secret", *drips}
    assert result["answered"] == 8
    assert found["always 500"].startswith("status 500: ")
    assert found["always html"] == "no completion: <html> <h1>Welcome</h1>"
    assert found["hangs"].startswith("no answer: ")
    assert len(endpoint.seen["too long"]) == 1  # another attempt would end in the same way
    assert len(endpoint.seen["always 500"]) == 3
    answers = {json.dumps(record.get("prompt")): record["answers"][0] for record in read_answers(tmp_path)}
    assert answers['"filtered"'] == {"text": "", "finish_reason": "content_filter", "tokens": 5}
    assert answers["null"]["text"] == "re: as chat"
    assert answers['"cut"']["text"] == "half \ufffd"
    _, body, headers = endpoint.seen["good"][0]
    assert body == {"model": "m", "prompt": "good", "max_tokens": 9, "temperature": 0.0, "seed": 0}
    assert headers["Authorization"] == "Bearer sk-secret"
    everything = "".join(file.read_text() for file in tmp_path.rglob("*.json*") if "errors" not in str(file))
    assert "sk-secret" not in everything  # the key, which is the text of one row here


def test_what_is_the_same_for_all_rows_ends_the_run(endpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("allam_jax.generation.endpoint._LONGEST_PAUSE", 0.01)
    for status, said in ((401, "refuses the key"), (404, "no such model")):
        endpoint.script = {f"row {n}": [(status, {})] for n in range(50)}
        endpoint.seen.clear()
        with pytest.raises(UserError, match=said):
            mapped(rows_of(50), asking(endpoint, monkeypatch), tmp_path / str(status))
    nowhere = asking(endpoint, monkeypatch, url="http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match=r"does not answer .*run the same command again to go on"):
        mapped(rows_of(50), nowhere, tmp_path / "nowhere")
    monkeypatch.delenv("A_KEY")
    with pytest.raises(UserError, match="the environment has no A_KEY"):
        EndpointBackend(EndpointSettings(url=endpoint.url, key_variable="A_KEY"), sampling=None)
    for url in ("localhost:8000", "http://localhost:80a/v1", "http://"):
        with pytest.raises(UserError, match="expected http://"):
            EndpointBackend(EndpointSettings(url=url, key_variable=""), sampling=None)
    monkeypatch.setenv("A_KEY", "sk-\u0645")
    with pytest.raises(UserError, match="one line of ASCII"):
        EndpointBackend(EndpointSettings(url=endpoint.url, key_variable="A_KEY"), sampling=None)


def test_limits_of_an_endpoint(endpoint, tmp_path, monkeypatch):
    sampling = Sampling(max_new_tokens=9, temperature=1.0, samples=3, seed=2, stop_texts=("#",), top_k=5)
    backend = asking(endpoint, monkeypatch, sampling=sampling, concurrency=5)
    mapped(rows_of(60), backend, tmp_path / "a")
    assert 2 <= endpoint.most <= 5
    assert [len(record["answers"]) for record in read_answers(tmp_path / "a")] == [3] * 60
    assert sum(choice["tokens"] for choice in next(read_answers(tmp_path / "a"))["answers"]) == 5
    body = endpoint.seen["row 0"][0][1]
    assert (body["n"], body["seed"], body["stop"], body["top_k"]) == (3, 2, ["#"], 5)
    endpoint.seen.clear()
    mapped(rows_of(12), asking(endpoint, monkeypatch, requests_per_minute=1200), tmp_path / "b")
    times = sorted(seen[0][0] for seen in endpoint.seen.values())
    assert times[-1] - times[0] >= 11 * 0.05 - 0.02


def answered(choices, **usage):
    return json.dumps({"choices": choices, "usage": usage}).encode()


ONE = {"index": 0, "text": "x", "finish_reason": "stop"}
SENSELESS = [
    b"[" * 100_000,
    b"3",
    b'{"choices": [{"text": "x"}], "usage": {"completion_tokens": 1e999}}',
    b'{"choices": [{"text": "x"}], "usage": {"completion_tokens": NaN}}',
    b'{"choices": [{"text": "x"}], "usage": {"prompt_tokens": 1' + b"0" * 400 + b"}}",
    answered([ONE], completion_tokens=-1),
    answered([ONE], completion_tokens="5"),
    answered([ONE], prompt_tokens=True),
    b'{"choices": [{"text": "x"}], "usage": [1]}',
    answered(None),
    answered({"0": ONE}),
    answered("text"),
    answered([None]),
    answered([ONE | {"text": ["x"]}]),
    answered([ONE | {"finish_reason": {"stop": 1}}]),
    answered([ONE | {"index": "0"}]),
    answered([{"message": None}]),
    answered([{"message": {"content": 3}}]),
]


def test_senseless_answers_are_asked_for_again_and_then_errors(endpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("allam_jax.generation.endpoint._LONGEST_PAUSE", 0.01)
    monkeypatch.setattr("allam_jax.generation.endpoint._LARGEST_ANSWER", 1 << 20)
    contents = [*SENSELESS, b" " * (1 << 20) + answered([ONE])]
    endpoint.script = {f"row {n}": [content] * 9 for n, content in enumerate(contents)}
    rows = rows_of(len(contents) + 1)
    result = mapped(rows, asking(endpoint, monkeypatch, timeout=20.0), tmp_path, max_error_share=1.0)
    assert result == {"rows": len(rows), "answered": 1, "errors": {"no completion": len(contents)}}
    assert {len(endpoint.seen[f"row {n}"]) for n in range(len(contents))} == {3}


@pytest.mark.parametrize(("given", "asked"), [(1, 3), (2, 1), (0, 1)])
def test_another_number_of_answers_is_an_error(endpoint, tmp_path, monkeypatch, given, asked):
    monkeypatch.setattr("allam_jax.generation.endpoint._LONGEST_PAUSE", 0.01)
    endpoint.script = {"row 0": [answered([ONE] * given)] * 9, "row 1": [answered([ONE] * given)]}
    sampling = Sampling(max_new_tokens=9, samples=asked)
    result = mapped(rows_of(2), asking(endpoint, monkeypatch, sampling=sampling), tmp_path, max_error_share=1.0)
    (reason,) = result["errors"]
    assert reason == "N answers instead of the N asked for as n"
    assert result["answered"] == 1
    assert len(endpoint.seen["row 0"]) == 3


def test_log_probabilities_of_an_endpoint(endpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("allam_jax.generation.endpoint._LONGEST_PAUSE", 0.01)
    legacy = answered([ONE | {"logprobs": {"token_logprobs": [-1.5, -2]}}], completion_tokens=3)
    content = [{"token": "x", "logprob": -0.25}]
    chat = answered([{"message": {"content": "x"}, "finish_reason": "stop", "logprobs": {"content": content}}])
    bad = answered([ONE | {"logprobs": {"token_logprobs": [None]}}])
    empty = answered([{"message": {"content": None}, "logprobs": None}])
    endpoint.script = {"legacy": [legacy], "chat": [chat], "bad": [bad] * 9, "empty": [empty]}
    rows = [Prompt(0, "legacy"), Prompt(1, [{"role": "user", "content": "chat"}]), Prompt(2, "bad"), Prompt(3, "none")]
    rows.append(Prompt(4, [{"role": "user", "content": "empty"}]))
    sampling = Sampling(max_new_tokens=9, logprobs=0)
    result = mapped(rows, asking(endpoint, monkeypatch, sampling=sampling), tmp_path, max_error_share=1.0)
    missing = "no log-probabilities, which generate.logprobs asks for"
    assert result["errors"] == {"no completion": 1, missing: 1}
    first, second, third = (record["answers"][0] for record in read_answers(tmp_path))
    assert first == {"text": "x", "finish_reason": "stop", "tokens": 2, "logprobs": [-1.5, -2.0]}
    assert second == {"text": "x", "finish_reason": "stop", "tokens": 1, "logprobs": [-0.25]}
    assert "logprobs" not in third
    assert endpoint.seen["legacy"][0][1]["logprobs"] == 1
    assert endpoint.seen["chat"][0][1]["logprobs"] is True


@pytest.mark.parametrize("dated", [False, True])
def test_a_stated_pause_is_kept_by_all(endpoint, tmp_path, monkeypatch, dated):
    pause = formatdate(time.time() + 2, usegmt=True) if dated else "1"
    endpoint.script = {"row 0": [(429, {"Retry-After": pause})]}
    mapped(rows_of(6), asking(endpoint, monkeypatch, concurrency=1), tmp_path)
    (first, *_), (second, *_) = endpoint.seen["row 0"]
    assert second - first >= (0.5 if dated else 0.95)
    assert endpoint.seen["row 1"][0][0] >= second
