"""The server as a process: two hundred clients that behave badly, kill -9, and SIGTERM."""

import asyncio
import collections
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import psutil
import pytest
from processes import ROOT, child_environment, free_port
from small_server import save_model

pytestmark = pytest.mark.long

CLIENTS, ROUNDS, SLOTS = 200, 4, 8
GREEDY = {"prompt": "the cat", "max_tokens": 24, "temperature": 0}


class Process:
    """`run.py --config configs/serve.py` on the small model."""

    def __init__(self, root, port):
        settings = {"init.weights": root / "model", "serve.port": port, "serve.name": "small", "engine.slots": SLOTS}
        settings |= {"serve.max_queue": 40, "serve.body_seconds": 3.0, "engine.burst": 8}
        command = [sys.executable, "run.py", "--config=configs/serve.py", f"--workdir={root / 'work'}"]
        command += [f"--config.{key}={value}" for key, value in settings.items()]
        self.log = root / "log"
        environment = child_environment(cache=root / "cache")
        with self.log.open("w") as log:
            self.popen = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        self.port, self.url = port, f"http://127.0.0.1:{port}"

    def wait_until_ready(self):
        until = time.monotonic() + 120
        while "serving small" not in self.log.read_text():
            assert self.popen.poll() is None, self.log.read_text()
            assert time.monotonic() < until
            time.sleep(0.1)

    def text(self):
        return httpx.post(f"{self.url}/v1/completions", json=GREEDY, timeout=60).json()["choices"][0]["text"]

    def metrics(self):
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[:1] != "#"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    directory = tmp_path_factory.mktemp("served")
    save_model(directory)
    return directory


@pytest.fixture
def start(root):
    """Starts the server at a port; the test's end is that of all servers."""
    started = []

    def start(port):
        started.append(Process(root, port))
        started[-1].wait_until_ready()
        return started[-1]

    yield start
    for server in started:
        server.popen.kill()
        server.popen.wait()


def head(length, path="/v1/completions"):
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


async def raw(port, content, *, read=b"", pause=0.0, most=60.0):
    """Sends bytes, reads until `read` occurs or the end, and leaves; the status, or 0 without one."""
    sock = socket.socket()
    if pause:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # as small as the kernel makes it
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 10 if pause else 1 << 16)
    found = b""
    try:
        writer.write(content)
        await writer.drain()
        end = time.monotonic() + most
        while time.monotonic() < end and (not read or read not in found):
            piece = await asyncio.wait_for(reader.read(50 if pause else 1 << 16), most)
            if not piece:
                break
            found += piece
            await asyncio.sleep(pause)
    except (ConnectionError, TimeoutError):
        pass
    finally:
        writer.close()
    status = re.match(rb"HTTP/1.1 (\d{3}) ", found)
    return int(status[1]) if status else 0


def bodies(rng):
    prompt = rng.choice(["the cat", "قال رسول الله", "x = f(", "😀"]) * rng.randint(1, 4)
    return {"prompt": prompt, "max_tokens": rng.randint(1, 60), "temperature": 1.0, "n": rng.choice([1, 1, 3])}


async def client(kind, port, rng, http):
    """One request of a kind; its status."""
    body = bodies(rng)
    url = f"http://127.0.0.1:{port}/v1/completions"
    match kind:
        case "whole":
            response = await http.post(url, json=body)
            if response.status_code == 200:
                assert len(response.json()["choices"]) == body["n"]
            return response.status_code
        case "stream":
            async with http.stream("POST", url, json=body | {"stream": True}) as response:
                text = "".join([piece async for piece in response.aiter_text()])
            assert response.status_code != 200 or text.endswith("data: [DONE]\n\n")
            return response.status_code
        case "leaves":
            content = json.dumps(body | {"stream": rng.random() < 0.5, "max_tokens": 150}).encode()
            await raw(port, head(len(content)) + content, most=rng.uniform(0.01, 0.5))
            return 0
        case "garbage":
            content = rng.randbytes(rng.randint(1, 3000))
            return (await http.post(url, content=content)).status_code
        case "huge":
            return (await http.post(url, json={"prompt": "x" * (10 << 20)})).status_code
        case "no HTTP":
            return await raw(port, rng.randbytes(200) + b"\r\n\r\n", most=5)
        case "half a body":
            return await raw(port, head(500) + b"{", read=b"\r\n\r\n", most=30)
        case "slow reader":
            content = json.dumps(body | {"stream": True}).encode()
            return await raw(port, head(len(content)) + content, pause=0.02, most=rng.uniform(2, 6))
    raise ValueError(kind)


ALLOWED = {
    "whole": {200, 429},
    "stream": {200, 429},
    "leaves": {0},
    "garbage": {400},
    "huge": {413},
    "no HTTP": {400, 0},
    "half a body": {408},
    "slow reader": {200, 429, 0},  # 0: it left before the status came
}


async def storm(port):
    found = collections.Counter()

    async def one(number, http):
        rng = random.Random(number)
        for _ in range(ROUNDS):
            kind = rng.choice([*ALLOWED, "whole", "stream", "leaves"])
            found[kind, await client(kind, port, rng, http)] += 1

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=120, limits=limits) as http:
        await asyncio.gather(*(one(number, http) for number in range(CLIENTS)))
    return found


def test_a_storm_of_clients_and_a_kill(start):
    server = start(free_port())
    text = server.text()
    process = psutil.Process(server.popen.pid)
    asyncio.run(storm(server.port))  # once before the memory is looked at
    time.sleep(1)
    memory, descriptors = process.memory_info().rss, process.num_fds()
    begun = time.monotonic()
    found = asyncio.run(storm(server.port))
    print(f"{time.monotonic() - begun:.1f} s", dict(found))
    assert {(kind, status) for kind, status in found if status not in ALLOWED[kind]} == set()
    assert {kind for kind, _ in found} == ALLOWED.keys()
    until = time.monotonic() + 60
    while (metrics := server.metrics())["allam_free_slots"] < SLOTS or metrics["allam_waiting_samples"]:
        assert time.monotonic() < until, "slots leak"
        time.sleep(0.1)
    assert server.text() == text
    assert httpx.get(f"{server.url}/health").status_code == 200
    print(f"memory {memory >> 20} -> {process.memory_info().rss >> 20} MiB, {descriptors} -> {process.num_fds()} files")
    assert process.memory_info().rss < memory + (64 << 20)
    assert process.num_fds() < descriptors + 20
    assert "Traceback" not in server.log.read_text()
    server.popen.kill()
    server.popen.wait()
    again = start(server.port)  # the same port, at once
    assert again.text() == text
    ended_by_sigterm(again)


def ended_by_sigterm(server):
    """A stream that is under way comes to its end; then the process ends well, and takes nobody new meanwhile."""
    events, begun = [], threading.Event()

    def read():
        body = GREEDY | {"max_tokens": 160, "min_tokens": 160, "stream": True, "n": 16, "temperature": 1}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
            for line in response.iter_lines():
                events.append(line)
                begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(30)
    server.popen.send_signal(signal.SIGTERM)
    reader.join(60)
    assert [line for line in events if line][-1] == "data: [DONE]"
    assert server.popen.wait(30) == 0, server.log.read_text()
    assert "waiting for the answers under way" in server.log.read_text()
