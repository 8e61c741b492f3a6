"""A server of HTTP that stands in for an endpoint; tests script what it answers."""

import http.server


class ScriptedServer(http.server.ThreadingHTTPServer):
    """On this machine."""

    daemon_threads = True
    request_queue_size = 128  # the default of 5 loses connections under load, and with them attempts

    def __init__(self, handler: type[http.server.BaseHTTPRequestHandler], *, port: int = 0):
        """`port` 0: a free one."""
        super().__init__(("127.0.0.1", port), handler)

    @property
    def url(self) -> str:
        """Of the API."""
        return f"http://127.0.0.1:{self.server_port}/v1"
