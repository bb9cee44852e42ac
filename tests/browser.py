"""A headless Chromium, driven over the DevTools protocol by as much of a WebSocket (RFC 6455) as that needs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
    "--remote-debugging-port=0",
]
SECONDS = 60


def find_browser() -> str | None:
    """Where a Chromium or Chrome is, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A tab. `told` holds what went wrong in it: exceptions, and errors but for the status of an answer."""

    def __init__(self, connection: socket.socket, host: str, path: str) -> None:
        self._stream, self._count = connection.makefile("rwb"), 0
        self.told: list[str] = []
        head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self._stream.write(f"{head}Sec-WebSocket-Key: {'A' * 22}==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        self._stream.flush()
        assert b" 101 " in self._stream.readline()
        while self._stream.readline().strip():
            pass
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> Any:
        """The result of a command, when it is there."""
        self._count += 1
        data = json.dumps({"id": self._count, "method": method, "params": parameters}).encode()
        # One text frame, its length in 64 bits, masked by zeros.
        self._stream.write(struct.pack(">BBQI", 0x81, 0xFF, len(data), 0) + data)
        self._stream.flush()
        while (answer := self._message()).get("id") != self._count:
            event, entry = answer.get("method"), answer.get("params", {}).get("entry", {})
            if event == "Runtime.exceptionThrown" or (entry.get("level") == "error" and entry["source"] != "network"):
                self.told.append(json.dumps(answer))
        assert "error" not in answer, answer
        return answer["result"]

    def _message(self) -> Any:
        data, last = b"", False
        while not last:
            first, length = self._stream.read(2)
            last = bool(first & 0x80)
            if length > 125:
                length = int.from_bytes(self._stream.read(2 if length == 126 else 8), "big")
            data += self._stream.read(length)
        return json.loads(data)

    def value(self, expression: str) -> Any:
        """What JavaScript gives, as JSON values; of a promise what it becomes."""
        found = self("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        end = time.monotonic() + SECONDS
        while not self.value(expression):
            assert time.monotonic() < end, (expression, self.value("document.body.innerText"), self.told)
            time.sleep(0.02)


@contextmanager
def browsing(program: str, profile: Path) -> Iterator[Page]:
    """The tab of a browser of its own, whose profile is an empty folder."""
    command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        place, end = profile / "DevToolsActivePort", time.monotonic() + SECONDS
        while not (place.exists() and "\n" in place.read_text()):
            assert process.poll() is None, "the browser ended"
            assert time.monotonic() < end, "the browser does not open"
            time.sleep(0.05)
        port = int(place.read_text().splitlines()[0])
        asking = HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        asking.request("GET", "/json/list")
        target = next(item for item in json.loads(asking.getresponse().read()) if item["type"] == "page")
        asking.close()
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
            yield Page(connection, f"127.0.0.1:{port}", f"/devtools/page/{target['id']}")
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # of its own session: all that it started, and nothing else
        process.wait()
