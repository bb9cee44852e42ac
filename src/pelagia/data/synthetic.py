"""Drawn surveys of plankton and diatoms with exact truth, for the demonstration, tests and documentation.

An image is transmitted light: background times exp(-density), so that bodies are translucent and all of an overlapped body
stays visible. Each body is drawn on a small patch at a multiple of the resolution and averaged down.

Truth:

- the mask of an organism is every pixel of which its strokes cover at least half;
- its box is the bounds of the mask, its oriented box the rectangle of least area around the mask's pixels;
- head and tail are the ends of the body's axis; masks of overlapping organisms overlap;
- semantic labels are 0 background, 1 living, 2 non-living (detritus), living above non-living;
- panoptic segments are the organisms, the smaller above the larger, and two kinds of stuff: detritus, and water for the rest.

Length, aspect ratio and mean darkness of the body's rectangle are drawn from distributions shared by all taxa, and every body is
stretched and shaded to meet them: size and grey tell nothing about the taxon, its shape and texture do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pelagia.core import masks
from pelagia.core.files import write_json
from pelagia.core.image import write
from pelagia.core.types import Category, Float, Instances, MaskCrop, PanopticMap, Segment, Task
from pelagia.data.dataset import Dataset
from pelagia.data.formats.panoptic_write import category_entry, segment_entries
from pelagia.data.label_maps import paint
from pelagia.data.open import open_dataset
from pelagia.data.panoptic_png import write_ids
from pelagia.data.synthetic_body import Body, render, stamp
from pelagia.data.synthetic_shapes import DIATOM_SHAPES, PLANKTON_SHAPES, Draw, aggregate, fibre, speck
from pelagia.errors import OptionError

__all__ = [
    "DIATOMS",
    "PLANKTON",
    "SEMANTIC_NAMES",
    "Drawing",
    "SurveyOptions",
    "categories",
    "draw_image",
    "draw_survey",
    "open_survey",
    "panoptic_categories",
]

#: Taxa of the zooplankton set, compact bodies.
PLANKTON = tuple(PLANKTON_SHAPES)
#: Taxa of the diatom set, elongated bodies for oriented boxes.
DIATOMS = tuple(DIATOM_SHAPES)
#: Meaning of the semantic labels.
SEMANTIC_NAMES = ("background", "living", "non-living")

_SHAPES: dict[str, Draw] = {**PLANKTON_SHAPES, **DIATOM_SHAPES}


def _help(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class SurveyOptions:
    """What a drawn survey looks like.

    Raises:
        OptionError: an unknown taxon, or a value outside its range.
    """

    taxa: tuple[str, ...] = _help(PLANKTON, "names of taxa to draw; their order gives the labels")
    coverage: float = _help(0.2, "area of the organisms' rectangles as a share of the image")
    length_px: tuple[float, float] = _help((44.0, 80.0), "shortest and longest body, in pixels")
    aspect: tuple[float, float] | None = _help(None, "length over width; 1.25 to 1.9 for plankton, 3 to 5.5 for diatoms")
    touching: float = _help(0.25, "probability that an organism is put against another one")
    detritus: float = _help(0.8, "non-living particles per organism")
    noise: float = _help(0.012, "sigma of the camera's noise as a share of the full range")
    uneven: float = _help(0.1, "how much the background varies over the image")
    depth: int = _help(8, "bits per pixel, 8 or 16")

    def __post_init__(self) -> None:
        unknown = [name for name in self.taxa if name not in _SHAPES]
        if unknown or not self.taxa:
            raise OptionError(f"unknown taxa {unknown}; known are {', '.join(_SHAPES)}")
        low, high = self.length_px
        if not 12 <= low <= high <= 2000:
            raise OptionError(f"length_px must be two rising lengths between 12 and 2000, got {self.length_px}")
        if not 0 < self.coverage <= 0.6:
            raise OptionError(f"coverage must lie in 0 to 0.6, got {self.coverage}")
        if self.aspect is not None and not 1 <= self.aspect[0] <= self.aspect[1] <= 12:
            raise OptionError(f"aspect must be two rising ratios between 1 and 12, got {self.aspect}")
        if self.depth not in (8, 16):
            raise OptionError(f"depth must be 8 or 16, got {self.depth}")
        for name, top in (("touching", 1.0), ("detritus", 20.0), ("noise", 0.2), ("uneven", 0.5)):
            if not 0 <= getattr(self, name) <= top:
                raise OptionError(f"{name} must lie in 0 to {top:g}, got {getattr(self, name)}")

    @property
    def aspect_range(self) -> tuple[float, float]:
        """`aspect`, or the default of the taxa: elongated if all are diatoms."""
        if self.aspect is not None:
            return self.aspect
        return (3.0, 5.5) if all(name in DIATOM_SHAPES for name in self.taxa) else (1.25, 1.9)

    @property
    def mean_area(self) -> float:
        """Expected area of a body's rectangle in square pixels: length is log-uniform, aspect uniform, area length^2 / aspect."""
        (short, long), (low, high) = self.length_px, self.aspect_range
        square = (long**2 - short**2) / (2 * np.log(long / short)) if long > short else long**2
        inverse = np.log(high / low) / (high - low) if high > low else 1 / high
        return float(square * inverse)


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawn image [H, W, 1], its organisms (boxes, oriented, masks, keypoints) and its semantic labels [H, W]."""

    image: NDArray[Any]
    truth: Instances
    semantic: NDArray[np.uint8]

    def panoptic(self, options: SurveyOptions) -> PanopticMap:
        """The segments, ids from 1 in the order of the organisms, with labels of `panoptic_categories`."""
        masks_ = self.truth.masks or ()
        height, width = self.semantic.shape
        ids = paint(masks_, np.zeros(len(masks_), dtype=np.bool_), width, height)
        ids[(ids == 0) & (self.semantic == 2)] = len(masks_) + 1
        ids[ids == 0] = len(masks_) + 2
        labels = [*self.truth.labels.tolist(), len(options.taxa), len(options.taxa) + 1]
        present = set(np.unique(ids).tolist())
        return PanopticMap(ids, tuple(Segment(k, label) for k, label in enumerate(labels, start=1) if k in present))


def categories(options: SurveyOptions) -> tuple[Category, ...]:
    """The classes of a survey, ids from 1, with head and tail as keypoints (mirroring exchanges neither)."""
    return tuple(
        Category(position + 1, name, "organism", keypoints=("head", "tail"), skeleton=((0, 1),), flip=(0, 1))
        for position, name in enumerate(options.taxa)
    )


def panoptic_categories(options: SurveyOptions) -> tuple[Category, ...]:
    """The classes of a survey, then the stuff: detritus and water."""
    count = len(options.taxa)
    stuff = (Category(count + k, name, "stuff", is_thing=False) for k, name in enumerate(("detritus", "water"), start=1))
    return (*categories(options), *stuff)


def draw_image(
    rng: np.random.Generator,
    width: int,
    height: int,
    options: SurveyOptions | None = None,
    *,
    places: Sequence[tuple[float, float, int]] | None = None,
) -> Drawing:
    """One image of `width` x `height` pixels; the same generator state gives the same bytes.

    `places` are x, y, label: organisms of these taxa with the middle of their bounds there, whatever they overlap, in place of a
    random number anywhere.

    Raises:
        OptionError: a side below 32 pixels, or below the longest body, or a label that is no taxon.
    """
    options = options or SurveyOptions()
    if any(not 0 <= label < len(options.taxa) for *_, label in places or ()):
        raise OptionError(f"the label of a place must be a position in the list of {len(options.taxa)} taxa")
    if min(width, height) < max(32, options.length_px[1]):
        raise OptionError(f"an image of {width} x {height} is too small for bodies of {options.length_px[1]:g} px")
    density = np.zeros((height, width), dtype=np.float32)
    semantic = np.zeros((height, width), dtype=np.uint8)
    count = max(1, int(rng.poisson(options.coverage * width * height / options.mean_area))) if places is None else len(places)
    for _ in range(int(rng.poisson(options.detritus * count))):
        _draw_detritus(rng, density, semantic, options)
    truth = _draw_organisms(rng, density, semantic, options, [None] * count if places is None else places)
    image = _expose(rng, density, options)
    return Drawing(image, truth, semantic)


def draw_survey(
    folder: str | Path, images: int, seed: int, *, width: int = 320, height: int = 320, options: SurveyOptions | None = None
) -> Path:
    """Draw a survey into `folder` and return the path of its COCO file.

    Written are `images/00001.png` ..., `semantic/00001.png` ... (see the module), `annotations.json` (boxes, RLE masks,
    keypoints), `oriented.json` (bbox = cx, cy, w, h, angle in radians, clockwise), and `panoptic.json` with `panoptic/00001.png`
    ... Image i depends on (seed, i) alone. `open_survey` opens it for any task.

    Raises:
        OptionError: no image asked for, or impossible options.
    """
    options = options or SurveyOptions()
    if images < 1:
        raise OptionError(f"a survey needs at least one image, got {images}")
    folder = Path(folder)
    for part in ("images", "semantic", "panoptic"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    upright: list[dict[str, Any]] = []
    oriented: list[dict[str, Any]] = []
    listing: list[dict[str, Any]] = []
    painted: list[dict[str, Any]] = []
    for index in range(images):
        drawing = draw_image(np.random.default_rng([seed, index]), width, height, options)
        name = f"{index + 1:05d}.png"
        write(folder / "images" / name, drawing.image)
        write(folder / "semantic" / name, drawing.semantic[..., None])
        segments = drawing.panoptic(options)
        write_ids(folder / "panoptic" / name, segments.ids)
        entries = segment_entries(segments, panoptic_categories(options))
        painted.append({"image_id": index + 1, "file_name": name, "segments_info": entries})
        listing.append({"id": index + 1, "file_name": f"images/{name}", "width": width, "height": height})
        for position in range(len(drawing.truth)):
            record = _coco_record(drawing.truth, position, width, height, options)
            record |= {"id": len(upright) + 1, "image_id": index + 1}
            upright.append(record)
            assert drawing.truth.oriented is not None
            oriented.append(record | {"bbox": drawing.truth.oriented[position].tolist()})
    head = {
        "info": {"description": "drawn by Pelagia", "seed": seed},
        "images": listing,
        "categories": [
            {
                "id": category.id,
                "name": category.name,
                "supercategory": category.supercategory,
                "keypoints": list(category.keypoints),
                "skeleton": [[a + 1, b + 1] for a, b in category.skeleton],
            }
            for category in categories(options)
        ],
    }
    write_json(folder / "oriented.json", head | {"annotations": oriented})
    write_json(folder / "annotations.json", head | {"annotations": upright})
    kinds = [category_entry(category) for category in panoptic_categories(options)]
    write_json(folder / "panoptic.json", head | {"annotations": painted, "categories": kinds})
    return folder / "annotations.json"


def open_survey(folder: str | Path, task: Task) -> Dataset:
    """What `draw_survey` wrote into `folder`, as data for `task`."""
    folder = Path(folder)
    if task == "semantic":
        return open_dataset(folder, format="labels", task=task, classes=SEMANTIC_NAMES)
    if task == "panoptic":
        return open_dataset(folder / "panoptic.json", images=folder)
    if task == "oriented":
        return open_dataset(folder / "oriented.json", task=task, angle="rad-cw")
    return open_dataset(folder / "annotations.json", task=task)


def _coco_record(truth: Instances, position: int, width: int, height: int, options: SurveyOptions) -> dict[str, Any]:
    assert truth.masks is not None
    assert truth.boxes is not None
    assert truth.keypoints is not None
    x1, y1, x2, y2 = truth.boxes[position].tolist()
    rle = masks.crop_to_rle(truth.masks[position], height, width)
    points = truth.keypoints[position]
    return {
        "category_id": int(truth.labels[position]) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": truth.masks[position].area,
        "iscrowd": 0,
        "segmentation": {"size": [height, width], "counts": masks.rle_to_string(rle)},
        "keypoints": [round(float(value), 3) for value in points.ravel()],
        "num_keypoints": int(np.count_nonzero(points[:, 2])),
    }


def _draw_organisms(
    rng: np.random.Generator,
    density: NDArray[np.float32],
    semantic: NDArray[np.uint8],
    options: SurveyOptions,
    wishes: Sequence[tuple[float, float, int] | None],
) -> Instances:
    height, width = density.shape
    boxes = np.zeros((0, 4))
    crops: list[MaskCrop] = []
    labels, points = [], []
    for wish in wishes:
        label = int(rng.integers(len(options.taxa))) if wish is None else wish[2]
        body = _draw_body(rng, _SHAPES[options.taxa[label]], options)
        box = masks.bounds(MaskCrop(body.x, body.y, body.mask))
        if wish is None:
            place = _find_place(rng, box, boxes, (width, height), options.touching)
            if place is None:
                continue
        else:
            place = round(wish[0] - (box[0] + box[2]) / 2), round(wish[1] - (box[1] + box[3]) / 2)
        x, y = place
        crop = stamp(density, semantic, body, x, y, 1)
        if crop is None:
            continue
        boxes = np.concatenate([boxes, box[None] + np.array([x, y, x, y])])
        crops.append(crop)
        labels.append(label)
        ends = body.ends + np.array([x, y])
        seen = np.logical_and.reduce((ends >= 0) & (ends <= np.array([width, height])), axis=1)
        points.append(np.where(seen[:, None], np.column_stack([ends, np.full(2, 2.0)]), 0.0))
    return Instances(
        labels=np.array(labels, dtype=np.int64),
        boxes=np.array([masks.bounds(crop) for crop in crops]).reshape(-1, 4),
        oriented=np.array([masks.min_area_box(crop) for crop in crops]).reshape(-1, 5),
        masks=tuple(crops),
        keypoints=np.array(points).reshape(-1, 2, 3),
    )


def _draw_detritus(
    rng: np.random.Generator, density: NDArray[np.float32], semantic: NDArray[np.uint8], options: SurveyOptions
) -> None:
    kind = rng.choice(3, p=(0.4, 0.2, 0.4))
    draw = (aggregate, fibre, speck)[kind]
    low, high = options.length_px
    length = float(rng.uniform((0.35, 0.5, 0.06)[kind], (0.9, 1.2, 0.2)[kind])) * (low + high) / 2
    half = float(rng.uniform((0.5, 0.1, 0.5)[kind], (0.95, 0.4, 1.0)[kind]))
    length, breadth = max(length, 3.0), max(length * half, 2.0)
    darkness = float(rng.uniform((0.1, 0.2, 0.08)[kind], (0.24, 0.6, 0.25)[kind]))
    if kind == 1:
        darkness *= max(0.06 * length, 1.15) / breadth  # a thread fills little of its rectangle
    body = render(rng, draw(rng, half), length, breadth, darkness)
    height, width = density.shape
    stamp(density, semantic, body, int(rng.integers(width)), int(rng.integers(height)), 2)


def _draw_body(rng: np.random.Generator, draw: Draw, options: SurveyOptions) -> Body:
    """Length, aspect ratio and darkness from the shared distributions, then the body that meets them."""
    low, high = options.length_px
    length = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    aspect = float(rng.uniform(*options.aspect_range))
    darkness = float(rng.uniform(0.14, 0.26))
    return render(rng, draw(rng, 1 / aspect), length, length / aspect, darkness)


def _find_place(
    rng: np.random.Generator, box: Float, taken: Float, size: tuple[int, int], touching: float
) -> tuple[int, int] | None:
    """A shift for `box` (bounds of a body around the origin): free, or against another body; None if there is no room.

    At most a quarter of the box may leave the image. A free place keeps 2 px from other boxes; beside another body the boxes
    may overlap by up to a third of the smaller one.
    """
    width, height = size
    extent = box[2:] - box[:2]
    beside = bool(len(taken)) and rng.random() < touching
    for _ in range(60):
        if beside:
            other = taken[int(rng.integers(len(taken)))]
            angle = rng.uniform(0, 2 * np.pi)
            distance = rng.uniform(0.65, 0.95) * (extent + other[2:] - other[:2]) / 2
            centre = (other[:2] + other[2:]) / 2 + distance * (np.cos(angle), np.sin(angle))
        else:
            centre = rng.random(2) * (width, height)
        x, y = (int(value) for value in np.rint(centre - (box[:2] + box[2:]) / 2))
        moved = box + np.array([x, y, x, y])
        inside = np.clip(moved, 0, (width, height, width, height))
        if (inside[2:] - inside[:2]).clip(0).prod() < 0.75 * extent.prod():
            continue
        gap = 0.0 if beside else 2.0
        overlap = np.minimum(taken[:, 2:], moved[2:] + gap) - np.maximum(taken[:, :2], moved[:2] - gap)
        area = overlap.clip(0).prod(axis=1)
        smaller = np.minimum((taken[:, 2:] - taken[:, :2]).prod(axis=1), extent.prod())
        if (area <= (0.33 * smaller if beside else 0.0)).all():
            return x, y
    return None


def _expose(rng: np.random.Generator, density: NDArray[np.float32], options: SurveyOptions) -> NDArray[Any]:
    """Background times exp(-density) plus noise, in stored intensities.

    The background is a level, a gradient, soft clouds and faint stripes along the scan.
    """
    height, width = density.shape
    clouds = rng.standard_normal((6, 6)).astype(np.float32) * 0.25 + np.linspace(-1, 1, 6, dtype=np.float32) * rng.uniform(-1, 1)
    clouds += np.linspace(-1, 1, 6, dtype=np.float32)[:, None] * np.float32(rng.uniform(-1, 1))
    light = cv2.resize(clouds, (width, height), interpolation=cv2.INTER_CUBIC)
    stripes = cv2.GaussianBlur(rng.standard_normal((1, width)).astype(np.float32), (0, 0), 1.0) * 0.04
    light = (light + stripes) * np.float32(options.uneven / 2)
    light += 1
    light *= np.float32(rng.uniform(0.8, 0.9))
    light *= np.exp(-density)
    light += rng.standard_normal((height, width), dtype=np.float32) * np.float32(options.noise)
    top = 2**options.depth - 1
    light *= np.float32(top)
    dtype = np.uint8 if options.depth == 8 else np.uint16
    stored: NDArray[Any] = np.clip(np.rint(light), 0, top).astype(dtype)[..., None]
    return stored
