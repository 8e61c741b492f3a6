"""The server with its clients: those that leave, that wait, that have no key, and those there at its end."""

import asyncio
import errno
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import prometheus_client.parser
import pytest
from small_server import ScriptedEngine, serving
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from allam_jax.errors import UserError
from allam_jax.generation.engine_thread import EngineThread
from allam_jax.generation.page_server import bind, listen, make_server
from allam_jax.generation.requests import Request, Sampling
from allam_jax.generation.server import make_app
from allam_jax.generation.settings import ServeSettings

MODEL = "small/model"
GOOD = {"prompt": "x", "max_tokens": 1}


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
        for value, status in (("bearer sesam", 200), ("BEARER  sesam", 200), ("sesam", 401), ("Basic sesam", 401)):
            assert locked.client().get("/v1/models", headers={"Authorization": value}).status_code == status, value


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


def test_who_comes_before_the_server_waits():
    """Such as a script that waits for the line with the address."""
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("here"))])
    server = make_server(app, drain_seconds=1)
    with bind("127.0.0.1", 0, section="serve") as sock, ThreadPoolExecutor(2) as pool:
        answer = pool.submit(httpx.get, listen(sock), timeout=60)
        time.sleep(0.3)
        served = pool.submit(server.run, sockets=[sock])
        assert answer.result().text == "here"
        server.should_exit = True
        served.result()


def test_an_address_that_is_taken():
    with bind("127.0.0.1", 0, section="serve") as sock:
        sock.listen()
        with pytest.raises(UserError, match="address already in use"):
            bind("127.0.0.1", sock.getsockname()[1], section="serve")
    with pytest.raises(UserError, match=r"serve.host"):
        bind("no.such.host.invalid", 8000, section="serve")
