"""What a user is told of a large image while it is predicted: its tiles, and what was chosen without being asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colours import Colours, noise_picture
from pelagia.cli import main as cli_main
from pelagia.core.card import Normalisation
from pelagia.core.image import write
from pelagia.core.scan import Scan
from pelagia.infer.folder import FolderRun
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_image
from pelagia.infer.runtimes import OnnxRuntime, Runtime, Shared, lanes, runtime_name
from pelagia.infer.watching import Watch
from tiny_onnx import tiny_card, write_tiny


def watched(runtime: Runtime, image: Any, options: PredictOptions) -> tuple[list[str], list[str]]:
    """The notes and the sentences of one prediction."""
    notes: list[str] = []
    told: list[str] = []

    def advance(steps: int, note: str = "") -> None:
        assert steps == 0
        notes.append(note)

    watch = Watch(advance, told.append)
    for _ in range(2):  # of the second image nothing is told again
        scan = Scan.of(image, Path("scan.tif"))
        expected = predict_image(runtime, scan, options)
        found = predict_image(watch.over(runtime, scan, options), scan, options)
        assert str(found) == str(expected)
    return notes, told


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("coarse", [False, True])
def test_tiles_of_objects_are_counted_to_the_last(tmp_path: Path, threads: int, coarse: bool) -> None:
    runtime = OnnxRuntime(write_tiny(tmp_path / "m.onnx"), threads=threads)
    notes, told = watched(runtime, np.zeros((500, 700, 3), np.uint8), PredictOptions(batch=4, coarse=coarse))
    total = int(notes[-1].split()[-2])
    assert notes[len(notes) // 2 - 1] == notes[-1] == f"scan.tif: {total} of {total} tiles"
    assert len(notes) == 2 * total  # each goes through the network alone
    assert (total > 315) is coarse  # 21 x 15 and, coarse, larger ones
    assert told == ["large images are predicted in tiles of 64 x 64 pixels; --tiling never shrinks them instead"]


@pytest.mark.parametrize("blend", ["exact", "hann", "cut"])
def test_tiles_of_class_maps_are_counted_to_the_last(blend: Any) -> None:
    notes, told = watched(Colours(), noise_picture(333, 217), PredictOptions(tiling="always", blend=blend, batch=4))
    done, total = notes[-1].split()[1], notes[-1].split()[3]
    assert int(done) == int(total) > 20
    assert told == []  # all was asked for


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (None, "the file does not say how far the network looks"),
        ({"local": False}, "the network looks at its whole input at once"),
        ({"local": True, "halo": 30, "cell": 1}, "the network looks 30 pixels beyond what it answers for, too far for its input"),
    ],
)
def test_a_fall_back_to_averaging_is_told_once(field: Any, reason: str) -> None:
    runtime = Colours()
    runtime.card = replace(runtime.card, manifest={} if field is None else {"receptive_field": field})
    _, told = watched(runtime, noise_picture(200, 150), PredictOptions())
    (line,) = [sentence for sentence in told if "averaged" in sentence]
    assert line.startswith("the class map of tiles is averaged (--blend hann), not exactly that of the whole image: ")
    assert reason in line


def test_a_wider_overlap_is_told(tmp_path: Path) -> None:
    runtime = OnnxRuntime(write_tiny(tmp_path / "m.onnx", tiny_card(manifest={"object_px": 18})))
    _, told = watched(runtime, np.zeros((200, 200, 3), np.uint8), PredictOptions())
    assert told[1:] == ["tiles overlap by 27 pixels, more than --overlap 0.2: the model's typical object needs it"]


def test_a_watched_runtime_is_what_it_was(tmp_path: Path) -> None:
    options, scan = PredictOptions(), Scan.of(np.zeros((200, 200, 3), np.uint8))
    runtime = OnnxRuntime(write_tiny(tmp_path / "m.onnx"), threads=2)
    seen = Watch(lambda steps, note="": None, lambda text: None).over(runtime, scan, options)
    assert seen.card == runtime.card
    assert runtime_name(seen) == runtime_name(runtime)
    assert len(lanes(seen)) == len(lanes(runtime))
    assert Shared(seen).alone
    plain = Watch(lambda steps, note="": None, lambda text: None).over(Colours(), scan, options)
    assert lanes(plain) == (plain,)
    assert not Shared(plain).alone


@pytest.mark.parametrize(
    ("kind", "high", "side", "count"),
    [
        (np.uint16, 255.0, 64, 1),
        (np.uint16, 255.0, 200, 1),
        (np.uint8, 255.0, 64, 0),
        (np.uint16, 4000.0, 64, 0),
        (np.uint16, 4000.0, 200, 0),
    ],
)
def test_16_bits_that_the_window_cuts_are_told_once(tmp_path: Path, kind: Any, high: float, side: int, count: int) -> None:
    """Small images and scans in tiles alike."""
    runtime = OnnxRuntime(write_tiny(tmp_path / "m.onnx", tiny_card(normalisation=Normalisation(high=high))))
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        write(path, np.full((side, side), 200, dtype=kind))
    told: list[str] = []
    FolderRun(runtime, paths, tmp_path / "out", draw=False).go(lambda steps, note="": None, told.append)
    found = [sentence for sentence in told if "16 bits" in sentence]
    assert len(found) == count
    for sentence in found:
        assert sentence[:6] in {path.name + " " for path in paths}
        assert sentence[6:].startswith(
            "has 16 bits, and to this model all intensities above 255 are white; train on images of 16 bits"
        )


def test_the_command_tells_and_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny(tmp_path / "m.onnx")
    for number in range(2):
        write(tmp_path / "in" / f"scan{number}.tif", np.zeros((200, 240, 3), np.uint8))

    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            cli_main.main(["predict", str(tmp_path / "m.onnx"), str(tmp_path / "in"), "--out", str(tmp_path / "out"), *words])
        assert stop.value.code == 0
        return capsys.readouterr().err

    err = run()
    assert err.count("large images are predicted in tiles of 64 x 64 pixels") == 1
    assert " tiles\n" not in err  # no terminal: a line a minute at most
    monkeypatch.setattr("pelagia.cli.predict._LOG_SECONDS", 0)
    err = run("--score", "0.5")
    assert "0 of 2 images predicted, now at scan0.tif: 42 of 42 tiles" in err
    assert " images predicted, now at scan1.tif: 1 of 42 tiles" in err  # results are written beside the next scan
    assert "2 of 2 images predicted, the last scan1.tif" in err


def test_from_python_nothing_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "scan.tif", noise_picture(200, 150))
    run = FolderRun(Colours(), [tmp_path / "scan.tif"], tmp_path / "out")
    run.go(lambda steps, note="": None)
    assert run.predicted == 1
    assert capsys.readouterr() == ("", "")
