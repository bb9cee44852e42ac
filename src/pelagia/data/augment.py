"""A training sample: which images, one warp each, then intensities.

`augment` is a pure function of the data set, the index, the generator and the options, so that a sample can be made again
anywhere. All geometry (resize or crop, mosaic, rotation, scale, shear, shift, flips) is multiplied into one matrix per source
image, and an elastic field joins the same step; how truth follows is said in `pelagia.data.geometry`. A class map takes the very
step of its image, with the nearest label; what no source covers is 255.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, TypeAlias

import numpy as np

from pelagia.core.frame import Frame
from pelagia.core.image import letterbox, to_rgb, warp
from pelagia.core.padding import covered, to_corner
from pelagia.core.scan import Scan
from pelagia.core.types import IGNORE_INDEX, Category, Float, Instances, SemanticMap, Task
from pelagia.core.warp import block_side
from pelagia.data import colour
from pelagia.data.colour import Image, Levels
from pelagia.data.crops import crop_placement, rare_point
from pelagia.data.elastic import Field, random_field
from pelagia.data.geometry import Keep, Window, chain, follow, invert, join, join_stuff
from pelagia.data.mix import cut_in, mix, paste_objects
from pelagia.data.mosaic import blank, mosaic_placements, paint, single_placement
from pelagia.data.sample import Sample
from pelagia.errors import ImageError, OptionError

__all__ = [
    "FILL",
    "AugmentOptions",
    "Fetch",
    "Look",
    "Source",
    "Transform",
    "WindowError",
    "augment",
    "corner_sample",
    "evaluation_sample",
    "random_affine",
    "read_sample",
    "transformed_sample",
]

#: Value of canvas that no source covers; the letterbox of prediction uses the same.
FILL = 114

#: index -> the whole image and its truth, from a cache.
Fetch: TypeAlias = Callable[[int], Sample]
#: index -> the image opened to be read in windows, None for one to be fetched whole.
Look: TypeAlias = Callable[[int], Scan | None]
#: A user's own augmentation of one sample, at any size.
Transform: TypeAlias = Callable[[Sample, np.random.Generator], Sample]


class WindowError(ImageError):
    """A window of an image cannot be read.

    Attributes:
        index: of the image in the data set.
    """

    def __init__(self, index: int, cause: ImageError) -> None:
        super().__init__(cause.reason, where=cause.where)
        self.index = index


class Source(Protocol):
    """What augmentation asks of a data set."""

    @property
    def categories(self) -> tuple[Category, ...]: ...
    @property
    def names(self) -> Sequence[str]: ...
    @property
    def task(self) -> Task: ...
    @property
    def class_frequencies(self) -> Float: ...
    def __len__(self) -> int: ...
    def image(self, index: int, /) -> Image: ...
    def truth(self, index: int, /, *, masks: bool = False) -> Instances: ...
    def semantic(self, index: int, /) -> SemanticMap: ...


def read_sample(dataset: Source, index: int, *, masks: bool = False) -> Sample:
    """The whole image `index` with its objects, and with its class map for the task `semantic`."""
    semantic = dataset.semantic(index) if dataset.task == "semantic" else None
    return Sample(dataset.image(index), dataset.truth(index, masks=masks), dataset.names[index], index, semantic)


def _help(default: float, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class AugmentOptions:
    """How training samples vary. The defaults suit detectors trained on a few hundred images of small organisms, for which
    no side is up. A probability of 0 switches a step off.

    Raises:
        OptionError: a value outside its range.
    """

    flip_lr: float = _help(0.5, "probability of a left-right flip")
    flip_ud: float = _help(0.5, "probability of an upside-down flip")
    quarter_turn: float = _help(0.0, "probability of a turn by 90 degrees (square inputs keep their frame)")
    rotate_deg: float = _help(0.0, "largest rotation in degrees; boxes without masks become loose")
    scale: float = _help(0.5, "zoom is drawn from 1 - scale to 1 + scale")
    translate: float = _help(0.1, "largest shift as a fraction of the input side")
    shear_deg: float = _help(0.0, "largest shear in degrees; boxes without masks become loose")
    hsv_h: float = _help(0.015, "largest change of hue, in turns")
    hsv_s: float = _help(0.5, "largest relative change of saturation")
    hsv_v: float = _help(0.4, "brightness exponent is drawn from 1 / (1 + hsv_v) to 1 + hsv_v")
    blur: float = _help(0.05, "probability of a slight Gaussian blur (sigma 0.3 to 1 px)")
    noise: float = _help(0.05, "probability of Gaussian noise (sigma up to 3 % of the range)")
    elastic_px: float = _help(0.0, "standard deviation of an elastic deformation in pixels of the input; U-Net's is 10")
    crop: float = _help(0.0, "probability of a window at full resolution in place of whole images fitted into the input")
    rare: float = _help(0.0, "probability that a window of crop lies around a pixel or object of a class drawn by its rarity")
    mosaic: float = _help(1.0, "probability of joining four images")
    mixup: float = _help(0.0, "probability of blending with a second sample (not for the tasks semantic and panoptic)")
    cutmix: float = _help(0.0, "probability of replacing a rectangle by that of a second sample")
    copy_paste: float = _help(0.0, "probability of pasting objects of a second image (needs masks)")
    min_visible: float = _help(0.2, "an object cut to less than this share of its area is dropped")
    min_side_px: float = _help(2.0, "an object cut to less than this width or height is dropped")

    def __post_init__(self) -> None:
        limits = {"rotate_deg": 180.0, "shear_deg": 60.0, "hsv_v": 10.0, "min_side_px": np.inf, "scale": 0.95}
        limits["elastic_px"] = 1000.0
        for item in fields(self):
            value, top = getattr(self, item.name), limits.get(item.name, 1.0)
            if not 0 <= value <= top:
                raise OptionError(f"{item.name} must lie in 0 to {top:g}, got {value}")
        if self.rare and not self.crop:
            raise OptionError(f"rare={self.rare:g} places the windows of crop, and crop is 0; set crop too, or rare to 0")

    @property
    def keep(self) -> Keep:
        """The rule of what stays after a cut."""
        return Keep(self.min_visible, self.min_side_px)


@dataclass(frozen=True, slots=True)
class _Job:
    """What every step of one sample needs."""

    dataset: Source
    rng: np.random.Generator
    options: AugmentOptions
    canvas: tuple[int, int]
    fetch: Fetch
    look: Look
    masks: bool
    fill: int


def random_affine(rng: np.random.Generator, options: AugmentOptions, canvas: tuple[int, int]) -> Float:
    """[2, 3], a random map of a canvas (width, height) onto itself: shear, zoom, rotation, flips and
    turns about its middle, then shift."""
    angle = math.radians(rng.uniform(-1, 1) * options.rotate_deg)
    zoom = 1 + rng.uniform(-1, 1) * options.scale
    shear_x, shear_y = (math.tan(math.radians(share * options.shear_deg)) for share in rng.uniform(-1, 1, 2).tolist())
    shift_x, shift_y = rng.uniform(-1, 1, 2).tolist()
    mirror_x, mirror_y, turn = (rng.random(3) < (options.flip_lr, options.flip_ud, options.quarter_turn)).tolist()
    # In Python's numbers: numpy takes a microsecond for each of these.
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    (a, b), (c, d) = (cos - sin * shear_y, cos * shear_x - sin), (sin + cos * shear_y, sin * shear_x + cos)
    if turn:
        (a, b), (c, d) = (-c, -d), (a, b)
    if mirror_x:
        a, b = -a, -b
    if mirror_y:
        c, d = -c, -d
    x, y = canvas[0] / 2, canvas[1] / 2
    shift_x, shift_y = shift_x * options.translate * canvas[0], shift_y * options.translate * canvas[1]
    return np.array([[a, b, x - (a * x + b * y) + shift_x], [c, d, y - (c * x + d * y) + shift_y]])


def augment(
    dataset: Source,
    index: int,
    rng: np.random.Generator,
    options: AugmentOptions,
    input_size: tuple[int, int],
    *,
    masks: bool = False,
    fetch: Fetch | None = None,
    look: Look | None = None,
    fill: int = FILL,
    levels: Levels | None = None,
) -> Sample:
    """The training sample of image `index`: [H, W, 3] of `input_size` (height, width), truth in its pixels.

    `masks` asks the data set for masks (boxes are then tight under rotation, and copy-paste works); `fetch` replaces reading by
    a cache, whose arrays are never written to; `look` opens images of which only the window of `options.crop` is to be read. For
    the task `panoptic` the pieces of a class of stuff are one object.

    `levels` are the network's for images of more than 8 bits (`pelagia.data.colour`).

    Raises:
        OptionError: mixup for the task `semantic` or `panoptic`, whose pixels have one class.
        WindowError: an image that `look` opens is broken.
    """
    if options.mixup and dataset.task in ("semantic", "panoptic"):
        raise OptionError(f"mixup must be 0 for the task {dataset.task!r}: a blended pixel has no one class; use cutmix")

    def read(position: int) -> Sample:
        return read_sample(dataset, position, masks=masks)

    def whole_images(position: int) -> None:
        return None

    job = _Job(dataset, rng, options, (input_size[1], input_size[0]), fetch or read, look or whole_images, masks, fill)
    whole = (0, 0, *job.canvas)
    sample = _compose(job, index, whole)
    if rng.random() < options.copy_paste:
        sample = replace(
            paste_objects(sample, _other(job, whole, mosaic=False), rng, options.keep, dataset.categories), shown=None
        )
    if rng.random() < options.mixup:
        sample = replace(mix(sample, _other(job, whole), rng), shown=None)
    if rng.random() < options.cutmix:
        window = _random_window(rng, job.canvas)
        sample = replace(cut_in(sample, _other(job, window), window, options.keep, dataset.categories), shown=None)
    image = to_rgb(_intensities(sample.image, rng, options, levels))
    truth = join_stuff(sample.truth, dataset.categories) if dataset.task == "panoptic" else sample.truth
    return replace(sample, image=image, truth=truth, name=dataset.names[index], index=index)


def evaluation_sample(
    dataset: Source,
    index: int,
    input_size: tuple[int, int],
    *,
    masks: bool = False,
    fetch: Fetch | None = None,
    margin: int = 0,
) -> tuple[Sample, Frame]:
    """Image `index` letterboxed to `input_size` (height, width) as in prediction, all its truth, and the frame back.

    With a `margin` the outermost pixels mirror the image (`letterbox`); their class is 255.
    """
    sample = fetch(index) if fetch else read_sample(dataset, index, masks=masks)
    return _fitted(sample, dataset, input_size, margin)


def transformed_sample(
    dataset: Source,
    index: int,
    rng: np.random.Generator,
    transform: Transform,
    input_size: tuple[int, int],
    *,
    masks: bool = False,
) -> Sample:
    """A user's `transform` of the whole image `index` in place of `augment`, then a letterbox to `input_size` (height, width).

    Raises:
        OptionError: the transform lost the class map of a sample for the task `semantic`, or left it at another size.
    """
    sample = read_sample(dataset, index, masks=masks)
    sample = transform(replace(sample, image=to_rgb(sample.image)), rng)
    if dataset.task == "semantic" and (sample.semantic is None or sample.semantic.labels.shape != sample.image.shape[:2]):
        text = "the transform must move `Sample.semantic` with the image; it is missing, or its size is not the image's"
        raise OptionError(text, where=sample.name)
    return _fitted(sample, dataset, input_size, 0)[0]


def _fitted(sample: Sample, dataset: Source, input_size: tuple[int, int], margin: int) -> tuple[Sample, Frame]:
    """A letterboxed sample with all its truth, and the frame back."""
    boxed, frame = letterbox(to_rgb(sample.image), input_size, fill=FILL, margin=margin)
    size, canvas = (sample.image.shape[1], sample.image.shape[0]), (input_size[1], input_size[0])
    truth = follow(sample.truth, frame.inverse, size, (0, 0, *canvas), Keep(0.0, 0.0), dataset.categories)
    if dataset.task == "panoptic":
        truth = join_stuff(truth, dataset.categories)
    semantic = None
    if sample.semantic is not None:
        labels = sample.semantic.labels
        moved: Any = warp(labels, frame.inverse, canvas, fill=IGNORE_INDEX, interpolation="nearest")
        semantic = SemanticMap(moved)
    shown = None if margin else covered(frame.inverse, size, canvas)
    return replace(sample, image=boxed, truth=truth, semantic=semantic, shown=shown), frame


def _compose(job: _Job, index: int, window: Window, *, mosaic: bool = True) -> Sample:
    """A window of image `index`, a mosaic around it, or the whole image alone, on a canvas of the network's size."""
    rng, canvas, options = job.rng, job.canvas, job.options
    scan: Scan | None = None
    # No number is drawn for what is switched off, so that switching it on is what changes a run.
    if options.crop and rng.random() < options.crop:
        scan = _look(job, index)
        sources = [job.fetch(index) if scan is None else _unread(job, index, scan)]
        rare = options.rare > 0 and rng.random() < options.rare
        point = rare_point(sources[0], job.dataset.class_frequencies, rng) if rare else None
        placements = [crop_placement(_size(sources[0]), canvas, rng, point)]
    elif mosaic and rng.random() < options.mosaic:
        indices = [index, *(int(other) for other in rng.integers(len(job.dataset), size=3))]
        sources = [job.fetch(indices[position]) for position in rng.permutation(4)]
        placements = mosaic_placements([_size(source) for source in sources], canvas, rng)
    else:
        sources = [job.fetch(index)]
        placements = [single_placement(_size(sources[0]), canvas)]
    affine = random_affine(rng, options, canvas)
    bend = random_field(rng, canvas, options.elastic_px) if options.elastic_px else None
    result = blank(canvas, [source.image for source in sources], job.fill)
    maps = [source.semantic.labels[..., None] for source in sources if source.semantic is not None]
    labels = blank(canvas, maps, IGNORE_INDEX) if maps else None
    truths = []
    for source, placement in zip(sources, placements, strict=True):
        matrix = chain(affine, placement)
        if scan is None:
            paint(result, source.image, matrix, job.fill, window, field=bend)
        else:
            _paint_seen(result, scan, index, matrix, job.fill, window, bend)
        if labels is not None and source.semantic is not None:
            drawn = source.semantic.labels[..., None]
            paint(labels, drawn, matrix, IGNORE_INDEX, window, field=bend, interpolation="nearest")
        truths.append(follow(source.truth, matrix, _size(source), window, options.keep, job.dataset.categories, bend))
    semantic = None if labels is None else SemanticMap(labels[..., 0])
    alone = len(sources) == 1 and bend is None and window == (0, 0, *canvas)
    shown = covered(chain(affine, placements[0]), _size(sources[0]), canvas) if alone else None
    return Sample(result, join(truths), job.dataset.names[index], index, semantic, shown)


def _look(job: _Job, index: int) -> Scan | None:
    try:
        return job.look(index)
    except ImageError as error:
        raise WindowError(index, error) from error


def _unread(job: _Job, index: int, scan: Scan) -> Sample:
    """The sample of a scan, whose image has size and type and takes no memory."""
    semantic = job.dataset.semantic(index) if job.dataset.task == "semantic" else None
    image = np.broadcast_to(np.zeros((), dtype=scan.dtype), scan.shape)
    return Sample(image, job.dataset.truth(index, masks=job.masks), job.dataset.names[index], index, semantic)


def _paint_seen(canvas: Image, scan: Scan, index: int, matrix: Float, fill: int, window: Window, bend: Field | None) -> None:
    """`paint` of a scan, of which no more is read than the canvas shows; the scan is closed."""
    reach = 0.0 if bend is None else float(np.abs(bend).max(initial=0.0))
    height, width = canvas.shape[:2]
    corners = np.array([[x, y, 1.0] for x in (-reach, width + reach) for y in (-reach, height + reach)])
    back = invert(matrix)
    seen = corners @ back.T  # [4, 2], in pixels of the scan
    # What is shrunk is averaged over blocks, which must stay those of the whole image.
    block = block_side(math.sqrt(abs(float(np.linalg.det(matrix[:, :2])))))
    size = (scan.width, scan.height)
    x1, y1 = np.clip((np.floor(seen.min(axis=0) / block).astype(np.int64) - 2) * block, 0, size).tolist()
    x2, y2 = np.clip((np.ceil(seen.max(axis=0) / block).astype(np.int64) + 2) * block, 0, size).tolist()
    with scan:
        if x2 <= x1 or y2 <= y1:
            return
        try:
            part = scan.read(x1, y1, x2 - x1, y2 - y1)
        except ImageError as error:
            raise WindowError(index, error) from error
    paint(canvas, part, chain(matrix, np.array([[1.0, 0.0, x1], [0.0, 1.0, y1]])), fill, window, field=bend)


def corner_sample(sample: Sample, categories: Sequence[Category]) -> Sample:
    """The sample with what it shows in the upper left corner of its canvas, and truth moved along, for models that look away from
    padding; as it is where all of it counts."""
    if sample.shown is None:
        return sample
    x1, y1, x2, y2 = sample.shown
    width, height = _size(sample)
    shift = np.array([[1.0, 0.0, -x1], [0.0, 1.0, -y1]])
    # Truth may reach into the last pixels that are covered in part; nothing of it is cut.
    truth = follow(sample.truth, shift, (width, height), (0, 0, width, height), Keep(0.0, 0.0), categories)
    semantic = sample.semantic
    if semantic is not None:
        labels: Any = to_corner(semantic.labels, sample.shown, IGNORE_INDEX)
        semantic = SemanticMap(labels)
    image = to_corner(sample.image, sample.shown, FILL)
    return replace(sample, image=image, truth=truth, semantic=semantic, shown=(0, 0, x2 - x1, y2 - y1))


def _size(sample: Sample) -> tuple[int, int]:
    """Width and height of the image."""
    return sample.image.shape[1], sample.image.shape[0]


def _other(job: _Job, window: Window, *, mosaic: bool = True) -> Sample:
    return _compose(job, int(job.rng.integers(len(job.dataset))), window, mosaic=mosaic)


def _random_window(rng: np.random.Generator, canvas: tuple[int, int]) -> Window:
    """A rectangle with the canvas's aspect around a random point; its share of the area is uniform before the border cuts it."""
    side = np.sqrt(rng.random())
    centre, half = rng.random(2) * canvas, side * np.array(canvas) / 2
    low, high = np.clip(np.rint(centre - half), 0, canvas), np.clip(np.rint(centre + half), 0, canvas)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _intensities(image: Image, rng: np.random.Generator, options: AugmentOptions, levels: Levels | None) -> Image:
    if options.hsv_h or options.hsv_s or options.hsv_v:
        image = colour.shift_hsv(image, rng, options.hsv_h, options.hsv_s, options.hsv_v, levels)
    if rng.random() < options.blur:
        image = colour.blur(image, rng)
    if rng.random() < options.noise:
        image = colour.add_noise(image, rng, levels=levels)
    return image
