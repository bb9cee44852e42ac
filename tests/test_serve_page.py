"""The page of the service in a headless Chromium: an image goes in, and what is found is drawn and counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from browser import Page, browsing, find_browser
from colours import Colours
from pelagia.core.image import write
from pelagia.core.palette import colour
from pelagia.infer.runtimes import OnnxRuntime
from pelagia.serve.options import ServeOptions
from pelagia.serve.service import create_service
from serving import Client, serving
from tiny_onnx import write_tiny

PROGRAM = find_browser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="neither chromium nor chrome is on the PATH (apt-get install chromium)"),
]

SIDE, SHOWN = 64, 800  # of the image, and of the canvas that shows it


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """An empty tab; in the end nothing on the page may have failed, or have been kept from it by its policy."""
    with browsing(PROGRAM or "", tmp_path / "profile") as found:
        yield found
        assert found.told == []


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    model = write_tiny(tmp_path_factory.mktemp("page") / "m.onnx")
    with serving(create_service(OnnxRuntime(model, threads=1), ServeOptions(max_bytes=100_000))) as found:
        yield found


def go_to(page: Page, client: Client) -> None:
    page("Page.navigate", url=f"http://127.0.0.1:{client.port}/")
    page.until("document.getElementById('model')?.textContent.includes('task')")


def choose(page: Page, file: Path) -> None:
    root = page("DOM.getDocument")["root"]["nodeId"]
    field = page("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    page("DOM.setFileInputFiles", nodeId=field, files=[str(file)])


def drop(page: Page, file: Path) -> None:
    """Onto the middle of the page."""
    data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        page("Input.dispatchDragEvent", type=kind, x=600, y=300, data=data)


def status(page: Page) -> str:
    return str(page.value("document.getElementById('status').textContent"))


def until_told(page: Page, text: str) -> None:
    page.until(f"document.getElementById('status').textContent.includes({text!r})")


def rows(page: Page) -> list[list[str]]:
    """The cells of the table that are seen."""
    assert not page.value("document.getElementById('counts').hidden")
    return page.value("[...document.querySelectorAll('#counts tr')].map((row) => [...row.cells].map((cell) => cell.textContent))")  # type: ignore[no-any-return]


def picture(page: Page) -> NDArray[np.uint8]:
    """The pixels [H, W, 3] of the canvas that is seen."""
    assert not page.value("document.getElementById('picture').hidden")
    width, height, pixels = page.value(
        "(() => { const { width, height } = picture, { data } = picture.getContext('2d').getImageData(0, 0, width, height);"
        " return [width, height, Array.from(data)]; })()"
    )
    return np.array(pixels, dtype=np.uint8).reshape(height, width, 4)[..., :3]


def cells(folder: Path, name: str, *places: tuple[int, int, int]) -> Path:
    """A dark image with cells of 8 x 8 pixels at x, y in a channel: red and green ones are found."""
    image = np.full((SIDE, SIDE, 3), 20, dtype=np.uint8)
    for x, y, channel in places:
        image[y : y + 8, x : x + 8, channel] = 255
    write(folder / name, image)
    return folder / name


def assert_drawn(shown: NDArray[np.uint8], item: dict[str, Any]) -> None:
    """Each box of the document is a line of 2 pixels of its class's colour on the canvas, with the image inside and outside."""
    assert shown.shape == (SHOWN, SHOWN, 3)
    for found in item["objects"]:
        own = colour([3, 7].index(found["class_id"]))
        x1, y1, x2, y2 = (round(value * SHOWN / SIDE) for value in found["box"])
        middle = (y1 + y2) // 2
        for x in (x1, x1 + 1, x2 - 2, x2 - 1):
            assert tuple(shown[middle, x].tolist()) == own, (x, found)
        for y in (y2 - 2, y2 - 1):
            assert tuple(shown[y, (x1 + x2) // 2].tolist()) == own
        assert tuple(shown[middle, (x1 + x2) // 2].tolist()) != own
        assert tuple(shown[middle, x2 + 1].tolist()) != own
        above = shown[y1 - 12, x1 : x1 + 60].reshape(-1, 3).tolist()  # the tab with its name
        assert above.count(list(own)) > 20


@pytest.mark.parametrize("bring", [choose, drop])
def test_an_image_is_sent_drawn_and_counted(page: Page, client: Client, tmp_path: Path, bring: Any) -> None:
    file = cells(tmp_path, "cells.png", (8, 16, 0), (40, 16, 1), (16, 48, 0))
    item = client.found(file.read_bytes(), name=file.name)
    assert item["count"] == 3
    go_to(page, client)
    assert page.value("document.getElementById('picture').hidden && document.getElementById('counts').hidden")
    bring(page, file)
    until_told(page, "cells.png, 64 x 64 pixels: ")
    assert rows(page) == [["class", "count"], ["red", "2"], ["green", "1"], ["total", "3"]]
    assert_drawn(picture(page), item)

    # Another image takes its place, the first one's boxes go.
    other = cells(tmp_path, "other.png", (32, 32, 1))
    bring(page, other)
    until_told(page, "other.png, 64 x 64 pixels: ")
    assert rows(page)[1:] == [["red", "0"], ["green", "1"], ["total", "1"]]
    item = client.found(other.read_bytes())
    shown = picture(page)
    assert_drawn(shown, item)
    assert (shown[:200] == 20).all()


def test_the_score_is_asked_for(page: Page, client: Client, tmp_path: Path) -> None:
    """Objects below the slider go, and come back where the service knows of them."""
    file = cells(tmp_path, "cells.png", (8, 16, 0), (40, 16, 1))
    found = client.found(file.read_bytes(), score=0.01)
    assert found["count"] >= 2
    score = max(item["score"] for item in found["objects"])
    go_to(page, client)
    choose(page, file)
    until_told(page, "cells.png, 64 x 64 pixels: ")
    for value, count in ((min(score + 0.01, 1), 0), (0.01, found["count"])):
        page.value(f"(() => {{ score.value = {value}; score.dispatchEvent(new Event('input')); }})()")
        page.until(f"[...document.querySelectorAll('.total td')].map((cell) => cell.textContent).join() === '{count}'")
    assert not page.value("own.checked")


def test_an_image_that_browsers_cannot_read(page: Page, client: Client, tmp_path: Path) -> None:
    """Of a TIFF the page shows the picture that the service draws."""
    file = cells(tmp_path, "cells.tif", (8, 16, 0), (40, 16, 1))
    go_to(page, client)
    choose(page, file)
    until_told(page, "cells.tif, 64 x 64 pixels: ")
    assert rows(page)[-1] == ["total", "2"]
    drawn = {tuple(pixel) for pixel in picture(page).reshape(-1, 3).tolist()}
    assert {colour(0), colour(1)} <= drawn


def test_what_the_service_refuses_is_shown_as_text(page: Page, client: Client, tmp_path: Path) -> None:
    go_to(page, client)
    file = tmp_path / "<b>no<b> image.png"
    file.write_bytes(b"no image")
    choose(page, file)
    _, kind, message = client.refused("POST", "/predict?name=%3Cb%3Eno%3Cb%3E%20image.png", file.read_bytes())
    assert kind == "ImageError"
    until_told(page, "not an image")
    assert status(page) == message
    assert page.value("document.getElementById('status').classList.contains('alarm')")
    assert page.value("document.getElementById('status').children.length") == 0
    assert page.value("document.getElementById('picture').hidden && document.getElementById('counts').hidden")

    (tmp_path / "large.png").write_bytes(bytes(100_001))
    choose(page, tmp_path / "large.png")
    until_told(page, "large.png has 100,001 bytes; the service takes up to 100,000")

    # It goes on after that.
    choose(page, cells(tmp_path, "cells.png", (8, 16, 0)))
    until_told(page, "cells.png, 64 x 64 pixels: ")
    assert rows(page)[-1] == ["total", "1"]
    assert not page.value("document.getElementById('status').classList.contains('alarm')")


def test_a_class_map_is_drawn_and_measured(page: Page, tmp_path: Path) -> None:
    """Left half and right half are of two classes: their colours lie translucent over the image."""
    image = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    image[:, : SIDE // 2, 0] = image[:, SIDE // 2 :, 2] = 200
    write(tmp_path / "halves.png", image)
    with serving(create_service(Colours())) as client:
        go_to(page, client)
        assert page.value("document.getElementById('scores').hidden")
        choose(page, tmp_path / "halves.png")
        until_told(page, "halves.png, 64 x 64 pixels: ")
        names = [item.name for item in Colours().card.categories]
        told = [[names[0], "2,048", "50 %"], [names[1], "0", "0.0 %"], [names[2], "2,048", "50 %"]]
        assert rows(page) == [["class", "pixels", "share"], *told]
        shown = picture(page)
    for x, label in ((SHOWN // 4, 0), (SHOWN * 3 // 4, 2)):
        wanted = 0.55 * image[0, x * SIDE // SHOWN] + 0.45 * np.array(colour(label))
        np.testing.assert_allclose(shown[SHOWN // 2, x], wanted, atol=2)
    line = shown[SHOWN // 2, SHOWN // 2 - 1], shown[SHOWN // 2, SHOWN // 2]
    assert [tuple(pixel.tolist()) for pixel in line] == [colour(0), colour(2)]
