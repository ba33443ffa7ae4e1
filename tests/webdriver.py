"""A headless Chromium, driven through chromedriver with the few WebDriver commands that the tests need."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_START_S = 20
_REQUEST_S = 60
_CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


class Browser:
    """An open page.

    Args:
        session_url: of a WebDriver session.
    """

    def __init__(self, session_url: str) -> None:
        self._session_url = session_url

    def open(self, path: Path) -> None:
        """Load a local file."""
        self._post("url", {"url": path.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript and return what it returns."""
        return self._post("execute/sync", {"script": script, "args": list(arguments)})

    def wait_for(self, script: str, seconds: float = 10) -> Any:
        """Run JavaScript until it returns something true."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, f"never true: {script}"
            time.sleep(0.05)
        return value

    def move_mouse(self, x: float, y: float) -> None:
        """Move the mouse to a point of the viewport, by a few steps as a hand does."""
        moves = [
            {"type": "pointerMove", "duration": 60, "origin": "viewport", "x": round(x) - 6 + step, "y": round(y)}
            for step in (0, 3, 6)
        ]
        pointer = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": moves}
        self._post("actions", {"actions": [pointer]})

    def _post(self, command: str, body: dict[str, Any]) -> Any:
        return _request("POST", f"{self._session_url}/{command}", body)


def missing_browser() -> str | None:
    """Why no browser can be driven here; None where one can."""
    if shutil.which("chromedriver") is None or not any(map(shutil.which, _CHROMIUM_NAMES)):
        return "no browser: install Debian's packages chromium and chromium-driver"
    return None


@contextlib.contextmanager
def open_browser(profile: Path, *, width: int = 1280, height: int = 900) -> Iterator[Browser]:
    """Start a browser that reaches no network; it ends with the block.

    Args:
        profile: a folder for its files.
        width: of the window.
        height: of the window.
    """
    port = _free_port()
    driver = subprocess.Popen(
        [str(shutil.which("chromedriver")), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        base = f"http://127.0.0.1:{port}"
        _wait_until_ready(base)
        binary = next(found for name in _CHROMIUM_NAMES if (found := shutil.which(name)))
        options = {
            "binary": binary,
            "args": [
                "--headless=new",
                "--no-sandbox",  # tests run as root in containers
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--host-resolver-rules=MAP * ~NOTFOUND",
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
            ],
        }
        capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        session = _request("POST", f"{base}/session", {"capabilities": capabilities})
        session_url = f"{base}/session/{session['sessionId']}"
        try:
            yield Browser(session_url)
        finally:
            _request("DELETE", session_url, None)
    finally:
        driver.terminate()
        driver.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(base: str) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        with contextlib.suppress(OSError):
            if _request("GET", f"{base}/status", None)["ready"]:
                return
        assert time.monotonic() < deadline, "chromedriver did not start"
        time.sleep(0.1)


def _request(method: str, url: str, body: dict[str, Any] | None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=_REQUEST_S) as response:
            return json.load(response)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{method} {url}: {error.read().decode(errors='replace')}") from error
