"""What the service refuses, and how it holds under load."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from noise import noise
from pelagia.api import Predictor
from pelagia.errors import ModelError
from pelagia.infer.runtimes import OnnxRuntime
from pelagia.serve import service as service_module
from pelagia.serve.guard import Guard
from pelagia.serve.options import ServeOptions
from pelagia.serve.service import create_service
from serving import Client, Slow, bright, expected, limited, png, serving, until
from tiny_onnx import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("serve") / "m.onnx")


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[Client]:
    with limited(model) as found:
        yield found


# What is refused


def test_bad_bodies(client: Client) -> None:
    whole = png(noise(60, 60))
    for body in (b"no image", whole[:-30], whole[:40], b"II*\0" + bytes(20), b"\xff\xd8\xff\xe0" + bytes(30)):
        status, kind, message = client.refused("POST", "/predict?name=slide.png", body)
        assert (status, kind) == (422, "ImageError")
        assert message.startswith("slide.png: ")
    assert client.refused("POST", "/predict", b"")[:2] == (400, "NoImage")
    assert client.refused("POST", "/predict")[:2] == (400, "NoImage")
    assert client.found(png(bright()))["count"] > 0


def test_limits_of_bytes_and_pixels(client: Client) -> None:
    data = png(np.zeros((200, 200, 3), dtype=np.uint8))
    assert client.found(data)["width"] == 200
    status, kind, message = client.refused("POST", "/predict", png(np.zeros((201, 200, 3), dtype=np.uint8)))
    assert (status, kind) == (422, "ImageError")
    assert "200 x 201 pixels, more than the limit of 40,000" in message
    assert client.found(data + bytes(100_000 - len(data)))["width"] == 200
    for body in (data + bytes(100_001 - len(data)), bytes(20_000_000)):  # the second is more than sockets hold
        assert client.refused("POST", "/predict", body)[:2] == (413, "TooLarge")
    # Pieces whose total nobody states.
    assert client.refused("POST", "/predict", iter([bytes(60_000)] * 300))[:2] == (413, "TooLarge")
    whole = iter([data[:100], data[100:]])
    status, _, content = client("POST", "/predict", whole)
    assert (status, json.loads(content)["width"]) == (200, 200)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("score=2", "score must lie in 0 to 1"),
        ("score=nan", "score must lie in 0 to 1"),
        ("score=much", "score must be a number"),
        ("score=", "score must be a number"),
        ("nms_iou=-0.1", "nms_iou must lie in 0 to 1"),
        ("tiling=perhaps", "tiling must be one of auto, always, never"),
        ("answer=xml", "answer must be one of json, picture, map"),
        ("most=1.5", "most must be a whole number"),
        ("most=-1", "most and tile at least 0"),
        ("agnostic=perhaps", "agnostic must be true or false"),
        ("score=0.1&score=0.2", "given twice"),
        ("treshold=0.1", "unknown parameter 'treshold'"),
        ("tile=1", "unknown parameter 'tile'"),
        ("max_pixels=99999999", "unknown parameter 'max_pixels'"),
        ("calibrated=true", "no calibration"),
        ("answer=map", "has no map"),
        ("map=true", "has no map"),
        ("name=" + 2000 * "a", "at most 1000 characters"),
    ],
)
def test_bad_parameters(client: Client, query: str, told: str) -> None:
    status, kind, message = client.refused("POST", f"/predict?{query}", png(bright()))
    assert (status, kind) == (400, "OptionError")
    assert told in message


def test_other_addresses_and_methods(client: Client) -> None:
    assert client.refused("GET", "/nothing")[:2] == (404, "NotFound")
    assert client.refused("GET", "/docs")[:2] == (404, "NotFound")
    assert client.refused("GET", "/../service.py")[:2] == (404, "NotFound")
    assert client.refused("GET", "/predict")[:2] == (405, "MethodNotAllowed")
    assert client.refused("POST", "/model", b"x")[:2] == (405, "MethodNotAllowed")


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "192.168.0.7", "[2001:db8::1]:80", "127.0.0.1.evil.example:8000", "@", ""]
)
def test_names_that_are_not_its_own(client: Client, host: str) -> None:
    for method, path, body in (("GET", "/health", None), ("GET", "/", None), ("POST", "/predict", png(bright()))):
        status, kind, _ = client.refused(method, path, body, Host=host)
        assert (status, kind) == (403, "Forbidden")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1", "127.0.0.9:8000", "[::1]:8000", "plankton.example"])
def test_names_that_are_its_own(client: Client, host: str) -> None:
    assert client("GET", "/health", Host=host)[0] == 200
    status, _, content = client("POST", "/predict", png(bright()), Host=host, Origin=f"http://{host.lower()}")
    assert status == 200, content


def test_pages_of_other_sites(client: Client) -> None:
    own, body = f"127.0.0.1:{client.port}", png(bright())
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://127.0.0.1:{client.port + 1}"},  # another program on this machine
        {"Origin": f"http://localhost:{client.port}"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        assert client.refused("POST", "/predict", body, **headers)[:2] == (403, "Forbidden"), headers
    for headers in ({"Origin": f"http://{own}"}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {}):
        status, told, _ = client("POST", "/predict", body, **headers)
        assert status == 200
        assert "access-control-allow-origin" not in told
    assert client.refused("OPTIONS", "/predict", Origin="http://evil.example")[0] == 405


def test_names_on_an_address_that_others_reach() -> None:
    guard = Guard(lambda *_: None, "0.0.0.0", ("Proxy.example",))  # type: ignore[arg-type,return-value]
    for name in ("192.168.0.7", "2001:db8::1", "127.0.0.1", "localhost", "proxy.example", socket.gethostname().lower()):
        assert guard._knows(name), name
    for name in ("evil.example", "", "192.168.0.7.evil.example"):
        assert not guard._knows(name), name


# Under load, and where something fails


def test_busy(model: Path) -> None:
    """Three images inside, one of them in the network; the fourth is told to come again, and health is answered meanwhile."""
    slow = Slow(OnnxRuntime(model, threads=1))
    images = [bright(seed=seed) for seed in range(3)]
    answers: dict[int, Any] = {}
    with serving(create_service(slow, ServeOptions(most_images=3))) as client:
        slow.go.clear()

        def one(index: int) -> None:
            answers[index] = client.found(png(images[index]))

        threads = [threading.Thread(target=one, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: json.loads(client("GET", "/health")[2]) == {"status": "ok", "images": 3})
        until(lambda: slow.inside == 1)
        status, headers, content = client("POST", "/predict", png(images[0]))
        assert (status, headers["retry-after"]) == (503, "1")
        assert json.loads(content)["error"]["kind"] == "Busy"
        assert not answers
        slow.go.set()
        for thread in threads:
            thread.join(60)
        assert client.found(png(images[0])) == answers[0]
        assert json.loads(client("GET", "/health")[2])["images"] == 0
    assert slow.most == 1
    for index, image in enumerate(images):
        assert answers[index] == json.loads(json.dumps(expected(Predictor(OnnxRuntime(model, threads=1)), image)))


def test_a_client_that_goes_away_or_never_ends_leaves_its_place(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\nhalf"
    monkeypatch.setattr(service_module, "_BODY_SECONDS", 0.2)
    with (
        socket.create_connection(("127.0.0.1", client.port)) as gone,
        socket.create_connection(("127.0.0.1", client.port)) as idle,
    ):
        gone.sendall(head)
        idle.sendall(head)
        until(lambda: json.loads(client("GET", "/health")[2])["images"] >= 1)
        gone.close()
        idle.settimeout(60)
        assert idle.recv(1000).startswith(b"HTTP/1.1 408")
        until(lambda: json.loads(client("GET", "/health")[2])["images"] == 0)


class Failing(Slow):
    error: Exception | None = None

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        if self.error is not None:
            raise self.error
        return super().run(images)


def test_failures_tell_nothing_of_the_inside(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runtime = Failing(OnnxRuntime(model, threads=1))
    with serving(create_service(runtime)) as client:
        runtime.error = RuntimeError("the secret of the house")
        status, kind, message = client.refused("POST", "/predict", png(bright()))
        assert (status, kind) == (500, "InternalError")
        assert "secret" not in message
        runtime.error = ModelError("the network gave up", where="m.onnx")
        assert client.refused("POST", "/predict", png(bright())) == (500, "ModelError", "m.onnx: the network gave up")
        runtime.error = None
        assert client.found(png(bright()))["count"] > 0
    log = capfd.readouterr().err
    assert "the secret of the house" in log
    assert "Traceback" in log


def test_sixteen_bits_are_told_once(model: Path) -> None:
    told: list[str] = []
    with serving(create_service(OnnxRuntime(model, threads=1), tell=told.append)) as client:
        for _ in range(2):
            client.found(png(bright().astype(np.uint16) * 100), name="deep.png")
    assert len(told) == 1
    assert "deep.png has 16 bits" in told[0]
