"""Pages for people, served in a thread of this process."""

import contextlib
import threading
import time
from collections.abc import Iterator

from starlette.applications import Starlette

from allam_jax.generation.page_server import bind, make_server


@contextlib.contextmanager
def serving(app: Starlette, *, section: str) -> Iterator[str]:
    """The address at which the application answers."""
    server = make_server(app, drain_seconds=1)
    with bind("127.0.0.1", 0, section=section) as sock:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)
