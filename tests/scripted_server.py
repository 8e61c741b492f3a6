"""A server of HTTP that stands in for an endpoint; tests script what it answers."""

import contextlib
import http.server
import json
import socket
import threading


class ScriptedServer(http.server.ThreadingHTTPServer):
    """On this machine."""

    daemon_threads = True
    request_queue_size = 128  # the default of 5 loses connections under load, and with them attempts

    def __init__(self, handler: type[http.server.BaseHTTPRequestHandler], *, port: int = 0):
        """`port` 0: a free one."""
        super().__init__(("127.0.0.1", port), handler)

    def get_request(self):
        """A connection that sends head and body of an answer at once: by default the body waits 40 ms for a word."""
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, address

    @property
    def url(self) -> str:
        """Of the API."""
        return f"http://127.0.0.1:{self.server_port}/v1"


class JsonServer(ScriptedServer):
    """`say(path, body)` gives what is answered as JSON, or a status of refusal. `asked` has all paths and bodies."""

    def __init__(self, say):
        super().__init__(_JsonHandler)
        self.say, self.asked = say, []

    @contextlib.contextmanager
    def running(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        with self:
            yield self
            self.shutdown()


class _JsonHandler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        said = self.server.say(self.path, body)
        content = json.dumps({} if isinstance(said, int) else said).encode()
        self.send_response(said if isinstance(said, int) else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def completion(text):
    """A chat's answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 3}}
