"""ONNX files of Ultralytics: their metadata makes the card, their outputs the objects.

The oracle is what the small graph is built to answer; `benchmarks/parity_ultralytics_onnx.py` compares with real files.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import pelagia
from foreign_onnx_files import ANGLE, CELLS, HIGH, WIDE, cells, properties, write_foreign
from pelagia.cli.main import main
from pelagia.core.image import write
from pelagia.core.masks import paste
from pelagia.core.types import Category, Instances
from pelagia.decode import DecodeOptions
from pelagia.errors import CheckpointError, ModelError
from pelagia.infer.foreign_onnx import foreign_card, foreign_outputs
from pelagia.infer.openvino_runtime import OpenVinoRuntime
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_image
from pelagia.infer.runtimes import OnnxRuntime

#: Cells (row, column) and class of the objects in `picture`.
TRUTH = [((1, 2), 0), ((3, 5), 1), ((6, 1), 1)]


def picture() -> np.ndarray:
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    for strength, ((row, column), label) in zip((250, 240, 230), TRUTH, strict=True):
        image[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8, label] = strength
    return image


@pytest.mark.parametrize("selected", [False, True])
@pytest.mark.parametrize("task", ["detect", "obb", "segment"])
@pytest.mark.parametrize("batch", [1, "batch"])
@pytest.mark.parametrize("kind", [OnnxRuntime, OpenVinoRuntime])
def test_objects_are_those_of_the_graph(
    tmp_path: Path, task: str, selected: bool, batch: int | str, kind: type[OnnxRuntime | OpenVinoRuntime]
) -> None:
    path = write_foreign(tmp_path / "m.onnx", properties(task), selected=selected, batch=batch)
    runtime = kind(path, threads=1)
    assert runtime.card.categories == (Category(0, "red"), Category(1, "green"))
    found = predict_image(runtime, picture(), PredictOptions(score=0.5))
    assert isinstance(found, Instances)
    assert found.labels.tolist() == [label for _, label in TRUTH]
    np.testing.assert_allclose(found.scores, np.array([250, 240, 230]) / 255, rtol=1e-6)
    centres = np.array([[column * 8 + 4, row * 8 + 4] for (row, column), _ in TRUTH], dtype=float)
    if task == "obb":
        assert runtime.card.task == "oriented"
        expected = np.column_stack([centres, np.full(3, WIDE), np.full(3, HIGH), np.full(3, ANGLE)])
        np.testing.assert_allclose(found.oriented, expected, rtol=1e-6)
        return
    half = np.array([WIDE, HIGH]) / 2
    np.testing.assert_allclose(found.boxes, np.hstack([centres - half, centres + half]), rtol=1e-6)
    if task == "segment":
        assert runtime.card.task == "instance"
        assert found.masks is not None
        for mask, box in zip(found.masks, found.box_array, strict=True):
            bitmap = paste(mask, 64, 64)
            x1, y1, x2, y2 = (round(value) for value in box)
            assert not bitmap[:, 33:].any()
            assert bitmap.sum() == bitmap[y1:y2, x1:x2].sum() == (y2 - y1) * max(min(x2, 32) - x1, 0)


def test_a_column_is_one_class_or_several(tmp_path: Path) -> None:
    image = picture()
    image[..., 1] = np.maximum(image[..., 1], image[..., 0])
    runtime = OnnxRuntime(write_foreign(tmp_path / "m.onnx", properties()), threads=1)
    several = predict_image(runtime, image, decoding=DecodeOptions(score=0.5, multi_label=True))
    once = predict_image(runtime, image, decoding=DecodeOptions(score=0.5))
    assert isinstance(several, Instances)
    assert isinstance(once, Instances)
    assert len(several) == 4
    assert len(once) == 3


def test_selected_rows_keep_their_class_and_padding_is_nothing(tmp_path: Path) -> None:
    runtime = OnnxRuntime(write_foreign(tmp_path / "m.onnx", properties(), selected=True), threads=1)
    raw = runtime.run(np.zeros((1, 3, 64, 64), dtype=np.float32))
    assert (raw["scores"] == -1).all()  # every row has score 0: there is nothing
    np.testing.assert_allclose(raw["boxes"][0], cells())
    found = predict_image(runtime, np.zeros((64, 64, 3), dtype=np.uint8), decoding=DecodeOptions(score=0.0, multi_label=True))
    assert len(found) == 0  # type: ignore[arg-type]


def test_the_card_says_what_the_metadata_says() -> None:
    card = foreign_card(properties("obb", imgsz="[96, 128]", names="{0: 'Bacillaria paxillifera', 1: \"l'autre\"}"), where="m")
    assert card is not None
    assert (card.name, card.task, card.decoder, card.stride) == ("YOLO11n", "oriented", "cells", 32)
    assert card.input_size == (96, 128)
    assert card.class_names == ("Bacillaria paxillifera", "l'autre")
    assert card.licence == "AGPL-3.0"
    assert card.source == "ONNX file exported by Ultralytics 8.4.190"
    old = foreign_card({"task": "detect", "names": "['a']", "imgsz": "640", "stride": "32"}, where="m")
    assert old is not None
    assert (old.input_size, old.class_names, old.licence) == ((640, 640), ("a",), "AGPL-3.0")
    own = foreign_card(properties(license="Apache-2.0"), where="m")
    assert own is not None
    assert own.licence == "Apache-2.0"
    assert foreign_card({"producer": "somebody"}, where="m") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "classify"}, "for the task 'classify'; those for detect, obb, segment can be used"),
        ({"names": "{0: 'a', 2: 'b'}"}, "`names` must be a dictionary"),
        ({"names": "{}"}, "`names` must be a dictionary"),
        ({"names": "__import__('os').getcwd()"}, "`names` cannot be read"),
        ({"names": "(" * 100_000}, "`names` cannot be read"),
        ({"imgsz": "[64]"}, r"`imgsz` must be \[height, width\]"),
        ({"imgsz": "[64, -1]"}, r"`imgsz` must be \[height, width\]"),
        ({"stride": "0"}, "`stride` must be a positive number"),
        ({"stride": ""}, "`stride` cannot be read"),
        ({"channels": "1"}, "images of 1 channels"),
        ({"imgsz": "[96, 64]"}, "expected one float input"),
    ],
)
def test_unusable_metadata_is_named(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    path = write_foreign(tmp_path / "m.onnx", properties(**changes))
    with pytest.raises(CheckpointError, match=message) as error:
        OnnxRuntime(path)
    assert str(path) in str(error.value)


def test_other_outputs_are_refused() -> None:
    card = foreign_card(properties("segment"), where="m")
    assert card is not None
    table, maps = np.zeros((1, 6 + 3, CELLS), dtype=np.float32), np.zeros((1, 3, 16, 16), dtype=np.float32)
    assert set(foreign_outputs({"output0": table, "output1": maps}, card)) == {"boxes", "scores", "coefficients", "prototypes"}
    for outputs in ({"output0": table}, {"output0": table[:, :-1], "output1": maps}, {"output1": maps}):
        with pytest.raises(ModelError, match=r"do not fit its task \(instance\) and 2 classes"):
            foreign_outputs(outputs, card)


def test_a_graph_of_any_size_is_given_the_size_it_names(tmp_path: Path) -> None:
    runtime = OnnxRuntime(write_foreign(tmp_path / "m.onnx", properties(), batch="batch", side="side"), threads=1)
    assert runtime.card.input_size == (64, 64)
    assert runtime.run(np.zeros((3, 3, 64, 64), dtype=np.float32))["scores"].shape == (3, 2, CELLS)


def test_the_command_line_and_the_python_face(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_foreign(tmp_path / "other.onnx", properties())
    write(tmp_path / "image.png", picture())
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(path), str(tmp_path / "image.png"), "--out", str(tmp_path / "out"), "--json"])
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"red": 1, "green": 2}
    found = pelagia.load(path).predict(tmp_path / "image.png")
    assert isinstance(found, Instances)
    assert len(found) == 3
