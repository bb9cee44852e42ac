"""The service and large TIFFs: read in windows, answered as `pelagia predict` answers, and within the limit of pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from colours import Colours
from pelagia.core.image import decode
from pelagia.core.scan import Scan
from pelagia.core.tiff_pieces import TiffPieces
from pelagia.infer.folder import FolderRun
from pelagia.infer.options import PredictOptions
from pelagia.infer.runtimes import OnnxRuntime
from pelagia.serve.options import ServeOptions
from pelagia.serve.service import create_service
from serving import bright, png, serving
from tiny_onnx import write_tiny

WIDTH, HEIGHT = 230, 150
PIXELS = WIDTH * HEIGHT

KINDS: dict[str, dict[str, Any]] = {
    "tiles": {"tile": (16, 32), "compression": "zlib", "predictor": True},
    "strips": {"rowsperstrip": 8, "compression": "lzw"},
    "raw": {"rowsperstrip": 8},
    "bigtiff": {"tile": (32, 16), "compression": "zlib", "bigtiff": True, "byteorder": ">"},
    "turned": {"tile": (16, 16), "compression": "zlib", "extratags": [(274, "H", 1, 6, True)]},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("serve") / "m.onnx")


@pytest.fixture(autouse=True)
def _scans_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of these tests are large enough to be read in windows, in blocks of few rows."""
    monkeypatch.setattr("pelagia.core.scan.WHOLE_PIXELS", 10_000)
    monkeypatch.setattr("pelagia.core.tiff_pieces._BLOCK_ROWS", 16)


@pytest.fixture
def read_in(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """The pixels of every piece that is decoded and of every window that is read; an image that is decoded whole fails."""
    pixels: dict[str, list[int]] = {"pieces": [], "windows": []}
    piece, window = TiffPieces.piece, Scan.read

    def counted_piece(self: TiffPieces, row: int, column: int) -> NDArray[Any]:
        found = piece(self, row, column)
        pixels["pieces"].append(found.shape[0] * found.shape[1])
        return found

    def counted_window(self: Scan, x: int, y: int, width: int, height: int) -> Any:
        pixels["windows"].append(width * height)
        return window(self, x, y, width, height)

    def whole(_: Any) -> Any:
        raise AssertionError("decoded whole")

    monkeypatch.setattr(TiffPieces, "piece", counted_piece)
    monkeypatch.setattr(Scan, "read", counted_window)
    monkeypatch.setattr("pelagia.core.tiff.read_page", whole)
    return pixels


def tiff(path: Path, image: NDArray[Any] | None = None, kind: str = "tiles") -> bytes:
    tifffile.imwrite(path, bright(HEIGHT, WIDTH) if image is None else image, photometric="rgb", metadata=None, **KINDS[kind])
    return path.read_bytes()


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_scan_is_answered_from_windows(model: Path, tmp_path: Path, read_in: dict[str, list[int]], kind: str) -> None:
    """The document is that of `pelagia predict` on the file; the service never has the whole image."""
    data = tiff(tmp_path / "a.tif", kind=kind)
    FolderRun(OnnxRuntime(model, threads=1), [tmp_path / "a.tif"], tmp_path / "out").go(lambda *_: None)
    wanted = json.loads((tmp_path / "out" / "results.json").read_text())["images"][0]
    assert wanted["count"] >= 5
    for numbers in read_in.values():
        numbers.clear()
    with serving(create_service(OnnxRuntime(model, threads=1), ServeOptions(max_pixels=PIXELS // 5))) as client:
        assert client.found(data, name="a.tif") == wanted
    assert PIXELS <= sum(read_in["pieces"]) < 2 * PIXELS
    assert max(read_in["pieces"]) <= 16 * WIDTH
    assert len(read_in["windows"]) >= 12
    assert max(read_in["windows"]) <= PIXELS // 5


def test_the_picture_of_a_scan(model: Path, tmp_path: Path) -> None:
    """It is that of the image in a PNG."""
    data, answers = tiff(tmp_path / "a.tif"), []
    with serving(create_service(OnnxRuntime(model, threads=1))) as client:
        for body in (data, png(bright(HEIGHT, WIDTH))):
            status, headers, content = client("POST", "/predict?answer=picture", body)
            assert (status, headers["content-type"]) == (200, "image/png")
            answers.append(decode(content))
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize(
    ("limit", "query", "told"),
    [
        (PIXELS // 10 - 1, {}, f"{WIDTH} x {HEIGHT} pixels, more than 10 times the limit of 3,449;"),
        (PIXELS - 1, {"tiling": "never"}, "more than the limit of 34,499 for a map, a picture or an image that is not"),
        (PIXELS - 1, {"answer": "picture"}, "more than the limit of 34,499 for a map, a picture"),
        (PIXELS - 1, {"answer": "map"}, "more than the limit of 34,499 for a map"),
        (PIXELS - 1, {"map": "true"}, "more than the limit of 34,499 for a map"),
        (PIXELS // 200, {}, "more than 100 times the limit of 172;"),
    ],
)
def test_what_is_too_much_to_hold(model: Path, tmp_path: Path, limit: int, query: dict[str, str], told: str) -> None:
    data = tiff(tmp_path / "a.tif")
    with serving(create_service(OnnxRuntime(model, threads=1), ServeOptions(max_pixels=limit))) as client:
        status, kind, message = client.refused("POST", f"/predict?{urlencode({**query, 'name': 'a.tif'})}", data)
        assert (status, kind) == (422, "ImageError")
        assert message.startswith("a.tif: ")
        assert told in message
        facts = json.loads(client("GET", "/model")[2])
    assert facts["limits"]["max_scan_pixels"] == 10 * limit


def test_pieces_are_limited(model: Path, tmp_path: Path) -> None:
    data = tiff(tmp_path / "a.tif", kind="tiles")
    with serving(create_service(OnnxRuntime(model, threads=1), ServeOptions(max_pixels=PIXELS // 9))) as client:
        assert client.found(data)["count"] > 0
        tifffile.imwrite(tmp_path / "b.tif", bright(HEIGHT, WIDTH), photometric="rgb", tile=(64, 64), compression="zlib")
        status, kind, message = client.refused("POST", "/predict", (tmp_path / "b.tif").read_bytes())
    assert (status, kind) == (422, "ImageError")
    assert "stored in pieces of 64 x 64 pixels" in message


def test_class_maps_are_held_and_so_limited(tmp_path: Path) -> None:
    data = tiff(tmp_path / "a.tif")
    for limit, enough in ((PIXELS, True), (PIXELS - 1, False)):
        with serving(create_service(Colours(), ServeOptions(max_pixels=limit))) as client:
            if enough:
                assert sum(item["pixels"] for item in client.found(data)["classes"]) == PIXELS
            else:
                assert "for a map" in client.refused("POST", "/predict", data)[2]


@pytest.mark.parametrize(("query", "told"), [({}, "exact"), ({"blend": "hann"}, "hann"), ({"tiling": "never"}, None)])
def test_a_class_map_says_how_tiles_became_one(tmp_path: Path, query: dict[str, Any], told: str | None) -> None:
    """As the document of `pelagia predict` does; one that is not made of tiles does not."""
    data = tiff(tmp_path / "a.tif")
    FolderRun(Colours(), [tmp_path / "a.tif"], tmp_path / "out", PredictOptions(**query)).go(lambda *_: None)
    wanted = json.loads((tmp_path / "out" / "results.json").read_text())["images"][0]
    del wanted["map"]
    assert wanted.get("blend") == told
    with serving(create_service(Colours())) as client:
        assert client.found(data, name="a.tif", **query) == wanted


def test_a_scan_that_breaks_off(model: Path, tmp_path: Path) -> None:
    """What the directory states is missing, or a tile in the middle is no deflate: told by the name of the request."""
    data = tiff(tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        start, count = file.pages[0].dataoffsets[20], file.pages[0].databytecounts[20]  # type: ignore[union-attr]
    broken = data[:start] + b"\xff" * count + data[start + count :]
    with serving(create_service(OnnxRuntime(model, threads=1))) as client:
        for body in (data[: len(data) * 2 // 3], broken):
            status, kind, message = client.refused("POST", "/predict?name=a.tif", body)
            assert (status, kind) == (422, "ImageError")
            assert message.startswith("a.tif: ")
        assert client.found(data)["count"] > 0


@pytest.mark.parametrize("name", [".", "/", "tests", "no/such.tif", ""])
def test_names_of_requests_are_never_opened(model: Path, tmp_path: Path, name: str) -> None:
    data, image = tiff(tmp_path / "a.tif"), png(bright())
    with serving(create_service(OnnxRuntime(model, threads=1))) as client:
        for body in (data, image):
            assert client.found(body, name=name) == {**client.found(body), "file": name}


def test_decoding_whole_would_be_noticed(model: Path, tmp_path: Path, read_in: dict[str, list[int]]) -> None:
    """As of a TIFF that is compressed in one piece."""
    tifffile.imwrite(tmp_path / "a.tif", bright(HEIGHT, WIDTH), photometric="rgb", compression="zlib", rowsperstrip=HEIGHT)
    with serving(create_service(OnnxRuntime(model, threads=1))) as client:
        assert client.refused("POST", "/predict", (tmp_path / "a.tif").read_bytes())[:2] == (500, "InternalError")
    assert read_in["pieces"] == []
