"""What a user calls from Python; `pelagia.<name>` is `pelagia.api.<name>`.

Only what prediction with an exported file needs is imported here; data, metrics and the tensor side are resolved by the function
that needs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.core.lazy import resolve
from pelagia.core.scan import Scan, open_scan
from pelagia.core.types import Category, Prediction, Task
from pelagia.errors import CheckpointError, ExportError, OptionError
from pelagia.infer.map_writer import StoredMap, predict_map
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import FileResult, predict_files, predict_image
from pelagia.infer.progress import bar
from pelagia.infer.runtimes import PRECISIONS, RUNTIMES, OnnxRuntime, Precision, Runtime, RuntimeKind
from pelagia.infer.sources import is_predictions, map_kind

if TYPE_CHECKING:
    from pelagia.data.dataset import Dataset
    from pelagia.infer.evaluate import Scores
    from pelagia.infer.folder import FolderRun
    from pelagia.infer.maps import MapScores
    from pelagia.metrics.label_images import LabelImageResult
    from pelagia.metrics.result import DetectionResult
    from pelagia.models.model import Model
    from pelagia.models.registry import Entry
    from pelagia.train.run import Run

__all__ = ["Predictor", "create_model", "evaluate", "list_models", "load", "open_dataset", "train"]

T = TypeVar("T")

#: What runs a file of each kind, the first of them where nothing is said.
_RUNTIMES_OF: dict[str, tuple[RuntimeKind, ...]] = {
    ".onnx": ("onnx", "openvino"),
    ".xml": ("openvino",),
    **dict.fromkeys((".safetensors", ".pt", ".pth", ".bin"), ("torch",)),
}

#: Checkpoints that a run folder is looked through for, the best first.
_RUN_FILES = ("best.safetensors", "last.safetensors")


def open_dataset(path: str | Path, **options: Any) -> Dataset:
    """Labelled images in any format that is known; the format is sniffed and the images are found.

    Args:
        path: an annotation file or a folder.
        options: `format`, `images`, `task`, `angle`, `split`, `classes`, as `pelagia.data.open.open_dataset` explains.

    Raises:
        DataError: nothing fits, or something in the data is wrong.
        OptionError: an unknown option or a value that cannot be used.
    """
    dataset: Dataset = resolve("pelagia.data.open", purpose="open data").open_dataset(path, **options)
    return dataset


def create_model(
    name: str,
    classes: int | Sequence[str | Category],
    *,
    task: Task | None = None,
    input_size: int | tuple[int, int] = 640,
    options: dict[str, Any] | None = None,
) -> Model:
    """A new model with random weights.

    Args:
        name: see `list_models`.
        classes: how many, or their names (ids then count from 1), or categories.
        task: by default the model's first.
        input_size: side in pixels, or height and width.
        options: the model's own options that differ from the default.

    Raises:
        OptionError: an unknown name, task or option.
        MissingExtraError: the extra `train` is not installed.
    """
    registry = resolve("pelagia.models.registry", purpose="create a model")
    names = [f"class {index}" for index in range(classes)] if isinstance(classes, int) else list(classes)
    categories = tuple(item if isinstance(item, Category) else Category(i + 1, item) for i, item in enumerate(names))
    model: Model = registry.create(name, categories, task, input_size=input_size, options=options)
    return model


def list_models(task: Task | None = None) -> tuple[Entry, ...]:
    """The models that can be created, or those for `task`: name, paper, tasks, number of parameters, GFLOPs."""
    entries: tuple[Entry, ...] = resolve("pelagia.models.registry", purpose="list models").entries(task)
    return entries


def train(model: str, data: str | Path | Dataset, *, val: str | Path | Dataset | None = None, **options: Any) -> Run:
    """Train a model on labelled images; returns the run, whose folder `load` takes.

    Args:
        model: see `list_models`.
        data: a data set, or where its labels are. Its split `train` is used where it has one.
        val: a data set to validate on; else the split `val` of `data`, else a part of `data`.
        options: fields of `pelagia.train.options.TrainOptions`, such as `epochs=100`; what is not stated has the default of the
            model (`Entry.training`), else that of every run. With `resume`, what is stated must agree with the run,
            unless it may differ in a run that goes on (`train.options.RESUMABLE`).

    Raises:
        OptionError: an unknown option or a value that cannot be used.
        MissingExtraError: the extra `train` is not installed.
        TrainingError: training cannot start or go on.
    """
    explicit = frozenset({"model", *options})
    base = resolve("pelagia.train.options", purpose="train a model").defaults_of(model)
    loop = resolve("pelagia.train.loop", purpose="train a model")
    if isinstance(data, str | Path):
        options["data"] = str(data)
    if isinstance(val, str | Path):
        options["val"] = str(val)
    chosen = _with_options(base, options)
    dataset = open_dataset(data, task=chosen.task) if isinstance(data, str | Path) else data
    held_out = open_dataset(val, task=chosen.task) if isinstance(val, str | Path) else val
    run: Run = loop.train(chosen, dataset, held_out, explicit=explicit)
    return run


def load(
    path: str | Path,
    *,
    device: str = "auto",
    threads: int = 0,
    runtime: RuntimeKind = "auto",
    precision: Precision = "float32",
) -> Predictor:
    """A model that predicts: a run folder, a checkpoint, an exported `.onnx` or `.xml`, or another project's weights.

    Args:
        path: the file or folder.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1 or mps; ONNX Runtime knows auto, cpu and cuda.
        threads: CPU threads, 0 for all cores.
        runtime: what runs it. auto goes by the file alone, so that a result never depends on what else is installed: a checkpoint
            or a foreign file runs in torch, an `.onnx` in ONNX Runtime, an `.xml` in OpenVINO. OpenVINO takes an `.onnx` too.
        precision: float32, or bfloat16 in torch and OpenVINO: fast on processors with instructions for it, exact to 3 digits; on
            an NVIDIA GPU torch also knows tf32, between the two.

    Raises:
        CheckpointError: missing, broken or of an unknown kind.
        UnsafeCheckpointError: a foreign file asks to call something.
        OptionError: the runtime does not take that kind of file, or not that device or precision.
        MissingExtraError: what the runtime needs is not installed.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_run_folder(path)
    suffix = path.suffix.lower()
    if runtime not in RUNTIMES or precision not in PRECISIONS:
        raise OptionError(f"runtime is one of {', '.join(RUNTIMES)} and precision one of {', '.join(PRECISIONS)}")
    taken = _RUNTIMES_OF.get(suffix)
    if taken is None and path.is_file():
        raise CheckpointError(
            "expected a run folder, a .safetensors checkpoint, an .onnx, .xml or a foreign .pt file", where=path
        )
    if not path.is_file():
        raise CheckpointError("there is no such file or folder", where=path)
    assert taken is not None
    chosen = taken[0] if runtime == "auto" else runtime
    if chosen not in taken:
        text = "; write one with: pelagia export MODEL" if chosen != "torch" and taken[0] == "torch" else ""
        raise OptionError(f"{chosen} does not take {suffix} files{text}", where=path)
    if precision == "tf32" and chosen != "torch":
        raise OptionError("tf32 is a precision of torch on NVIDIA GPUs; take float32", where=path)
    if chosen == "onnx":
        if precision != "float32":
            raise OptionError("ONNX Runtime computes in float32 here; for bfloat16 take torch or OpenVINO", where=path)
        return Predictor(OnnxRuntime(path, threads=threads, device=device), path)
    if chosen == "openvino":
        module = resolve("pelagia.infer.openvino_runtime", purpose="run a model with OpenVINO")
        return Predictor(module.OpenVinoRuntime(path, threads=threads, device=device, precision=precision), path)
    model = resolve("pelagia.models.foreign", purpose="load a checkpoint").load_any(path)
    return Predictor(_torch_runtime(model, device, threads, precision), path, model)


def evaluate(
    model: Predictor | str | Path, data: str | Path | Dataset, *, show: bool | None = None, **options: Any
) -> Scores | LabelImageResult:
    """Score a model, or predictions in a file, on labelled images: exact COCO numbers, and what COCO leaves out; for maps IoU and
    its kin, or panoptic quality.

    Args:
        model: what `load` returns or takes; or predictions: COCO results (.json), a folder of YOLO or DOTA text files or of label
            images, or a COCO panoptic .json.
        data: a data set, or where its labels are.
        show: a progress bar; None for one where standard error is a terminal.
        options: fields of `pelagia.infer.evaluate.EvaluateOptions`; for predictions `kind` (boxes, oriented, masks, keypoints,
            label-images, semantic, panoptic; by default what both sides hold), and for objects those of `evaluate_file`.

    Raises:
        EvaluationError: model and data do not fit together.
        OptionError: an unknown option or a value that cannot be used.
    """
    maps = None if isinstance(model, Predictor) else map_kind(model, options.get("kind") or "auto")
    if not isinstance(model, Predictor) and maps is not None:
        unknown = sorted(set(options) - {"kind"})
        if unknown:
            raise OptionError(f"unknown option {', '.join(unknown)}; maps know kind")
        scores: MapScores = resolve("pelagia.infer.maps", purpose="score maps").evaluate_map_files(model, data, maps)
        return scores
    if not isinstance(model, Predictor) and is_predictions(model):
        module = resolve("pelagia.infer.evaluate", purpose="score predictions")
        result: DetectionResult = module.evaluate_file(model, data, **options)
        return result
    predictor = model if isinstance(model, Predictor) else load(model)
    return predictor.evaluate(data, show=show, **options)


class Predictor:
    """A model with what runs it.

    Attributes:
        card: what the model is: classes, input size, thresholds, licence.
        model: the torch model, or None for an exported file.
        path: where it was loaded from, or None.
    """

    def __init__(self, runtime: Runtime, path: Path | None = None, model: Model | None = None) -> None:
        self.runtime = runtime
        self.path = path
        self.model = model

    @property
    def card(self) -> ModelCard:
        """What the model is."""
        return self.runtime.card

    def predict(self, image: str | Path | NDArray[Any] | Scan, **options: Any) -> Prediction:
        """What the model answers for one image (a file, the folder of an OME-Zarr, or an array [H, W], [H, W, 1] or [H, W, 3] RGB
        of uint8 or uint16): objects, strongest first, or a map of classes or of segments.

        Args:
            image: of any size; large ones are predicted in overlapping tiles.
            options: fields of `pelagia.infer.predict.PredictOptions`, such as `score=0.4`.

        Raises:
            ImageError: the file is missing or broken.
            OptionError: an unknown option, a value that cannot be used, or an array that is no image.
        """
        chosen = _with_options(PredictOptions(), options)
        if not isinstance(image, str | Path):
            return predict_image(self.runtime, image, chosen)
        with open_scan(image, max_pixels=chosen.max_pixels) as scan:
            return predict_image(self.runtime, scan, chosen)

    def predict_map(
        self, image: str | Path | Scan, path: str | Path, *, probabilities: str | Path | None = None, **options: Any
    ) -> StoredMap:
        """Write the class map of a scan to `path` (.tif or .zarr) while it is predicted in tiles; neither is ever held whole.

        Args:
            image: a file, or an open scan.
            path: of the map; for Zarr an OME-Zarr with the map as `0`, and `probabilities`.
            probabilities: a TIFF for them, a page for each class; any name for Zarr; None to leave them out.
            options: as for `predict`.

        Raises:
            ImageError: the file is missing or broken.
            ModelError: the model does not answer with a map of classes.
            OptionError: an unknown option, or something that cannot be written.
        """
        chosen = _with_options(PredictOptions(), options)
        if isinstance(image, Scan):
            return predict_map(self.runtime, image, path, chosen, probabilities=probabilities)
        with open_scan(image, max_pixels=chosen.max_pixels) as scan:
            return predict_map(self.runtime, scan, path, chosen, probabilities=probabilities)

    def predict_files(self, paths: Iterable[str | Path], **options: Any) -> Iterator[FileResult]:
        """The objects of many files, in order; a file that cannot be read gives its `error`, and the rest goes on."""
        return predict_files(self.runtime, paths, _with_options(PredictOptions(), options))

    def predict_folder(
        self,
        paths: Iterable[str | Path],
        out: str | Path,
        *,
        base: str | Path | None = None,
        draw: bool = True,
        shard: str | None = None,
        show: bool | None = None,
        **options: Any,
    ) -> FolderRun:
        """Predict many files into a results folder, as `pelagia predict` does; going on where an earlier run stopped.

        Args:
            paths: image files, each once; the order of the tables.
            out: the folder.
            base: the folder that images are named from, as the command names them from a folder that it is given; without it, and
                for an image elsewhere, the name is that of the file, with folders above where two would share it.
            draw: write annotated pictures.
            shard: predict only part I of N, as `"I/N"`.
            show: a progress bar; None for one where standard error is a terminal.
            options: fields of `pelagia.infer.options.PredictOptions`.

        Raises:
            OptionError: an unknown option, a value that cannot be used, or a file that cannot be written.
        """
        module = resolve("pelagia.infer.folder", purpose="predict a folder")
        run: FolderRun = module.FolderRun(
            self.runtime,
            {Path(path): Path(path).parent if base is None else Path(base) for path in paths},
            out,
            _with_options(PredictOptions(), options),
            model=self.path,
            draw=draw,
            shard=None if shard is None else module.Shard.parse(shard),
        )
        with bar("predicting", run.to_do, show=show) as advance:
            run.go(advance)
        return run

    def evaluate(self, data: str | Path | Dataset, *, show: bool | None = None, **options: Any) -> Scores:
        """As `pelagia.evaluate`."""
        module = resolve("pelagia.infer.evaluate", purpose="evaluate a model")
        dataset = open_dataset(data, task=self.card.task) if isinstance(data, str | Path) else data
        chosen = _with_options(module.EvaluateOptions(), options)
        scores: Scores = module.evaluate(self.runtime, dataset, chosen, show=show)
        return scores

    def export(self, path: str | Path, **options: Any) -> Path:
        """Write the model as ONNX and prove that it answers alike; returns the path.

        Raises:
            ExportError: there is no torch model behind this predictor, or the exported file does not agree with it; `path` then
                stays as it was.
            OptionError: `path` does not end with .onnx, or cannot be written.
            MissingExtraError: the extra `export` is not installed.
        """
        if self.model is None:
            raise ExportError("this is an exported file already; export from the checkpoint", where=self.path)
        report = resolve("pelagia.export.onnx", purpose="export a model").export_onnx(self.model, path, **options)
        written: Path = report.path
        return written


def _in_run_folder(folder: Path) -> Path:
    for name in _RUN_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"this folder holds no run: neither {' nor '.join(_RUN_FILES)} is in it", where=folder)


def _torch_runtime(model: Model, device: str, threads: int, precision: Precision) -> Runtime:
    torch = resolve("torch", purpose="run a checkpoint")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise OptionError(f"{device!r} is no device; use auto, cpu, cuda, cuda:1 or mps") from error
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(chosen.type, False) or (chosen.index or 0) >= max(torch.cuda.device_count(), 1):
        raise OptionError(f"this machine has no device {device!r}; --device cpu always works")
    if threads:
        torch.set_num_threads(threads)
    module = resolve("pelagia.models.runtime", purpose="run a checkpoint")
    runtime: Runtime = module.TorchRuntime(model, device=chosen, precision=precision)
    return runtime


def _with_options(base: T, given: dict[str, Any]) -> T:
    known = [item.name for item in fields(base)]  # type: ignore[arg-type]  # T is always a dataclass here
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise OptionError(f"unknown option {', '.join(unknown)}; known are {', '.join(known)}")
    changed: T = replace(base, **given)  # type: ignore[type-var]  # as above
    return changed
