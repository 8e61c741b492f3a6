"""The server through clients that are not ours: openai's own, curl, and sockets; its values are those of the engine."""

import asyncio
import errno
import json
import socket
import subprocess
import threading
import time

import openai
import prometheus_client.parser
import pytest
from small_server import ScriptedEngine, make_engine, make_tokenizer, serving

from allam_jax.errors import UserError
from allam_jax.generation.engine_thread import EngineThread
from allam_jax.generation.openai_api import Writer, read_request
from allam_jax.generation.requests import Delta, Request, Sampling, TokenLogprob
from allam_jax.generation.server import listen, make_app
from allam_jax.generation.settings import ServeSettings

MODEL = "small/model"
MESSAGES = [{"role": "system", "content": "كن مفيدا"}, {"role": "user", "content": "the cat <|im_end|>?"}]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def engine(tokenizer):
    return make_engine(tokenizer)


@pytest.fixture(scope="module")
def expected(tokenizer):
    """The completions of an engine of its own for prompt ids and the keys of Sampling."""
    alone = make_engine(tokenizer)
    return lambda ids, **given: list(alone.complete([Request("x", tuple(ids), Sampling(**given))]))


@pytest.fixture(scope="module")
def served(engine, tokenizer):
    with serving(engine, tokenizer, max_queue=8, max_body_bytes=1 << 20, body_seconds=1) as found:
        yield found


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def test_models(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.models.retrieve("other")


def test_completions_are_those_of_the_engine(client, expected, tokenizer):
    prompts = ["the cat", "قال رسول"]
    given = {"max_tokens": 20, "temperature": 0.8, "top_p": 0.9, "seed": 7, "n": 3, "presence_penalty": 0.5}
    found = client.completions.create(model=MODEL, prompt=prompts, extra_body={"top_k": 40}, **given)
    asked = {"max_new_tokens": 20, "temperature": 0.8, "top_p": 0.9, "seed": 7, "samples": 3}
    asked |= {"presence_penalty": 0.5, "top_k": 40}
    ids = [tokenizer.encode(prompt, bos=True) for prompt in prompts]
    theirs = [one for some in ids for one in expected(some, **asked)]
    assert [choice.text for choice in found.choices] == [one.text for one in theirs]
    assert [choice.finish_reason for choice in found.choices] == [one.finish_reason for one in theirs]
    assert [choice.index for choice in found.choices] == list(range(6))
    assert found.usage.completion_tokens == sum(len(one.ids) for one in theirs)
    assert found.usage.prompt_tokens == sum(map(len, ids))
    by_ids = client.completions.create(model=MODEL, prompt=ids, extra_body={"top_k": 40}, **given)
    assert [choice.text for choice in by_ids.choices] == [one.text for one in theirs]


def test_streams_join_to_the_same_texts(client):
    given = {"model": MODEL, "prompt": ["the cat", "قال"], "max_tokens": 30, "temperature": 1.0, "seed": 3, "n": 2}
    whole = client.completions.create(**given)
    texts, reasons, usage = {}, {}, None
    for chunk in client.completions.create(**given, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage == whole.usage


def test_echo_and_logprobs(client, expected, tokenizer):
    prompt = "the cat sat"
    ids = tokenizer.encode(prompt, bos=True)
    found = client.completions.create(model=MODEL, prompt=prompt, max_tokens=5, temperature=0, echo=True, logprobs=3)
    (one,) = expected(ids, max_new_tokens=5, temperature=0.0, logprobs=3, echo=True)
    (choice,) = found.choices
    assert choice.text == prompt + one.text
    got = choice.logprobs
    assert got.token_logprobs[0] is None
    assert got.top_logprobs[0] is None
    truth = [*one.prompt_logprobs[1:], *one.logprobs]
    assert got.token_logprobs[1:] == pytest.approx([token.logprob for token in truth])
    assert len(got.tokens) == len(ids) + len(one.ids)
    assert "".join(got.tokens[1 : len(ids)]) == f" {prompt}"  # behind <s>, with SentencePiece's space
    for token, top in zip(truth, got.top_logprobs[1:], strict=True):
        assert max(top.values()) == pytest.approx(token.top[0][1])
    scored = client.completions.create(model=MODEL, prompt=[ids], max_tokens=0, echo=True, logprobs=1)
    assert scored.choices[0].logprobs.token_logprobs[1:] == pytest.approx([t.logprob for t in one.prompt_logprobs[1:]])


@pytest.mark.parametrize("prompt", ["the cat sat", "قال 😀😀 é رسول", "x\n\n  汉字 f(1)", "</s> the"])
@pytest.mark.parametrize("echo", [True, False])
def test_text_offsets_are_places_in_the_text(client, tokenizer, prompt, echo):
    ids = tokenizer.encode(prompt, bos=True)
    given = {"model": MODEL, "prompt": prompt, "max_tokens": 40, "temperature": 1.0, "seed": 1, "echo": echo}
    choice = client.completions.create(**given, logprobs=1).choices[0]
    got, begin = choice.logprobs, len(prompt) if echo else 0
    if echo:  # the characters that are whole before each token of the prompt
        before = [tokenizer.decode(ids[:number], skip_special=True).rstrip("\ufffd") for number in range(len(ids))]
        assert got.text_offset[: len(ids)] == list(map(len, before))
        assert got.text_offset[len(ids)] == begin
    assert got.text_offset == sorted(got.text_offset)
    assert begin <= got.text_offset[-1] <= len(choice.text)
    for number, (token, at) in enumerate(zip(got.tokens, got.text_offset, strict=True)):
        if not token.startswith("bytes:") and token not in tokenizer.special_tokens:
            token = token.lstrip() if echo and number == 1 else token
            assert choice.text[at:].startswith(token), (number, token, at)
    chunks = [chunk.choices[0].logprobs for chunk in client.completions.create(**given, logprobs=1, stream=True)]
    assert [at for chunk in chunks for at in chunk.text_offset] == got.text_offset


def test_text_offsets_end_with_a_text_that_is_stopped(client):
    given = {"model": MODEL, "prompt": "the", "max_tokens": 40, "temperature": 1.0, "seed": 5, "logprobs": 0}
    free = client.completions.create(**given).choices[0].text
    choice = client.completions.create(**given, stop=free[5:12]).choices[0]
    assert choice.text == free[: free.index(free[5:12])]
    assert max(choice.logprobs.text_offset) <= len(choice.text)


def test_stop_texts_and_seeds(client):
    given = {"model": MODEL, "prompt": "the", "max_tokens": 40, "temperature": 1.0}
    free = client.completions.create(**given, seed=5).choices[0].text
    stop = free[5:8]
    stopped = client.completions.create(**given, seed=5, stop=[stop, "never there"]).choices[0]
    assert stopped.text == free[: free.index(stop)]
    assert stopped.finish_reason == "stop"
    assert client.completions.create(**given, seed=6).choices[0].text != free
    unseeded = {client.completions.create(**given).choices[0].text for _ in range(3)}
    assert len(unseeded) == 3


def test_chat(client, served, expected):
    ids = served.model.template.prompt_ids(MESSAGES)
    given = {"model": MODEL, "messages": MESSAGES, "temperature": 0.9, "seed": 4, "max_completion_tokens": 24}
    (one,) = expected(ids, max_new_tokens=24, temperature=0.9, seed=4, logprobs=2)
    found = client.chat.completions.create(**given, logprobs=True, top_logprobs=2)
    (choice,) = found.choices
    assert choice.message.content == one.text
    assert choice.message.role == "assistant"
    assert [token.logprob for token in choice.logprobs.content] == pytest.approx([t.logprob for t in one.logprobs])
    assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    tokens = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
    assert tokens.decode(errors="replace").strip("\ufffd ") == one.text.strip("\ufffd ")
    text, roles = "", []
    for chunk in client.chat.completions.create(**given, stream=True):
        roles += [chunk.choices[0].delta.role] if chunk.choices[0].delta.role else []
        text += chunk.choices[0].delta.content or ""
    assert text == one.text
    assert roles == ["assistant"]
    parts = [{"type": "text", "text": MESSAGES[1]["content"][:4]}, {"type": "text", "text": MESSAGES[1]["content"][4:]}]
    given["messages"] = [MESSAGES[0], {"role": "user", "content": parts}]
    assert client.chat.completions.create(**given).choices[0].message.content == one.text


def test_curl(served):
    body = json.dumps({"prompt": "قال", "max_tokens": 8, "temperature": 0, "stream": True})
    command = ["curl", "-sN", f"{served.url}/v1/completions", "-H", "Content-Type: application/json", "-d", body]
    events = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    plain = served.client().post("/v1/completions", content=body.replace("true", "false")).json()
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == plain["choices"][0]["text"]


GOOD = {"prompt": "x", "max_tokens": 1}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "no JSON"),
        (b"{", 400, "no JSON"),
        (b"\xff\xfe\x00", 400, "no JSON"),
        (b"[" * 100_000, 400, "no JSON"),
        (b"[]", 400, "expected a JSON object"),
        ({}, 400, "prompt: expected"),
        ({"prompt": 3}, 400, "prompt: expected"),
        ({"prompt": []}, 400, "prompt: expected"),
        ({"prompt": [1, True]}, 400, "expected whole numbers"),
        ({"prompt": [10**9]}, 400, "ids from 1000000000"),
        ({"prompt": ["x", 3]}, 400, "expected whole numbers"),
        (b'{"prompt": "\\ud800"}', 400, "surrogate"),
        (b'{"prompt": "x", "\\ud800": ["\\ud800"]}', 400, "surrogate"),
        ({"prompt": "x " * 500}, 400, "at most 192"),
        ({"prompt": "x", "max_tokens": 500}, 400, "exceed the context"),
        ({"prompt": "x", "max_tokens": 150}, 400, "at most 128 here"),
        ({"prompt": "x", "max_tokens": -1}, 400, "max_tokens = -1: expected 0"),
        ({"messages": MESSAGES, "max_completion_tokens": -1}, 400, "max_completion_tokens = -1: expected 0"),
        ({"messages": MESSAGES, "max_completion_tokens": 500}, 400, "max_completion_tokens = 500 and"),
        (GOOD | {"min_tokens": 2}, 400, "min_tokens = 2: expected between 0 and max_tokens"),
        ({"messages": MESSAGES, "logprobs": True, "top_logprobs": 30}, 400, "top_logprobs = 30: expected between"),
        (GOOD | {"prompt": ["x"] * 9, "n": 2}, 400, "n = 2 for each of 9 prompts: at most 16 answers"),
        (GOOD | {"max_tokens": "many"}, 400, "expected a whole number"),
        (GOOD | {"n": 10**12}, 400, "at most 16 answers"),
        (GOOD | {"n": 0}, 400, "n = 0: expected 1 or more"),
        (GOOD | {"temperature": -1}, 400, "temperature"),
        (b'{"prompt": "x", "temperature": NaN}', 400, "temperature"),
        (GOOD | {"top_p": 0}, 400, "top_p"),
        (GOOD | {"logprobs": 99}, 400, "logprobs = 99: expected"),
        (GOOD | {"stop": [1]}, 400, "stop: expected"),
        (GOOD | {"stop_token_ids": list(range(40))}, 400, "stop ids"),
        (GOOD | {"stop_token_ids": list(range(40)), "stream": True}, 400, "stop ids"),
        (GOOD | {"stream": "yes"}, 400, "true or false"),
        (GOOD | {"suffix": "y"}, 400, "suffix is not served"),
        (GOOD | {"logit_bias": {"1": 5}}, 400, "logit_bias is not served"),
        (GOOD | {"temprature": 0}, 400, "temprature is not served here; did you mean temperature"),
        (GOOD | {"ignore_eos": True}, 400, "ignore_eos is not served"),
        (GOOD | {"guided_json": {"type": "object"}}, 400, "guided_json is not served"),
        (GOOD | {"a\nkey": 1}, 400, "a key is not served"),
        ({"messages": MESSAGES, "continue_final_message": True}, 400, "continue_final_message is not served"),
        ({"messages": MESSAGES, "tool_choice": "required"}, 400, "tool_choice is not served"),
        (GOOD | {"best_of": 4}, 400, "best_of"),
        (GOOD | {"response_format": {"type": "json_object"}}, 400, "response_format"),
        (GOOD | {"model": "other"}, 404, "no model 'other'"),
        ({"messages": []}, 400, "at least one message"),
        ({"messages": [{"role": "user"}]}, 400, "expected a text as content"),
        ({"messages": [{"role": 3, "content": "x"}]}, 400, "message 1"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "only parts of type text"),
        (
            {"messages": MESSAGES, "chat_template_kwargs": {"mode": 1}},
            400,
            "template reads no variable 'mode'; there are none",
        ),
        ({"messages": MESSAGES, "tools": [{"type": "function"}]}, 400, "tools is not served"),
        (b'{"prompt": "' + b"x" * (10 << 20) + b'"}', 413, "larger than"),
    ],
)
def test_bad_requests_have_the_right_status(served, body, status, said):
    path = "/v1/chat/completions" if isinstance(body, dict) and "messages" in body else "/v1/completions"
    content = body if isinstance(body, bytes) else json.dumps(body)
    response = served.client().post(path, content=content)
    error = response.json()["error"]
    assert (response.status_code, said in error["message"]) == (status, True), error
    assert "\n" not in error["message"]
    assert error["param"] in (None, "prompt", "messages", "a key") or error["param"] in str(body)


def test_what_changes_nothing_is_taken(served):
    unused = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "tools": [],
        "guided_json": None,
    }
    unused |= {"tool_choice": "auto", "ignore_eos": False, "temprature": None, "suffix": ""}
    assert served.client().post("/v1/completions", json=GOOD | unused).status_code == 200


@pytest.mark.parametrize("chat", [True, False])
def test_log_probabilities_of_ids_that_the_tokenizer_has_not(served, tokenizer, chat):
    """A model may have more rows than its tokenizer: such an id is a token without text."""
    spare = TokenLogprob(tokenizer.vocab_size + 3, -0.5, ((tokenizer.vocab_size + 3, -0.5), (5, -2.0)))
    body = {"messages": MESSAGES, "logprobs": True} if chat else {"prompt": "x", "logprobs": 2}
    asked = read_request(body, chat=chat, model=served.model)
    delta = Delta("x", 0, (spare.token_id,), "", (spare,), "length")
    logprobs = Writer(asked, model=served.model).whole({0: [delta]})["choices"][0]["logprobs"]
    if chat:
        assert logprobs["content"][0]["token"] == ""
        assert [one["logprob"] for one in logprobs["content"][0]["top_logprobs"]] == [-0.5, -2.0]
    else:
        assert (logprobs["tokens"], logprobs["token_logprobs"], logprobs["text_offset"]) == ([""], [-0.5], [0])
        assert logprobs["top_logprobs"][0][""] == -0.5


def test_a_fault_of_ours_has_the_form_of_the_api(served, monkeypatch):
    monkeypatch.setattr("allam_jax.generation.server.read_request", lambda *_, **__: 1 / 0)
    response = served.client().post("/v1/completions", json=GOOD)
    assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")


def test_other_paths_and_methods(served):
    client = served.client()
    assert client.get("/v1/completions").status_code == 405
    assert client.get("/nothing").status_code == 404
    assert client.get("/health").json() == {"status": "ok"}
    for host in ("evil.example", "[", "localhost@evil.example", "localhost.evil.example", ""):
        assert client.get("/", headers={"Host": host}).status_code in (400, 403), host
    for origin in ("https://evil.example", "null"):  # a frame in a sandbox has none
        assert client.post("/v1/completions", json=GOOD, headers={"Origin": origin}).status_code == 403
    assert client.post("/v1/completions", json=GOOD, headers={"Origin": served.url}).status_code == 200


def test_a_body_that_does_not_come(served):
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        sock.settimeout(10)
        assert sock.recv(100).startswith(b"HTTP/1.1 408")


def test_a_client_that_leaves_gives_its_slot_back(served):
    long = {"prompt": "the", "max_tokens": 128, "temperature": 1.0, "min_tokens": 128, "n": 8}
    for stream in (True, False):
        before = served.engine.tokens
        host, port = served.url.removeprefix("http://").split(":")
        body = json.dumps(long | {"stream": stream}).encode()
        with socket.create_connection((host, int(port))) as sock:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            sock.sendall(head.encode() + body)
            while served.engine.tokens == before:
                time.sleep(0.005)
        served.settle()
        assert served.engine.tokens - before < 8 * 128, f"stream = {stream}: ran to its end"
    assert served.metric("allam_waiting_samples") == 0


def test_a_full_queue_is_429_and_metrics_add_up(served, client):
    statuses = []

    def ask():
        body = {"prompt": "the", "max_tokens": 100, "min_tokens": 100, "temperature": 1.0, "n": 2}
        response = served.client().post("/v1/completions", json=body)
        statuses.append(response.status_code)
        if response.status_code == 429:
            assert response.headers["Retry-After"] == "1"
            assert response.json()["error"]["code"] == "queue_full"

    threads = [threading.Thread(target=ask) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 429}
    served.settle()
    families = prometheus_client.parser.text_string_to_metric_families(served.client().get("/metrics").text)
    samples = {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}
    assert samples["allam_requests_total", "/v1/completions", "429"] == statuses.count(429)
    assert samples["allam_answer_tokens_total",] <= served.engine.tokens
    assert samples["allam_free_slots",] == 4


def test_a_key(engine, tokenizer, served):
    served.settle()
    with serving(engine, tokenizer, key="sesam") as locked:
        assert locked.client().get("/health").status_code == 200
        with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
            openai.OpenAI(base_url=f"{locked.url}/v1", api_key="simsim", max_retries=0).models.list()
        assert openai.OpenAI(base_url=f"{locked.url}/v1", api_key="sesam").models.list().data[0].id == MODEL


@pytest.mark.parametrize("host", [b"localhost", b"a/x?", b"a/#", b"a@b/health?", b""])
def test_no_host_opens_a_path_without_the_key(served, host):
    """As the server hands it on, whatever the framework makes of the header."""
    app = make_app(served.engine, model=served.model, settings=ServeSettings(host="0.0.0.0"), key="sesam")
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "query_string": b"", "headers": [(b"host", host)]}
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, None, send))
    assert sent[0]["status"] == 401


def connect_error(port):
    """The number of the error that a new connection has; 0 if it is accepted."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port))


def test_an_end_lets_answers_end(engine, tokenizer, served):
    served.settle()
    body = {"prompt": "the", "max_tokens": 120, "min_tokens": 120, "temperature": 1.0, "stream": True}
    with serving(engine, tokenizer) as found:
        with found.client().stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            found.server.should_exit = True
            assert [line for line in lines if line][-1] == "data: [DONE]"
        until, port = time.monotonic() + 10, int(found.url.rpartition(":")[2])
        while connect_error(port) != errno.ECONNREFUSED:
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("again", [True, False])
def test_an_end_does_not_wait_for_ever(tokenizer, caplog, stream, again):
    """Asked to end a second time, or after drain_seconds: the client hears of it, and the log has no traceback."""
    engine = ScriptedEngine("word " * 10_000, seconds=0.01)

    def end(server):
        while not engine.busy:
            time.sleep(0.01)
        time.sleep(0.2)
        server.should_exit, server.force_exit = True, again

    with serving(engine, tokenizer, drain_seconds=60 if again else 0.2) as found:
        threading.Thread(target=end, args=(found.server,)).start()
        response = found.client().post("/v1/completions", json=GOOD | {"stream": stream})
        if stream:
            *_, last, _ = response.text.split("\n\n")
            assert "word" in response.text
            assert "data: [DONE]" not in response.text
            error = json.loads(last.removeprefix("data: "))["error"]
        else:
            assert response.status_code == 503
            error = response.json()["error"]
        assert (error["type"], error["message"]) == ("server_error", "the server is shutting down")
        until = time.monotonic() + 10
        while engine.busy:
            assert time.monotonic() < until, "the answer goes on"
            time.sleep(0.02)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_failed_engine_is_said(tokenizer):
    class Broken:
        free_slots, queued, busy = 1, 0, True

        def check(self, request):
            pass

        def submit(self, request):
            pass

        def step(self):
            raise RuntimeError("out of memory")

    heard = []
    thread = EngineThread(Broken(), max_queue=2)
    thread._thread.join(5)
    assert str(thread.failed) == "out of memory"
    with pytest.raises(RuntimeError, match="out of memory"):
        thread.submit(Request("x", (1,), Sampling(max_new_tokens=1)), heard.append)


def test_an_address_that_is_taken():
    with listen("127.0.0.1", 0, section="serve") as sock:
        sock.listen()
        with pytest.raises(UserError, match="address already in use"):
            listen("127.0.0.1", sock.getsockname()[1], section="serve")
    with pytest.raises(UserError, match=r"serve.host"):
        listen("no.such.host.invalid", 8000, section="serve")
