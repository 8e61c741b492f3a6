"""Task `rewrite` through an endpoint, killed at random and without a server for a while: nothing is lost or twice."""

import contextlib
import http.server
import json
import random
import re
import threading

import pytest
from launcher import error_of
from processes import ROOT, wait, wait_until
from rewritten import INSTRUCTIONS, SENTENCES, better, dataset, files_of
from scripted_server import ScriptedServer


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"].removeprefix("Rewrite:\n")
        self.server.asked.append((text, body["seed"]))
        answer = f"Sure, here it is:\n{text}" if body["seed"] == 0 and "9 boats" in text else better(text, 0)
        choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
        content = json.dumps({"choices": [choice], "usage": {"completion_tokens": 9, "prompt_tokens": 9}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def listening(*, port=0, asked=()):
    with ScriptedServer(_Handler, port=port) as server:
        server.asked = list(asked)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


_LONGEST = 1200  # seconds of one run of the kill test, on a busy machine


@pytest.mark.parametrize(
    ("documents", "kills"),
    [
        pytest.param(30, 3, marks=pytest.mark.slow),
        pytest.param(2000, 20, marks=[pytest.mark.long, pytest.mark.timeout(4 * _LONGEST)]),
    ],
)
def test_kills_change_nothing(launcher, tmp_path, documents, kills):
    """SIGKILL at random requests, then no endpoint, then an end: the bytes of a run that nobody killed.

    What is asked twice was under way at a kill, or its answer waited for that of an earlier piece.
    """
    numbers = [[10 * n + (9 if n % 5 == 0 else 1), *(10 * n + 2 for _ in range(n % 2))] for n in range(documents)]
    texts = ["\n\n".join(" ".join(SENTENCES).format(number) for number in some) for some in numbers]
    source, concurrency = dataset(tmp_path / "web", texts), 2
    given = {
        "config": ROOT / "configs" / "rewrite.py",
        "rewrite.input": source,
        "rewrite.instruction": ROOT / INSTRUCTIONS / "short.toml",
        **{"rewrite.piece_tokens": 40, "rewrite.shard_rows": 100, "rewrite.attempts": 2, "rewrite.temperature": 0.5},
        **{"rewrite.endpoint.key_variable": "", "rewrite.endpoint.attempts": 1},
        "rewrite.endpoint.concurrency": concurrency,
    }
    pieces, again = sum(map(len, numbers)), -(-documents // 5)
    rng = random.Random(5)
    with listening() as server:
        given["rewrite.endpoint.url"], port = server.url, server.server_port
        assert wait(launcher.start(tmp_path / "whole", **given), timeout=_LONGEST).result["tried_again"] == again
        once = sorted(server.asked)
        assert len(set(once)) == len(once) == pieces + again  # every piece once, and once more what failed
        server.asked = []
        for _ in range(kills):
            until = len(server.asked) + rng.randint(1, len(once) // (kills + 3))
            process = launcher.start(tmp_path / "killed", **given)
            wait_until(lambda until=until: len(server.asked) >= until, process=process, timeout=_LONGEST)
            process.kill()
            wait(process)
        asked = server.asked
    said = error_of(launcher.run(tmp_path / "killed", **given))  # nothing listens now
    found = re.search(r"does not answer .*run the same command again to go on \((.+) of (.+) rows are done, 0 of", said)
    done, total = (int(number.replace(",", "")) for number in found.groups())
    assert len(asked) - kills * 4 * concurrency <= done < total == pieces
    with listening(port=port, asked=asked) as server:
        wait(launcher.start(tmp_path / "killed", **given), timeout=_LONGEST)
        assert sorted(set(server.asked)) == once
        assert len(server.asked) - len(once) <= kills * 4 * concurrency
    assert results(tmp_path / "whole") == results(tmp_path / "killed")


def results(root):
    answers = (file for file in (root / "attempts").rglob("*") if file.is_file())
    return files_of(root) | {str(file.relative_to(root)): file.read_bytes() for file in answers}
