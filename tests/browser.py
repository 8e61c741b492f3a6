"""A headless Chromium through chromedriver, whose protocol (W3C WebDriver) is HTTP and JSON."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest
from processes import free_port


class Browser:
    """One session."""

    def __init__(self, client: httpx.Client, session: str):
        self._client, self._session = client, session

    def do(self, path: str, body: dict | None = None):
        method = "POST" if body is not None else "GET"
        response = self._client.request(method, f"/session/{self._session}/{path}", json=body).json()["value"]
        assert not (isinstance(response, dict) and "error" in response), response
        return response

    def open(self, url: str) -> None:
        self.do("url", {"url": url})

    def js(self, script: str, *given):
        return self.do("execute/sync", {"script": script, "args": list(given)})

    def until(self, condition: str, seconds: float = 20.0):
        end = time.monotonic() + seconds
        while not (found := self.js(f"return {condition}")):
            assert time.monotonic() < end, condition
            time.sleep(0.05)
        return found

    def log(self) -> list[str]:
        """What the browser complains of."""
        return [entry["message"] for entry in self.do("se/log", {"type": "browser"})]


@contextlib.contextmanager
def browsing(*, phone: bool = False) -> Iterator[Browser]:
    """A browser; the test is skipped where there is none."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("needs chromium and chromedriver")
    port = free_port()
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    options = {
        "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        "binary": program,
    }
    if phone:
        metrics = {"width": 360, "height": 640, "pixelRatio": 2.0, "touch": True}
        options["mobileEmulation"] = {"deviceMetrics": metrics}
    wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            for _ in range(100):
                with contextlib.suppress(httpx.ConnectError):
                    client.get("/status")
                    break
                time.sleep(0.1)
            session = client.post("/session", json={"capabilities": {"alwaysMatch": wanted}}).json()["value"]
            try:
                yield Browser(client, session["sessionId"])
            finally:
                client.delete(f"/session/{session['sessionId']}")
    finally:
        process.terminate()
        process.wait(10)
