"""The layers hold: imports point one way, the array side never sees torch, nothing is imported inside a function."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pelagia.core.image import write
from pelagia.core.types import Category
from pelagia.models import checkpoint, registry
from pelagia.models.grids.ultralytics import foreign_name
from tiny_onnx import write_tiny

SOURCE = Path(__file__).parents[1] / "src" / "pelagia"
MODULES = sorted(SOURCE.rglob("*.py"))

#: Layer -> the layers of this package that it may import, itself included by default.
ALLOWED = {
    "": set(),
    "errors": set(),
    "core": {"errors"},
    "data": {"core", "errors"},
    "decode": {"core", "errors"},
    "metrics": {"core", "errors"},
    "infer": {"core", "errors", "data", "decode", "metrics"},
    "report": {"core", "errors", "data", "decode", "metrics", "infer"},
    "nn": {"core", "errors", "decode"},
    "losses": {"core", "errors", "decode", "nn"},
    "assign": {"core", "errors", "decode", "nn", "losses"},
    "models": {"core", "errors", "decode", "nn", "losses", "assign"},
    "train": {"", "core", "errors", "decode", "nn", "losses", "assign", "models", "data", "metrics", "infer", "report"},
    "export": {"core", "errors", "decode", "nn", "losses", "assign", "models", "data", "metrics", "infer", "report"},
    "api": {
        "core",
        "errors",
        "decode",
        "nn",
        "losses",
        "assign",
        "models",
        "data",
        "metrics",
        "infer",
        "report",
        "train",
        "export",
    },
}
ALLOWED["__main__"] = {"cli"}
ALLOWED["serve"] = {*ALLOWED["api"], "api", ""}
ALLOWED["cli"] = {*ALLOWED["serve"], "serve"}

ARRAY_SIDE = {"", "errors", "core", "data", "decode", "metrics", "infer", "report", "serve"}
TENSOR_PACKAGES = {"torch", "torchvision", "timm", "safetensors", "onnx", "onnxscript"}

#: Models may know what a runtime is, and nothing else of `infer`.
EXCEPTIONS = {("models", "pelagia.infer.runtimes")}


def layer(module: str) -> str:
    """`pelagia.core.boxes` -> `core`; `pelagia` itself -> the empty layer, whose only content is the version and lazy names."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def module_name(path: Path) -> str:
    parts = ["pelagia", *path.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def type_checking_nodes(tree: ast.Module) -> set[int]:
    """Nodes below `if TYPE_CHECKING:`, which never run."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for statement in node.body:
                skipped |= {id(inner) for inner in ast.walk(statement)}
    return skipped


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of everything that a file imports when it runs; `from pelagia import core` names pelagia.core."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = type_checking_nodes(tree)
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            if node.module == "pelagia":
                yield from (
                    (node.lineno, f"pelagia.{alias.name}" if is_module(alias.name) else "pelagia") for alias in node.names
                )
            else:
                yield node.lineno, node.module


def is_module(name: str) -> bool:
    return (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").is_file()


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    module = module_name(path)
    own = layer(module)
    assert own in ALLOWED, f"the layer {own!r} is not in the design"
    for line, other in imported(path):
        top = other.split(".")[0]
        if top == "pelagia":
            fine = layer(other) in ALLOWED[own] | {own} or (own, other) in EXCEPTIONS
            assert fine, f"{path}:{line}: {own} must not import {other}"
        elif own in ARRAY_SIDE:
            assert top not in TENSOR_PACKAGES, f"{path}:{line}: the array side must not import {top}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_nothing_is_imported_inside_a_function(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = module_name(path) == "pelagia.core.lazy"
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            assert not isinstance(node, ast.Import | ast.ImportFrom), f"{path}:{node.lineno}: import inside {function.name}"
            called = node.func if isinstance(node, ast.Call) else None
            name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
            if name in ("import_module", "__import__"):
                # The package's own __getattr__ makes its public names lazy.
                assert lazy or function.name == "__getattr__", f"{path}:{node.lineno}: use core.lazy.resolve"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_every_module_states_its_names_and_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    if not tree.body:
        return
    assert ast.get_docstring(tree), f"{path}: no docstring"
    assigned = {
        target.id
        for node in tree.body
        for target in (
            [*node.targets] if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if isinstance(target, ast.Name)
    }
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    if defined and path.name not in ("__init__.py", "__main__.py"):
        assert "__all__" in assigned, f"{path}: no __all__"


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={"PYTHONPATH": str(SOURCE.parent)}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing() -> None:
    loaded = run("import sys, pelagia; print(sorted({n.split('.')[0] for n in sys.modules}))")
    for heavy in ("numpy", "torch", "cv2", "onnxruntime", "scipy", "matplotlib", "rich"):
        assert f"'{heavy}'" not in loaded


def test_the_overview_and_prediction_load_little() -> None:
    loaded = run("import sys; from pelagia.cli.main import app; print(sorted({n.split('.')[0] for n in sys.modules}))")
    for heavy in ("numpy", "torch", "cv2", "onnxruntime", "scipy", "matplotlib"):
        assert f"'{heavy}'" not in loaded
    loaded = run("import sys, pelagia.cli.predict; print(sorted({n.split('.')[0] for n in sys.modules}))")
    for heavy in ("torch", "numba", "scipy", "matplotlib", "skimage", "pandas"):
        assert f"'{heavy}'" not in loaded


def test_the_first_prediction_and_a_score_load_what_they_need(tmp_path: Path) -> None:
    model, image = write_tiny(tmp_path / "m.onnx"), tmp_path / "image.png"
    write(image, np.zeros((64, 64, 3), dtype=np.uint8))
    truth = {
        "images": [{"id": 1, "width": 64, "height": 64, "file_name": "image.png"}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]))
    command = (
        "import sys\nfrom pelagia.cli.main import main\ntry:\n    main({!r})\nexcept SystemExit as stop:\n    print(stop.code)\n"
    )
    told = "print(sorted({n.split('.')[0] for n in sys.modules}))"
    predicted = run(command.format(["predict", str(model), str(image), "--out", str(tmp_path / "out"), "--threads", "1"]) + told)
    scored = run(command.format(["evaluate", str(tmp_path / "found.json"), str(tmp_path / "truth.json")]) + told)
    for output, absent, present in (
        (predicted, ("torch", "numba", "scipy", "matplotlib", "skimage", "pyarrow"), "onnxruntime"),
        (scored, ("torch", "onnxruntime", "matplotlib", "skimage", "pyarrow"), "numba"),
    ):
        code, loaded = output.strip().splitlines()[-2:]
        assert code == "0"
        assert f"'{present}'" in loaded
        for heavy in absent:
            assert f"'{heavy}'" not in loaded, heavy


def test_a_yolo11_checkpoint_loads_no_package_that_it_does_not_need(tmp_path: Path) -> None:
    """Its own layers are all it is built on; timm, torchvision and the compiler of PyTorch would take 230 MB and two seconds."""
    own, foreign, image = tmp_path / "own.safetensors", tmp_path / "foreign.pt", tmp_path / "image.png"
    classes = tuple(Category(index, f"class {index}") for index in range(3))
    model = registry.create("yolo11n", classes, "instance", input_size=64)
    checkpoint.save(own, model, model.card)
    torch.save({foreign_name(name): value for name, value in model.state_dict().items()}, foreign)
    write(image, np.zeros((64, 64, 3), dtype=np.uint8))
    code = (
        "import sys, pelagia\nfor name in {!r}:\n    pelagia.load(name, device='cpu').predict({!r})\n"
        "print(sorted({{n for n in sys.modules if n.count('.') < 2}}))"
    )
    loaded = run(code.format([str(own), str(foreign)], str(image)))
    assert "'torch'" in loaded
    for heavy in ("timm", "torchvision", "sympy", "scipy", "matplotlib", "pandas", "skimage", "onnx", "onnxruntime", "openvino"):
        assert f"'{heavy}'" not in loaded, heavy
    assert "'torch._dynamo'" not in loaded


def test_public_names_resolve() -> None:
    assert run("import pelagia; print(all(getattr(pelagia, name) is not None for name in pelagia.__all__))").strip() == "True"
    assert "AttributeError" in run(
        "import pelagia\ntry:\n    pelagia.nothing\nexcept AttributeError as e:\n    print(type(e).__name__)"
    )
