"""The service: the real server on a loopback address, asked as programs and browsers ask it."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from pelagia.api import load
from pelagia.core.image import decode, encode, read, write
from pelagia.core.lazy import EXTRAS
from pelagia.core.palette import colour
from pelagia.core.types import Instances, Task
from pelagia.data.synthetic import draw_image
from pelagia.errors import OptionError
from pelagia.export.onnx import export_onnx
from pelagia.infer.folder import FolderRun
from pelagia.infer.options import PredictOptions
from pelagia.infer.runtimes import OnnxRuntime, Runtime
from pelagia.models.runtime import TorchRuntime
from pelagia.serve.options import ServeOptions
from pelagia.serve.parameters import read_query
from pelagia.serve.server import address_of, listen
from pelagia.serve.service import create_service
from serving import Client, Slow, bright, expected, limited, png, serving, until
from small_models import scrambled_entry
from test_cli import WITHOUT_TENSORS
from tiny_onnx import tiny_card, write_tiny

SOURCE = Path(__file__).parents[1] / "src"

#: Random weights find something from here on.
LOW = {"score": 0.001, "most": 30}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("serve") / "m.onnx")


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[Client]:
    with limited(model) as found:
        yield found


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
    place = wanted.pop("map", None)
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
    assert facts["limits"] == {"max_bytes": 77, "max_pixels": 10**8, "max_scan_pixels": 10**9, "most_images": 8}
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
