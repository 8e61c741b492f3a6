"""Rows answered by a server with OpenAI's API, which misbehaves in every way."""

import collections
import http.server
import json
import threading
import time
from email.utils import formatdate

import pytest
from mapped_rows import mapped, rows_of
from scripted_server import ScriptedServer

from allam_jax.errors import UserError
from allam_jax.generation.endpoint import EndpointBackend
from allam_jax.generation.over_rows import read_answers
from allam_jax.generation.requests import Sampling
from allam_jax.generation.rows import Prompt
from allam_jax.generation.settings import EndpointSettings


class Endpoint(ScriptedServer):
    """Answers as its script says: row text -> what it does at each attempt."""

    def __init__(self):
        super().__init__(_Handler)
        self.script = {}
        self.seen = collections.defaultdict(list)  # text -> (time, body, headers)
        self.under_way = self.most = 0
        self.guard = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()


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


def test_more_stop_texts_than_servers_take(endpoint, tmp_path, monkeypatch):
    """OpenAI's API takes four; the answer ends before the first of all of them, wherever it stands in the list."""
    stops = ("one", "two", "three", "four", " five", " six")
    backend = asking(endpoint, monkeypatch, sampling=Sampling(max_new_tokens=9, temperature=0.0, stop_texts=stops))
    assert backend.describe()["sampling"]["stop"] == list(stops)
    mapped([Prompt(0, "a six and five"), Prompt(1, "a")], backend, tmp_path)
    assert endpoint.seen["a"][0][1]["stop"] == list(stops[:4])
    found = [record["answers"][0] for record in read_answers(tmp_path)]
    assert [(one["text"], one["finish_reason"]) for one in found] == [("re: a", "stop"), ("re: a", "length")]


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
    assert reason == f"{given} answers instead of the {asked} asked for as n"
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
