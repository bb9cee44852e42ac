"""The service: the real server on a loopback address, asked as programs and browsers ask it."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from starlette.types import ASGIApp

from noise import noise
from pelagia.api import Predictor, load
from pelagia.core.card import ModelCard
from pelagia.core.image import decode, encode, read, write
from pelagia.core.lazy import EXTRAS
from pelagia.core.palette import colour
from pelagia.core.types import Instances, Task
from pelagia.data.synthetic import draw_image
from pelagia.errors import ModelError, OptionError
from pelagia.export.onnx import export_onnx
from pelagia.infer.folder import FolderRun
from pelagia.infer.options import PredictOptions
from pelagia.infer.result_values import image_dict, numbered
from pelagia.infer.runtimes import OnnxRuntime, Runtime
from pelagia.models.runtime import TorchRuntime
from pelagia.serve import service as service_module
from pelagia.serve.guard import Guard
from pelagia.serve.options import ServeOptions
from pelagia.serve.parameters import read_query
from pelagia.serve.server import address_of, create_server, listen
from pelagia.serve.service import create_service
from small_models import scrambled_entry
from test_cli import WITHOUT_TENSORS
from tiny_onnx import tiny_card, write_tiny

SOURCE = Path(__file__).parents[1] / "src"

#: Random weights find something from here on.
LOW = {"score": 0.001, "most": 30}


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


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("serve") / "m.onnx")


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[Client]:
    """A detector with small limits."""
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


# Answers


def expected(predictor: Predictor, image: NDArray[Any], **options: Any) -> dict[str, Any]:
    found = predictor.predict(image, **options)
    found = found if not hasattr(found, "ids") else numbered(found)[0]
    return image_dict(found, "image", (image.shape[1], image.shape[0]), predictor.card)


@pytest.mark.parametrize("shape", [(64, 64), (50, 90), (150, 230)])
def test_answers_are_those_of_predict(client: Client, model: Path, shape: tuple[int, int]) -> None:
    """Small images and, at the third size, tiles."""
    image, predictor = bright(*shape), load(model, threads=1)
    found = client.found(png(image))
    assert found == json.loads(json.dumps(expected(predictor, image)))
    assert found["count"] >= 3
    assert found["objects"][0]["class_id"] in (3, 7)


def test_every_option_of_a_request_counts(client: Client, model: Path) -> None:
    image, predictor = bright(150, 230, seed=1), load(model, threads=1)
    plain = client.found(png(image))
    for options in ({"tiling": "never"}, {"most": 2}, {"score": 0.9999}, {"nms_iou": 0.2, "agnostic": True}, {"coarse": True}):
        query = {name: str(value).lower() if isinstance(value, bool) else value for name, value in options.items()}
        assert client.found(png(image), **query) == json.loads(json.dumps(expected(predictor, image, **options))), options
    assert client.found(png(image), most=2)["count"] == 2
    assert client.found(png(image), tiling="never") != plain
    assert client.found(png(image), name="a/Ä b.png") == {**plain, "file": "a/Ä b.png"}


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "tiled", "bmp", "webp", "turned", "16 bits"])
def test_every_kind_of_file_is_read(client: Client, model: Path, tmp_path: Path, kind: str) -> None:
    path, image = tmp_path / f"a.{kind if len(kind) in (3, 4) else 'png'}", bright(72, 120)
    if kind == "tiled":
        tifffile.imwrite(path, image, tile=(16, 16), compression="zlib", photometric="rgb")
    elif kind == "turned":
        exif = Image.Exif()
        exif[274] = 6
        Image.fromarray(image).save(path, exif=exif)
    else:
        write(path, image.astype(np.uint16) if kind == "16 bits" else image)
    found = client.found(path.read_bytes())
    assert found == json.loads(json.dumps(expected(load(model, threads=1), read(path))))
    assert (found["width"], found["height"]) == ((72, 120) if kind == "turned" else (120, 72))


def _runtime(name: str, task: Task, folder: Path, *, exported: bool) -> Runtime:
    network = scrambled_entry(name, task)
    if not exported:
        return TorchRuntime(network, device=torch.device("cpu"))
    export_onnx(network, folder / "m.onnx")
    return OnnxRuntime(folder / "m.onnx", threads=1)


@pytest.mark.parametrize(
    ("name", "task", "exported"),
    [
        ("yolo11n", "instance", True),
        ("unet", "semantic", True),
        ("yolo11n", "oriented", False),
        ("yolo11n", "keypoints", False),
        ("mask2former-r50", "panoptic", False),
    ],
)
def test_every_task(tmp_path: Path, name: str, task: Task, exported: bool) -> None:
    """The document, the map and the picture are those that `pelagia predict` writes, and nothing else is written."""
    runtime = _runtime(name, task, tmp_path, exported=exported)
    path, query = tmp_path / "a.png", {} if task == "semantic" else LOW
    write(path, draw_image(np.random.default_rng(0), 120, 90).image)
    FolderRun(runtime, [path], tmp_path / "out", PredictOptions(**query)).go(lambda *_: None)  # type: ignore[arg-type]
    wanted = json.loads((tmp_path / "out" / "results.json").read_text())["images"][0]
    place, _ = wanted.pop("map", None), wanted.pop("blend", None)  # how tiles became one map, which is told in files only
    assert len(wanted.get("objects") or wanted.get("segments") or wanted["classes"]) > 0
    before = sorted(tmp_path.rglob("*"))
    with serving(create_service(runtime)) as client:
        assert client.found(path.read_bytes(), name="a.png", **query) == wanted
        status, headers, drawn = client("POST", f"/predict?{urlencode({**query, 'answer': 'picture'})}", path.read_bytes())
        assert (status, headers["content-type"]) == (200, "image/png")
        if place is None:
            told = client.refused("POST", "/predict?answer=map", path.read_bytes())
            assert told[:2] == (400, "OptionError")
        else:
            stored = np.asarray(Image.open(tmp_path / "out" / place))
            status, headers, content = client("POST", f"/predict?{urlencode({**query, 'answer': 'map'})}", path.read_bytes())
            assert (status, headers["content-type"]) == (200, "image/png")
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), stored)
            found = client.found(path.read_bytes(), name="a.png", map="true", **query)
            head, _, text = found.pop("map").partition(",")
            assert head == "data:image/png;base64"
            assert base64.b64decode(text) == content
            assert found == wanted
        facts = json.loads(client("GET", "/model")[2])
    assert sorted(tmp_path.rglob("*")) == before
    assert (facts["task"], facts["name"]) == (task, name)
    # The picture of the command is a JPEG of the same drawing.
    assert encode(decode(drawn), ".jpg") == next((tmp_path / "out" / "pictures").iterdir()).read_bytes()


def test_the_model_is_told(model: Path) -> None:
    card = OnnxRuntime(model).card
    chosen = PredictOptions(score=0.4)
    with serving(create_service(OnnxRuntime(model, threads=1), ServeOptions(max_bytes=77), chosen)) as client:
        facts = json.loads(client("GET", "/model")[2])
        schema = json.loads(client("GET", "/openapi.json")[2])
    assert [(item["id"], item["name"]) for item in facts["classes"]] == [(3, "red"), (7, "green")]
    assert facts["classes"][1]["colour"] == "#{:02x}{:02x}{:02x}".format(*colour(1))
    assert len(set(facts["classes"][1]["shades"])) == 7
    assert facts["input_size"] == list(card.input_size)
    assert (facts["licence"], facts["score"], facts["options"]) == ("CC0-1.0", 0.4, {"score": 0.4})
    assert facts["runtime"].startswith("onnxruntime")
    assert facts["limits"] == {"max_bytes": 77, "max_pixels": 100_000_000, "most_images": 8}
    assert {item["name"] for item in schema["paths"]["/predict"]["post"]["parameters"]} >= {"score", "tiling", "answer"}


def test_options_of_the_command_hold_where_a_request_says_nothing(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.onnx", tiny_card(thresholds={"red": 0.9, "green": 0.3}))
    image = bright()
    with serving(create_service(OnnxRuntime(path, threads=1), None, PredictOptions(most=1))) as client:
        assert client.found(png(image))["count"] == 1
        assert client.found(png(image), most=0) == json.loads(json.dumps(expected(load(path, threads=1), image)))


def test_the_page_has_all_its_parts_and_needs_nothing_else(client: Client) -> None:
    texts = {}
    for path, kind in (("/", "html"), ("/page.css", "css"), ("/page.js", "javascript"), ("/shapes.js", "javascript")):
        status, headers, content = client("GET", path)
        assert status == 200
        assert kind in headers["content-type"]
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
        texts[path] = content.decode()
    for text in texts.values():
        assert not re.search(r"https?://|//[a-z]+\.", text)
        assert "style=" not in text  # which the policy forbids
    for name in re.findall(r'at\("(\w+)"\)', texts["/page.js"]):
        assert f'id="{name}"' in texts["/"], name
    for name in re.findall(r'(?:src|href)="([\w.]+)"', texts["/"]):
        assert f"/{name}" in texts
    assert client("HEAD", "/")[0] == 200


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


# The command


@contextmanager
def running(*words: str | Path, cwd: Path, before: str = "", after: str = "") -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """The command in a process of its own, and the JSON document that it prints when it listens."""
    code = (
        f"{before}\nimport sys\nfrom pelagia.cli.main import main\ntry:\n    main({['serve', *map(str, words), '--json']!r})\n"
        f"except SystemExit as stop:\n    {after or 'pass'}\n    raise"
    )
    env = {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "PATH": ""}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=cwd
    )
    try:
        assert process.stdout is not None
        lines = []
        while not lines or lines[-1] not in ("}\n", ""):
            lines.append(process.stdout.readline())
        yield process, json.loads("".join(lines) or "null")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_an_exported_file_is_served_without_torch_and_stops_cleanly(model: Path, tmp_path: Path, kind: signal.Signals) -> None:
    image, empty = bright(), tmp_path / "empty"
    empty.mkdir()
    loaded = "print(sorted({name.split('.')[0] for name in sys.modules}))"
    words = (model, "--port", "0", "--threads", "1")
    with running(*words, cwd=empty, before=WITHOUT_TENSORS, after=loaded) as (process, told):
        assert (told["model"], told["task"]) == ("m.onnx", "detect")
        client = Client(int(told["url"].rstrip("/").rpartition(":")[2]))
        assert client.found(png(image)) == json.loads(json.dumps(expected(load(model, threads=1), image)))
        assert client("POST", "/predict?answer=picture", png(image))[0] == 200
        process.send_signal(kind)
        output, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    assert error == "stopped\n"
    assert not list(empty.iterdir())
    assert "'onnxruntime'" in output
    for heavy in ("torch", "torchvision", "timm", "onnx", "matplotlib", "pandas", "pyarrow", "skimage"):
        assert f"'{heavy}'" not in output, heavy


def test_a_request_in_work_is_answered_when_it_stops(model: Path) -> None:
    slow = Slow(OnnxRuntime(model, threads=1))
    answers: list[Any] = []
    with serving(create_service(slow)) as client:
        slow.go.clear()
        thread = threading.Thread(target=lambda: answers.append(client.found(png(bright()))))
        thread.start()
        until(lambda: slow.inside == 1)
        threading.Timer(0.3, slow.go.set).start()
    thread.join(60)
    assert answers[0]["count"] > 0


def test_the_command_refuses_what_it_cannot_do(model: Path, tmp_path: Path) -> None:
    def fails(*words: str | Path, before: str = "") -> str:
        with running(*words, cwd=tmp_path, before=before) as (process, told):
            assert told is None
            _, error = process.communicate(timeout=60)
            assert process.returncode in (1, 2)
            assert "Traceback" not in error
            return error

    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1, port {port}" in fails(model, "--port", str(port))
    assert "port must lie in 0 to 65535" in fails(model, "--port", "70000")
    assert "there is no such file" in fails(tmp_path / "absent.onnx", "--port", "0")
    assert "score must lie in 0 to 1" in fails(model, "--port", "0", "--score", "3")
    absent = WITHOUT_TENSORS.replace('"torch",', '"fastapi", "uvicorn", "torch",')
    assert "pip install 'pelagia[serve]'" in fails(model, "--port", "0", before=absent)
    assert EXTRAS["fastapi"] == EXTRAS["uvicorn"] == EXTRAS["starlette"] == "serve"


def test_addresses() -> None:
    with listen("127.0.0.1", 0) as listening:
        assert address_of(listening) == f"http://127.0.0.1:{listening.getsockname()[1]}/"
    with listen("0.0.0.0", 0) as listening:
        assert address_of(listening) == f"http://localhost:{listening.getsockname()[1]}/"
    with pytest.raises(OptionError, match="choose another"):
        listen("no.such.host.invalid", 0)
    with pytest.raises(OptionError, match="most_images must be at least 1"):
        ServeOptions(most_images=0)


def test_a_query_keeps_what_it_does_not_name() -> None:
    base = PredictOptions(score=0.7, tile=99)
    asked = read_query([("most", "3"), ("agnostic", "true"), ("score", "null")], base)
    assert asked.options == PredictOptions(score=None, tile=99, most=3, agnostic=True)
    assert (asked.answer, asked.map, asked.name) == ("json", False, "image")


def test_found_objects_are_some(model: Path) -> None:
    """The images of this file are no empty ones."""
    found = load(model, threads=1).predict(bright())
    assert isinstance(found, Instances)
    assert len(found) >= 4
