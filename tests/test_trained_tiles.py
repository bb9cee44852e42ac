"""A trained model on tiles finds what it finds on the whole image: boxes, masks and oriented boxes, AP50 within 0.01, the count
within 1 %."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.core.types import Instances, Prediction, Task
from pelagia.data.augment import AugmentOptions
from pelagia.data.synthetic import SurveyOptions, categories, draw_image, draw_survey, open_survey
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_image
from pelagia.infer.runtimes import Runtime
from pelagia.infer.views import lay, tile_size
from pelagia.metrics import evaluate_detection
from pelagia.metrics.objects import Kind
from pelagia.models import checkpoint
from pelagia.models.runtime import TorchRuntime
from pelagia.train.loop import train
from pelagia.train.options import TrainOptions
from seams import on_seams

SIDE, WIDTH, HEIGHT = 640, 1920, 1600


class Whole:
    """The same network with an input as large as the scan: it has no layer that minds."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.card: ModelCard = replace(runtime.card, input_size=(HEIGHT, WIDTH), manifest={})

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        return self._runtime.run(images)


SCANS = 40

KINDS: dict[Task, Kind] = {"detect": "boxes", "instance": "masks", "oriented": "oriented"}


@pytest.mark.slow
@pytest.mark.parametrize("task", KINDS)
def test_tiles_equal_the_whole_for_a_trained_model(tmp_path: Path, capsys: pytest.CaptureFixture[str], task: Task) -> None:
    kind = KINDS[task]
    survey = SurveyOptions()
    runtime = trained(tmp_path, task)
    truths, tiled, whole, counts = [], [], [], []
    tiles = lay(runtime.card, (WIDTH, HEIGHT), tile_size(runtime.card, PredictOptions()), PredictOptions())
    for seed in range(SCANS):
        rng = np.random.default_rng([9, seed])
        # Of five scans two have organisms on seams, on corners of four tiles and in touching pairs of one class.
        places = None if seed % 5 < 3 else on_seams(rng, tiles, (WIDTH, HEIGHT), 60, len(survey.taxa), 55.0)
        drawing = draw_image(rng, WIDTH, HEIGHT, survey, places=places)
        truths.append(only(drawing.truth, kind))
        weak = PredictOptions(score=0.01)
        tiled.append(objects(predict_image(runtime, drawing.image, replace(weak, tiling="always"))))
        whole.append(objects(predict_image(Whole(runtime), drawing.image, replace(weak, tiling="never"))))
        counts.append([counting(runtime, item) for item in (tiled[-1], whole[-1])])
    scores = [evaluate_detection(truths, found, categories(survey), kind=kind).ap50_all for found in (tiled, whole)]
    total = np.sum(counts, axis=0)
    with capsys.disabled():
        sys.stdout.write(f"{kind}: AP50 on tiles {scores[0]:.4f}, whole {scores[1]:.4f}; counted {total[0]} and {total[1]}\n")
    assert scores[1] > 0.55  # else the comparison says little
    assert abs(scores[0] - scores[1]) <= 0.01
    assert abs(total[0] - total[1]) <= 0.01 * total[1]


def trained(folder: Path, task: Task) -> Runtime:
    """A detector that has learnt: what a network sees around an object moves its score, and tiles show less of it, so that some
    objects cross their threshold; the better it has learnt, the fewer."""
    draw_survey(folder / "survey", 100, 0, width=SIDE, height=SIDE)
    options = TrainOptions(
        model="yolo11n",
        task=task,
        out=str(folder / "run"),
        epochs=36,
        batch=4,
        imgsz=SIDE,
        seed=0,
        val_fraction=0.1,
        val_every=4,
        augment=AugmentOptions(flip_ud=0.5, quarter_turn=0.5),
    )
    run = train(options, open_survey(folder / "survey", task), quiet=True)
    return TorchRuntime(checkpoint.load(run.folder / "best.safetensors"))


def only(truth: Instances, kind: Kind) -> Instances:
    """The objects with what is compared alone."""
    return truth.replace(
        boxes=None if kind == "oriented" else truth.boxes,
        oriented=truth.oriented if kind == "oriented" else None,
        masks=truth.masks if kind == "masks" else None,
        keypoints=None,
    )


def objects(found: Prediction) -> Instances:
    assert isinstance(found, Instances)
    return found


def counting(runtime: Runtime, found: Instances) -> int:
    """Objects above the thresholds of the model."""
    least = np.array([runtime.card.thresholds.get(name, 0.25) for name in runtime.card.class_names])
    assert found.scores is not None
    return int(np.count_nonzero(found.scores >= least[found.labels]))
