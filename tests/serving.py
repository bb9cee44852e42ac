"""The service on a loopback address, and a client that asks it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray
from starlette.types import ASGIApp

from pelagia.api import Predictor
from pelagia.core.card import ModelCard
from pelagia.core.image import encode
from pelagia.infer.result_values import image_dict, numbered
from pelagia.infer.runtimes import OnnxRuntime
from pelagia.serve.options import ServeOptions
from pelagia.serve.server import create_server, listen
from pelagia.serve.service import create_service


class Client:
    """One request a connection, without following anything."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def found(self, body: bytes, **query: Any) -> dict[str, Any]:
        status, headers, content = self("POST", f"/predict?{urlencode(query)}", body)
        assert status == 200, content
        assert headers["content-type"] == "application/json"
        answer: dict[str, Any] = json.loads(content)
        return answer

    def refused(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str, str]:
        status, told, content = self(method, path, body, **headers)
        assert status >= 400
        assert told["content-type"] == "application/json"
        assert b"Traceback" not in content
        answer = json.loads(content)
        assert answer.keys() == {"error"}
        assert answer["error"].keys() == {"kind", "message"}
        return status, answer["error"]["kind"], answer["error"]["message"]


@contextmanager
def serving(app: ASGIApp) -> Iterator[Client]:
    with listen("127.0.0.1", 0) as listening:
        server = create_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Client(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@contextmanager
def limited(model: Path) -> Iterator[Client]:
    """The service of an exported model with small limits."""
    options = ServeOptions(max_bytes=100_000, max_pixels=40_000, most_images=4, allow_host=("plankton.example",))
    with serving(create_service(OnnxRuntime(model, threads=1), options)) as found:
        yield found


def bright(height: int = 64, width: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """An image with cells that the tiny detector finds."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 40, (height, width, 3)).astype(np.uint8)
    for _ in range(6):
        y, x = 8 * rng.integers(0, height // 8), 8 * rng.integers(0, width // 8)
        image[y : y + 8, x : x + 8] = ((255, 0, 0), (0, 255, 0))[int(rng.integers(2))]
    return image


def png(image: NDArray[Any]) -> bytes:
    return encode(image)


def expected(predictor: Predictor, image: NDArray[Any], **options: Any) -> dict[str, Any]:
    found = predictor.predict(image, **options)
    found = found if not hasattr(found, "ids") else numbered(found)[0]
    return image_dict(found, "image", (image.shape[1], image.shape[0]), predictor.card)


class Slow:
    """A runtime that waits in `run` where it is told to, and counts how many are in it."""

    def __init__(self, runtime: OnnxRuntime) -> None:
        self._runtime = runtime
        self.go, self.inside, self.most = threading.Event(), 0, 0
        self.go.set()

    @property
    def card(self) -> ModelCard:
        return self._runtime.card

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.go.wait(60)
        self.inside -= 1
        return self._runtime.run(images)


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)
