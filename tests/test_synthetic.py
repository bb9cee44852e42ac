"""Drawn surveys: exact truth, repeatable bytes, and taxa that size and grey do not tell apart."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from shapely.geometry import MultiPoint, Polygon
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score

from pelagia.core import image as core_image
from pelagia.core import masks as mask_crops
from pelagia.core import oriented as oriented_boxes
from pelagia.core.types import TASKS, MaskCrop
from pelagia.data.open import open_dataset
from pelagia.data.synthetic import DIATOMS, PLANKTON, Drawing, SurveyOptions, categories, draw_image, draw_survey, open_survey
from pelagia.data.synthetic_body import render
from pelagia.data.synthetic_shapes import DIATOM_SHAPES, PLANKTON_SHAPES
from pelagia.errors import OptionError

SHAPES = {**PLANKTON_SHAPES, **DIATOM_SHAPES}


def _draw(seed: int, taxa: tuple[str, ...] = PLANKTON, **changes: object) -> Drawing:
    return draw_image(np.random.default_rng(seed), 320, 256, SurveyOptions(taxa=taxa, **changes))  # type: ignore[arg-type]


def test_there_are_at_least_six_taxa_of_each_kind() -> None:
    assert len(set(PLANKTON)) >= 6
    assert len(set(DIATOMS)) >= 6


@pytest.mark.parametrize("taxa", [PLANKTON, DIATOMS], ids=["plankton", "diatoms"])
def test_boxes_oriented_boxes_and_keypoints_agree_with_the_masks(taxa: tuple[str, ...]) -> None:
    drawing = _draw(1, taxa, coverage=0.3, touching=0.6)
    truth = drawing.truth
    assert len(truth) > 5
    assert truth.masks is not None
    assert truth.oriented is not None
    assert truth.keypoints is not None
    for row, crop in enumerate(truth.masks):
        bitmap = mask_crops.paste(crop, 256, 320)
        ys, xs = np.nonzero(bitmap)
        np.testing.assert_array_equal(truth.box_array[row], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        corners = np.concatenate([np.column_stack([xs + a, ys + b]) for a in (0, 1) for b in (0, 1)])
        expected = MultiPoint(corners).minimum_rotated_rectangle
        found = Polygon(oriented_boxes.to_corners(truth.oriented[row : row + 1])[0])
        assert found.area == pytest.approx(expected.area, rel=1e-6)
        assert found.buffer(1e-6).covers(MultiPoint(corners))
        points = truth.keypoints[row]
        x1, y1, x2, y2 = truth.box_array[row]
        for x, y, seen in points:
            assert (seen == 2 and x1 - 4 <= x <= x2 + 4 and y1 - 4 <= y <= y2 + 4) or (x, y, seen) == (0, 0, 0)


def test_semantic_labels_hold_every_organism_and_the_detritus() -> None:
    drawing = _draw(2, detritus=3.0, coverage=0.2)
    living = np.zeros((256, 320), dtype=np.bool_)
    for crop in drawing.truth.masks or ():
        living |= mask_crops.paste(crop, 256, 320)
    np.testing.assert_array_equal(drawing.semantic == 1, living)
    assert (drawing.semantic == 2).any()
    assert set(np.unique(drawing.semantic)) == {0, 1, 2}
    assert not (_draw(2, detritus=0.0).semantic == 2).any()


def test_organisms_are_darker_than_the_water_and_let_light_through() -> None:
    drawing = _draw(3, noise=0.0, uneven=0.0, detritus=0.0, touching=0.0)
    grey = drawing.image[..., 0].astype(float)
    water = np.median(grey[drawing.semantic == 0])
    body = grey[drawing.semantic == 1]
    assert body.mean() < water - 20
    assert np.percentile(body, 75) > 0.4 * water
    assert (grey[drawing.semantic == 0] > 0.5 * water).mean() > 0.995  # nothing but soft edges lies outside the masks


def test_touching_organisms_occur() -> None:
    truth = _draw(4, coverage=0.3, touching=0.9).truth
    assert truth.masks is not None
    overlap = mask_crops.iou(truth.masks, truth.masks)
    np.fill_diagonal(overlap, 0)
    assert (overlap > 0).any()
    assert overlap.max() < 0.7


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_bodies_meet_the_length_breadth_and_darkness_asked_for(name: str) -> None:
    aspect = 1.5 if name in PLANKTON else 4.0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        length = 70.0
        body = render(rng, SHAPES[name](rng, 1 / aspect), length, length / aspect, 0.2)
        assert np.sum(1 - np.exp(-body.density.astype(float))) == pytest.approx(0.2 * length * length / aspect, rel=0.01)
        assert np.linalg.norm(body.ends[0] - body.ends[1]) <= length * 1.03
        tight = mask_crops.min_area_box(MaskCrop(0, 0, body.mask))
        wide, high = length + 2.5, length / aspect + 2.5  # the mask is whole pixels
        assert 0.7 * length * length / aspect < tight[2] * tight[3] < wide * high


def test_the_same_seed_draws_the_same_bytes_and_images_do_not_depend_on_their_number(tmp_path: Path) -> None:
    options = SurveyOptions(coverage=0.15)
    first = draw_survey(tmp_path / "a", 3, 7, width=160, height=128, options=options)
    draw_survey(tmp_path / "b", 3, 7, width=160, height=128, options=options)
    draw_survey(tmp_path / "c", 2, 7, width=160, height=128, options=options)
    draw_survey(tmp_path / "d", 2, 8, width=160, height=128, options=options)

    def digest(folder: str, name: str) -> str:
        return hashlib.sha256((tmp_path / folder / name).read_bytes()).hexdigest()

    names = sorted(path.relative_to(first.parent).as_posix() for path in first.parent.rglob("*") if path.is_file())
    assert len(names) == 12
    assert [digest("a", name) for name in names] == [digest("b", name) for name in names]
    assert digest("a", "images/00002.png") == digest("c", "images/00002.png")
    assert digest("a", "images/00002.png") != digest("d", "images/00002.png")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools on numpy 2
def test_the_survey_is_a_coco_data_set(tmp_path: Path) -> None:
    path = draw_survey(tmp_path, 2, 5, width=200, height=160, options=SurveyOptions(taxa=DIATOMS, coverage=0.2))
    coco = COCO(str(path))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(DIATOMS)
    turned = json.loads((tmp_path / "oriented.json").read_text())["annotations"]
    for index, image_id in enumerate(coco.getImgIds()):
        entry = coco.loadImgs(image_id)[0]
        drawing = draw_image(np.random.default_rng([5, index]), 200, 160, SurveyOptions(taxa=DIATOMS, coverage=0.2))
        np.testing.assert_array_equal(core_image.read(tmp_path / entry["file_name"]), drawing.image)
        np.testing.assert_array_equal(core_image.read(tmp_path / f"semantic/{index + 1:05d}.png")[..., 0], drawing.semantic)
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        assert len(annotations) == len(drawing.truth)
        for row, annotation in enumerate(annotations):
            assert drawing.truth.masks is not None
            assert drawing.truth.oriented is not None
            mask = mask_crops.paste(drawing.truth.masks[row], 160, 200)
            np.testing.assert_array_equal(coco.annToMask(annotation), mask)
            x, y, w, h = annotation["bbox"]
            np.testing.assert_allclose([x, y, x + w, y + h], drawing.truth.box_array[row])
            assert annotation["area"] == mask.sum()
            same = next(item for item in turned if item["id"] == annotation["id"])
            np.testing.assert_allclose(same["bbox"], drawing.truth.oriented[row])


def test_the_survey_opens_upright_and_oriented(tmp_path: Path) -> None:
    path = draw_survey(tmp_path, 2, 5, width=200, height=160, options=SurveyOptions(taxa=DIATOMS))
    upright, oriented = open_dataset(path), open_dataset(tmp_path / "oriented.json", angle="rad-cw")
    assert not upright.findings
    assert not oriented.findings
    assert oriented.task == "oriented"
    for index in range(2):
        truth = draw_image(np.random.default_rng([5, index]), 200, 160, SurveyOptions(taxa=DIATOMS)).truth
        np.testing.assert_allclose(upright.truth(index).box_array, truth.box_array)
        np.testing.assert_allclose(oriented.truth(index).oriented, truth.oriented, atol=1e-9)
        np.testing.assert_allclose(upright.with_task("oriented").truth(index).oriented, truth.oriented, atol=1e-9)


@pytest.mark.parametrize("taxa", [PLANKTON, DIATOMS], ids=["plankton", "diatoms"])
def test_area_aspect_and_grey_do_not_tell_the_taxa_apart(taxa: tuple[str, ...]) -> None:
    by_box, by_mask, labels = [], [], []
    for seed in range(2):
        options = SurveyOptions(taxa=taxa, coverage=0.2 if taxa is PLANKTON else 0.1)
        drawing = draw_image(np.random.default_rng([1, seed]), 1400, 1400, options)
        grey = drawing.image[..., 0]
        for row, crop in enumerate(drawing.truth.masks or ()):
            x1, y1, x2, y2 = drawing.truth.box_array[row].astype(int)
            pixels = grey[y1:y2, x1:x2]
            aspect = (x2 - x1) / (y2 - y1)
            by_box.append([(x2 - x1) * (y2 - y1), aspect, pixels.mean()])
            by_mask.append([crop.area, aspect, pixels[crop.bitmap].mean()])
            labels.append(drawing.truth.labels[row])
    assert min(np.bincount(labels)) > 30
    for features in (by_box, by_mask):
        forest = RandomForestClassifier(60, random_state=0)
        assert cross_val_score(forest, np.array(features), np.array(labels), cv=5).mean() < 0.6


def test_sixteen_bits_and_other_sizes() -> None:
    drawing = _draw(6, depth=16)
    assert drawing.image.dtype == np.uint16
    assert drawing.image.shape == (256, 320, 1)
    assert drawing.image.max() > 40_000
    large = draw_image(np.random.default_rng(0), 1500, 600, SurveyOptions(length_px=(150.0, 300.0), coverage=0.1))
    assert large.image.shape == (600, 1500, 1)
    assert len(large.truth) > 0


def test_classes_carry_head_and_tail() -> None:
    classes = categories(SurveyOptions(taxa=("medusa", "copepod")))
    assert [(item.id, item.name) for item in classes] == [(1, "medusa"), (2, "copepod")]
    assert all(item.keypoints == ("head", "tail") and item.flip == (0, 1) for item in classes)


@pytest.mark.parametrize(
    "values",
    [{"taxa": ("unicorn",)}, {"taxa": ()}, {"coverage": 0.0}, {"length_px": (80.0, 40.0)}, {"depth": 12}, {"noise": 1.0}],
)
def test_impossible_surveys_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        SurveyOptions(**values)  # type: ignore[arg-type]


def test_images_must_hold_a_body(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="too small"):
        draw_image(np.random.default_rng(0), 60, 300)
    with pytest.raises(OptionError, match="at least one"):
        draw_survey(tmp_path, 0, 1)


def test_a_survey_opens_for_every_task(tmp_path: Path) -> None:
    options = SurveyOptions(coverage=0.35, touching=0.6)
    draw_survey(tmp_path, 2, 5, width=160, height=120, options=options)
    drawing = draw_image(np.random.default_rng([5, 1]), 160, 120, options)
    assert drawing.truth.masks is not None
    data = {task: open_survey(tmp_path, task) for task in TASKS}
    assert [dataset.task for dataset in data.values()] == list(TASKS)
    for task in ("detect", "oriented", "instance", "keypoints"):
        np.testing.assert_array_equal(data[task].truth(1).labels, drawing.truth.labels)
    np.testing.assert_array_equal(data["semantic"].semantic(1).labels, drawing.semantic)
    panoptic = data["panoptic"]
    assert panoptic.class_names == (*options.taxa, "detritus", "water")
    found = panoptic.panoptic(1)
    labels = np.zeros_like(found.ids)
    for segment in found.segments:
        labels[found.ids == segment.id] = segment.label
    np.testing.assert_array_equal(
        np.select([labels < len(options.taxa), labels == len(options.taxa)], [1, 2], 0), drawing.semantic
    )
    for number, (label, mask) in enumerate(zip(drawing.truth.labels, drawing.truth.masks, strict=True), start=1):
        whole = mask_crops.paste(mask, 120, 160)
        seen = found.ids == number
        assert (whole | ~seen).all()
        over = [k for k, other in enumerate(drawing.truth.masks, start=1) if k != number and other.area <= mask.area]
        assert np.isin(found.ids[whole & ~seen], over).all()
        assert not seen.any() or (labels[seen] == label).all()
