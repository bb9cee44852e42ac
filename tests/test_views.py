"""What the network sees of a scan: read and warped ahead by one thread, the same from every layout of the file."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from pelagia import api
from pelagia.cli.main import main
from pelagia.core import scan as scan_module
from pelagia.core.image import normalise
from pelagia.core.scan import Scan, open_scan
from pelagia.errors import ImageError, OptionError
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_files, predict_image
from pelagia.infer.runtimes import OnnxRuntime
from pelagia.infer.tiles import Tile, lay_tiles
from pelagia.infer.views import views
from tiny_onnx import tiny_card, write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture(scope="module")
def runtime(model: Path) -> OnnxRuntime:
    return OnnxRuntime(model, threads=1)


@pytest.fixture(autouse=True)
def _pieces_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "WHOLE_PIXELS", 0)


def readers() -> int:
    return sum(thread.name.startswith("ahead") for thread in threading.enumerate())


def command(*tokens: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(tokens)
    return int(str(ended.value.code))


def organisms(height: int, width: int, count: int = 60) -> NDArray[np.uint8]:
    """Bright cells of both classes on the grid of the tiny model."""
    rng = np.random.default_rng(3)
    image = np.zeros((height, width, 3), dtype=np.uint8)
    for _ in range(count):
        x, y, label = 8 * int(rng.integers(width // 8)), 8 * int(rng.integers(height // 8)), int(rng.integers(2))
        image[y : y + 8, x : x + 8] = 0
        image[y : y + 8, x : x + 8, label] = 255
    return image


def write_layouts(folder: Path, image: NDArray[np.uint8]) -> list[Path]:
    """The same pixels in every layout that is read in windows."""
    folder.mkdir(exist_ok=True)
    layouts: dict[str, dict[str, Any]] = {
        "tiles": {"tile": (64, 64)},
        "tiles_deflate": {"tile": (48, 80), "compression": "zlib", "predictor": True},
        "strips_lzw": {"rowsperstrip": 7, "compression": "lzw"},
        "strips": {"rowsperstrip": 1},
        "one_strip": {"rowsperstrip": len(image)},
        "big": {"tile": (128, 128), "bigtiff": True, "compression": "zstd"},
    }
    for name, options in layouts.items():
        tifffile.imwrite(folder / f"{name}.tif", image, photometric="rgb", metadata=None, **options)
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    tifffile.imwrite(folder / "planes.tif", planes, photometric="rgb", planarconfig="separate", rowsperstrip=9, metadata=None)
    tifffile.imwrite(folder / "c.ome.tif", planes, ome=True, metadata={"axes": "CYX"}, photometric="minisblack", tile=(64, 64))
    zarr.create_array(folder / "d.zarr", data=image, chunks=(50, 70, 3))
    return sorted(folder.iterdir())


def test_every_layout_gives_the_same_predictions_to_the_byte(tmp_path: Path, model: Path) -> None:
    image = organisms(300, 420)
    paths = write_layouts(tmp_path / "scans", image)
    expected = predict_image(OnnxRuntime(model, threads=1), image)
    assert len(expected) > 40
    predictor = api.load(model, threads=1)
    for path in paths:
        with open_scan(path) as scan:
            assert not isinstance(scan._source, np.ndarray), path
        found = predictor.predict(path)
        for name in ("boxes", "scores", "labels"):
            assert getattr(found, name).tobytes() == getattr(expected, name).tobytes(), path
    assert command("predict", str(model), str(tmp_path / "scans"), "--out", str(tmp_path / "out"), "--no-draw") == 0
    images = json.loads((tmp_path / "out" / "results.json").read_text())["images"]
    assert sorted(item["file"] for item in images) == [path.name for path in paths]
    told = {json.dumps(item["objects"]) for item in images}
    assert len(told) == 1
    assert len(json.loads(told.pop())) == len(expected)


@pytest.mark.parametrize("margin", [0, 16])
@pytest.mark.parametrize("size", [64, 96])
def test_views_are_the_tiles_and_what_surrounds_them(margin: int, size: int) -> None:
    """At scale 1 the image, continued by its mirror image where a margin reaches beyond it, and by the fill."""
    image = np.random.default_rng(0).integers(0, 256, (150, 210, 3), dtype=np.uint8)
    card = tiny_card(input_size=(size + 2 * margin, size + 2 * margin), margin=margin)
    tiles = lay_tiles((210, 150), (size, size), 10, 8)
    assert tiles[-1].box[2] > 210  # the last ones stick out
    mirrored = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    canvas = np.full((400, 400, 3), 114, np.uint8)
    canvas[: len(mirrored), : mirrored.shape[1]] = mirrored
    for local in (False, True):
        found = list(views(Scan.of(image), tiles, card, local=local, most=3))
        assert len(found) == len(tiles)
        for tile, (view, frame) in zip(tiles, found, strict=True):
            side = size + 2 * margin
            np.testing.assert_array_equal(view, canvas[tile.y : tile.y + side, tile.x : tile.x + side])
            corner = frame.points(np.array([[margin, margin]], dtype=np.float64))[0]
            assert corner.tolist() == ([0, 0] if local else [tile.x, tile.y])
            assert (frame.width, frame.height) == ((size, size) if local else (210, 150))


def test_one_thread_reads_and_ends_with_its_consumer(tmp_path: Path) -> None:
    path = write_layouts(tmp_path, organisms(300, 420))[0]
    card, users = tiny_card(), set()
    tiles = lay_tiles((420, 300), (64, 64), 13)
    with open_scan(path) as scan:
        original = scan.read

        def watched(x: int, y: int, width: int, height: int) -> Any:
            users.add(threading.get_ident())
            return original(x, y, width, height)

        scan.read = watched  # type: ignore[method-assign]
        with closing(views(scan, tiles, card, local=False, most=4)) as shown:
            assert readers() == 0
            next(shown)
            assert readers() == 1
        assert readers() == 0
        assert len(users) == 1
        assert users != {threading.get_ident()}


def broken(path: Path, image: NDArray[np.uint8]) -> Path:
    """A tiled TIFF with a piece destroyed in the middle."""
    tifffile.imwrite(path, image, photometric="rgb", tile=(64, 64), compression="zlib", metadata=None)
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        offset, count = page.dataoffsets[17], page.databytecounts[17]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = bytes(count)
    path.write_bytes(bytes(data))
    return path


def test_an_error_of_the_reader_is_that_of_the_file(tmp_path: Path, runtime: OnnxRuntime) -> None:
    image = organisms(300, 420)
    path = broken(tmp_path / "b.tif", image)
    with open_scan(path) as scan, pytest.raises(ImageError, match=r"b\.tif: piece 17 .*copy or save the file again"):
        predict_image(runtime, scan)
    assert readers() == 0
    good = tmp_path / "a.tif"
    tifffile.imwrite(good, image, photometric="rgb", tile=(64, 64))
    zarr.create_array(tmp_path / "c.zarr", data=image[..., 0].astype(np.float32))
    results = list(predict_files(runtime, [good, path, tmp_path / "c.zarr", good]))
    assert [item.found is None for item in results] == [False, True, True, False]
    assert "piece 17" in (results[1].error or "")
    assert "float32" in (results[2].error or "")
    assert readers() == 0


def test_an_error_of_the_network_ends_the_reader(tmp_path: Path, runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_layouts(tmp_path, organisms(300, 420))[0]
    calls: list[int] = []

    def failing(batch: NDArray[np.float32]) -> Any:
        calls.append(len(batch))
        if len(calls) == 2:
            raise MemoryError("no memory left")
        return OnnxRuntime.run(runtime, batch)

    monkeypatch.setattr(runtime, "run", failing)
    monkeypatch.setattr(runtime, "lanes", tuple)  # it is run itself
    with open_scan(path) as scan:
        with pytest.raises(MemoryError, match="no memory left"):
            predict_image(runtime, scan, PredictOptions(batch=2))
        assert readers() == 0
        scan.read(0, 0, 420, 300)  # still open, and nobody else reads
    assert calls[:2] == [2, 2]


def test_the_limit_can_be_lowered_and_raised(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = organisms(300, 420)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", compression="zlib", rowsperstrip=300)
    from_tiles = tmp_path / "t.tif"
    tifffile.imwrite(from_tiles, image, photometric="rgb", tile=(64, 64))
    for name in ("a.tif", "t.tif"):
        assert len(api.load(model).predict(tmp_path / name, max_pixels=300 * 420)) > 40
    with pytest.raises(ImageError, match=r"a\.tif: 420 x 300 pixels, more than the limit of 125,999"):
        api.load(model).predict(tmp_path / "a.tif", max_pixels=300 * 420 - 1)
    with pytest.raises(ImageError, match=r"t\.tif: stored in pieces of 64 x 64"):
        api.load(model).predict(from_tiles, max_pixels=4095)
    words = ["predict", str(model), str(tmp_path / "a.tif"), "--out", str(tmp_path / "out"), "--no-draw", "--max-pixels"]
    assert command(*words, "1000") == 1
    assert "more than the limit of 1,000" in capsys.readouterr().err
    assert command(*words, "126000") == 0
    with pytest.raises(OptionError, match="max_pixels"):
        PredictOptions(max_pixels=0)


def test_tiles_may_come_in_any_order(runtime: OnnxRuntime) -> None:
    """What was forgotten is decoded again."""
    image = organisms(200, 200)
    tiles = [Tile(0, 136, 64, 64), Tile(0, 0, 64, 64), Tile(136, 64, 64, 64)]
    found = views(Scan.of(image), tiles, runtime.card, local=False, most=2)
    for tile, (view, _) in zip(tiles, found, strict=True):
        np.testing.assert_array_equal(view, image[tile.y : tile.y + 64, tile.x : tile.x + 64])
        assert normalise(view, runtime.card.normalisation).shape == (3, 64, 64)
