"""Foreign checkpoints: read without running them, and refused by name when they ask for more."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pelagia.core.types import Category, Task
from pelagia.errors import CheckpointError, UnsafeCheckpointError
from pelagia.models import registry
from pelagia.models.foreign import load_foreign
from pelagia.models.grids.ultralytics import foreign_name
from pelagia.models.model import Model
from pelagia.models.torchfile import Limits, read_torch_file
from pelagia.models.unpickle import Name, Record


@pytest.fixture
def foreign_classes() -> Iterator[dict[str, type]]:
    """Classes of a package that exists only while the file is written."""
    module = types.ModuleType("ultralytics.nn.tasks")
    parents = {name: types.ModuleType(name) for name in ("ultralytics", "ultralytics.nn")}
    classes: dict[str, type] = {}
    for name in ("DetectionModel", "Conv", "Namespace"):
        classes[name] = type(name, (), {"__module__": "ultralytics.nn.tasks"})
        setattr(module, name, classes[name])
    names = {**parents, "ultralytics.nn.tasks": module}
    assert not names.keys() & sys.modules.keys()
    sys.modules.update(names)
    yield classes
    for name in names:
        del sys.modules[name]


def reference(task: Task, classes: int = 3) -> Model:
    """YOLO11n with weights that half precision holds exactly."""
    torch.manual_seed(0)
    points = tuple(f"point {number}" for number in range(5)) if task == "keypoints" else ()
    categories = [Category(index, str(index), keypoints=points) for index in range(classes)]
    model = registry.create("yolo11n", categories, task, input_size=64)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_((value + 0.01 * torch.rand_like(value)).half())
    return model.eval()


def tree(tensors: dict[str, Tensor], classes: dict[str, type]) -> Any:
    """A pickled module tree: objects whose state has `_parameters`, `_buffers`, `_modules`."""

    def node(kind: str) -> Any:
        made = classes[kind]()
        made.__dict__.update(training=True, _parameters=OrderedDict(), _buffers=OrderedDict(), _modules=OrderedDict())
        made.__dict__.update(_non_persistent_buffers_set=set(), _backward_hooks=OrderedDict())
        return made

    root = node("DetectionModel")
    for name, value in tensors.items():
        *path, last = name.split(".")
        here = root
        for word in path:
            here = here._modules.setdefault(word, node("Conv"))
        if last in ("weight", "bias"):
            here._parameters[last] = nn.Parameter(value, requires_grad=False)
        else:
            here._buffers[last] = value
    return root


def write_reference(path: Path, model: Model, classes: dict[str, type], key: str = "model") -> None:
    tensors = {foreign_name(name): value for name, value in model.state_dict().items()}
    tensors["model.23.dfl.conv.weight"] = torch.arange(16.0).view(1, 16, 1, 1)
    half = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    root = tree(half, classes)
    root.names = {0: "centric", 1: "pennate", 2: "chain"}
    root.args = classes["Namespace"]()
    root.args.imgsz = 320
    root.stride = torch.tensor([8.0, 16.0, 32.0])
    root.path = Path("weights.pt")
    if model.card.task == "keypoints":
        root.kpt_shape = [5, 3]
    content = {"epoch": -1, "ema": None, "model": None, "optimizer": None, "date": "2026", "license": "AGPL-3.0 License"}
    torch.save({**content, key: root}, path)


@pytest.mark.parametrize("key", ["model", "ema"])
@pytest.mark.parametrize("task", ["detect", "oriented", "instance", "keypoints"])
def test_reads_a_module_tree(task: Task, key: str, tmp_path: Path, foreign_classes: dict[str, type]) -> None:
    model = reference(task)
    write_reference(tmp_path / "best.pt", model, foreign_classes, key)
    loaded = load_foreign(tmp_path / "best.pt")
    for name, value in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == value.dtype
        assert torch.equal(loaded.state_dict()[name], value), name
    card = loaded.card
    assert (card.name, card.task, card.input_size) == ("yolo11n", task, (320, 320))
    assert card.class_names == ("centric", "pennate", "chain")
    assert [len(category.keypoints) for category in card.categories] == [5 if task == "keypoints" else 0] * 3
    assert card.licence == "AGPL-3.0"
    assert "best.pt" in card.source
    with torch.inference_mode():
        image = torch.rand(1, 3, 64, 64)
        for output, value in model(image).items():
            assert torch.equal(loaded(image)[output], value)


def test_foreign_names_are_those_of_the_published_state_dictionary() -> None:
    expected = {
        "backbone.stem.conv.weight": "model.0.conv.weight",
        "backbone.stage2.blocks.0.second.norm.running_var": "model.2.m.0.cv2.bn.running_var",
        "backbone.stage4.blocks.0.join.conv.weight": "model.6.m.0.cv3.conv.weight",
        "backbone.stage4.blocks.0.blocks.1.first.conv.weight": "model.6.m.0.m.1.cv1.conv.weight",
        "backbone.stage4.join.conv.weight": "model.6.cv2.conv.weight",
        "attend.blocks.0.attention.position.norm.bias": "model.10.m.0.attn.pe.bn.bias",
        "attend.blocks.0.feed.1.conv.weight": "model.10.m.0.ffn.1.conv.weight",
        "neck.bottom5.blocks.0.bypass.conv.weight": "model.22.m.0.cv2.conv.weight",
        "head.sides.2.1.conv.weight": "model.23.cv2.2.1.conv.weight",
        "head.classes.1.2.norm.weight": "model.23.cv3.1.1.0.bn.weight",
        "head.classes.0.4.bias": "model.23.cv3.0.2.bias",
        "head.angles.0.2.weight": "model.23.cv4.0.2.weight",
    }
    names = reference("oriented").state_dict().keys()
    assert {foreign_name(name): name for name in expected} == {value: key for key, value in expected.items()}
    assert expected.keys() <= names
    assert len({foreign_name(name) for name in names}) == len(names)


def test_foreign_names_of_masks_and_keypoints() -> None:
    expected = {
        "head.coefficients.2.0.norm.weight": "model.23.cv4.2.0.bn.weight",
        "head.coefficients.0.2.bias": "model.23.cv4.0.2.bias",
        "prototypes.enter.conv.weight": "model.23.proto.cv1.conv.weight",
        "prototypes.enlarge.bias": "model.23.proto.upsample.bias",
        "prototypes.refine.norm.running_mean": "model.23.proto.cv2.bn.running_mean",
        "prototypes.narrow.conv.weight": "model.23.proto.cv3.conv.weight",
    }
    names = reference("instance").state_dict().keys()
    assert {name: foreign_name(name) for name in expected} == expected
    assert expected.keys() <= names
    assert len({foreign_name(name) for name in names}) == len(names)
    assert foreign_name("head.keypoints.1.1.conv.weight") == "model.23.cv4.1.1.conv.weight"
    assert "head.keypoints.1.1.conv.weight" in reference("keypoints").state_dict()


def test_keypoints_that_cannot_be_read_are_refused(tmp_path: Path, foreign_classes: dict[str, type]) -> None:
    tensors = {foreign_name(name): value for name, value in reference("keypoints").state_dict().items()}
    torch.save(tensors, tmp_path / "a.pt")  # 15 numbers: 5 points of three, since 15 is odd
    assert load_foreign(tmp_path / "a.pt").card.task == "keypoints"
    last = "model.23.cv4.0.2.weight"
    torch.save({**tensors, last: torch.zeros(12, *tensors[last].shape[1:])}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="6 points of x and y or 4 of x, y and visibility"):
        load_foreign(tmp_path / "b.pt")
    for shape in ([5, 2], [4, 3]):
        root = tree(tensors, foreign_classes)
        root.kpt_shape = shape
        torch.save({"model": root}, tmp_path / "c.pt")
        with pytest.raises(CheckpointError, match=f"its keypoints are {shape[0]} x {shape[1]}"):
            load_foreign(tmp_path / "c.pt")


def test_a_plain_state_dictionary_is_read_too(tmp_path: Path) -> None:
    model = reference("detect")
    tensors = {foreign_name(name): value for name, value in model.state_dict().items()}
    torch.save({**tensors, "model.23.dfl.conv.weight": torch.arange(16.0).view(1, 16, 1, 1)}, tmp_path / "s.pt")
    loaded = load_foreign(tmp_path / "s.pt")
    assert loaded.card.input_size == (640, 640)
    assert loaded.card.class_names == ("class 0", "class 1", "class 2")


def test_other_networks_are_refused(tmp_path: Path, foreign_classes: dict[str, type]) -> None:
    tensors = {"model.0.conv.weight": torch.zeros(16, 3, 3, 3), "model.23.cv3.0.2.weight": torch.zeros(80, 80, 1, 1)}
    torch.save({"model": tree(tensors, foreign_classes)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="2 tensors fit no YOLO11"):
        load_foreign(tmp_path / "a.pt")
    torch.save({"model": None, "epoch": 3}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="no weights found"):
        load_foreign(tmp_path / "b.pt")
    torch.save([1, 2], tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="expected a dictionary"):
        load_foreign(tmp_path / "c.pt")


def test_a_tree_that_contains_itself_is_refused(tmp_path: Path, foreign_classes: dict[str, type]) -> None:
    root = tree({"a.weight": torch.zeros(1)}, foreign_classes)
    root._modules["a"]._modules["again"] = root
    torch.save({"model": root}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="refers to itself"):
        load_foreign(tmp_path / "a.pt")


def test_reads_what_torch_reads(tmp_path: Path) -> None:
    values = torch.arange(24.0).view(2, 3, 4)
    content = {
        "plain": values,
        "view": values[:, 1:, ::2],
        "turned": values.permute(2, 0, 1),
        "shared": values,
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3),
        "types": [torch.tensor([1, 0], dtype=kind) for kind in (torch.bool, torch.uint8, torch.int16, torch.float64)],
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "parameter": nn.Parameter(torch.ones(2)),
        "size": torch.Size([2, 3]),
        "containers": (1, (2, [3, {4, 5}]), {"a": None, 6: 1.5}, frozenset({7}), True, 2**70, -1, "é"),
        "ordered": OrderedDict(a=1),
    }
    torch.save(content, tmp_path / "a.pt")
    found = read_torch_file(tmp_path / "a.pt")
    assert found.keys() == content.keys()
    for name in ("plain", "view", "turned", "shared", "empty", "scalar", "half"):
        expected = content[name]
        assert isinstance(expected, Tensor)
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected)
    types_expected = content["types"]
    assert isinstance(types_expected, list)
    assert all(torch.equal(a, b) for a, b in zip(found["types"], types_expected, strict=True))
    assert torch.equal(found["parameter"], torch.ones(2))
    assert found["size"] == (2, 3)
    assert found["containers"] == content["containers"]
    assert found["ordered"] == {"a": 1}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_since_2(tmp_path: Path, protocol: int) -> None:
    torch.save({"a": [1, "b", torch.ones(2)], "set": {1, 2}}, tmp_path / "a.pt", pickle_protocol=protocol)
    found = read_torch_file(tmp_path / "a.pt")
    assert found["set"] == {1, 2}
    assert torch.equal(found["a"][2], torch.ones(2))


def test_classes_become_records_and_are_never_imported(tmp_path: Path, foreign_classes: dict[str, type]) -> None:
    made = foreign_classes["Namespace"]()
    made.value = 3
    torch.save({"a": made, "b": foreign_classes["Conv"], "p": Path("x")}, tmp_path / "a.pt")
    found = read_torch_file(tmp_path / "a.pt")
    assert isinstance(found["a"], Record)
    assert found["a"].kind == Name("ultralytics.nn.tasks", "Namespace")
    assert found["a"].state == {"value": 3}
    assert found["b"] == Name("ultralytics.nn.tasks", "Conv")
    assert isinstance(found["p"], Record)  # noted, not called


class Calls:
    """Pickles to a call of `function` with `args`."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.args


def nested_getattr(command: str) -> Any:
    return Calls(getattr, Calls(__import__, "os"), command)


ATTACKS: dict[str, tuple[Callable[[str], Any], str]] = {
    "os.system": (lambda command: Calls(os.system, command), r"call (posix|nt)\.system"),
    "eval": (lambda command: Calls(eval, f"__import__('os').system({command!r})"), r"call builtins\.eval"),
    "exec": (lambda command: Calls(exec, f"import os; os.system({command!r})"), r"call builtins\.exec"),
    "subprocess": (
        lambda command: Calls(subprocess.check_call, ["sh", "-c", command]),
        r"call (subprocess|commands)\.check_call",
    ),
    "getattr": (nested_getattr, r"call builtins\.__import__"),
    "getattr of a module": (lambda _: Calls(getattr, builtins.print, "__self__"), r"call builtins\.getattr"),
    "torch.load": (lambda _: Calls(torch.load, "other.pt"), r"call torch\.serialization\.load"),
    "open": (lambda command: Calls(io.open, command, "w"), r"call (_)?io\.open"),
    "a list subclass's call": (lambda _: Calls(list, (1, 2)), r"call builtins\.list"),
    "another rebuilding function": (
        lambda _: Calls(torch._utils._rebuild_device_tensor_from_numpy, 1),
        r"call torch\._utils\._rebuild_device",
    ),
    "set of what is no list": (lambda _: Calls(set, "ab"), "broken"),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_calls_are_refused_by_name_without_effect(
    attack: str, protocol: int, tmp_path: Path, foreign_classes: dict[str, type]
) -> None:
    touched = tmp_path / "touched"
    make, message = ATTACKS[attack]
    inner = tree({"a.weight": torch.zeros(1)}, foreign_classes)
    inner.extra = [make(f"touch {touched}")]
    torch.save({"model": inner}, tmp_path / "a.pt", pickle_protocol=protocol)
    kind = CheckpointError if message == "broken" else UnsafeCheckpointError
    with pytest.raises(kind, match=message):
        load_foreign(tmp_path / "a.pt")
    assert not touched.exists()


def archive(path: Path, program: bytes, members: dict[str, bytes] | None = None, *, compress: bool = False) -> Path:
    """A torch archive with a hand-written pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as file:
        file.writestr("archive/data.pkl", program)
        for name, data in (members or {}).items():
            file.writestr(f"archive/{name}", data)
    return path


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"  # "0", 4 values
REBUILD = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
HOSTILE: dict[str, tuple[bytes, str, type[CheckpointError]]] = {
    "class called": (b"\x80\x02cultralytics\nConv\n)R.", r"call ultralytics\.Conv", UnsafeCheckpointError),
    "INST": (b"(S'echo'\nios\nsystem\n.", "opcode INST", UnsafeCheckpointError),
    "OBJ": (b"\x80\x02(cos\nsystem\nX\x04\x00\x00\x00echoo.", "opcode OBJ", UnsafeCheckpointError),
    "extension": (b"\x80\x02\x82\x01.", "opcode EXT1", UnsafeCheckpointError),
    "persistent name": (b"Pos.system\n.", "opcode PERSID", UnsafeCheckpointError),
    "dotted name": (b"\x80\x04\x8c\x02os\x8c\x0dpath.os.systm\x93)R.", r"call os\.path\.os\.systm", UnsafeCheckpointError),
    "call of a result": (b"\x80\x02]" + b")R.", "call a list", UnsafeCheckpointError),
    "instance of a list": (b"\x80\x02])\x81.", "instance of a list", UnsafeCheckpointError),
    "state of a name": (b"\x80\x02cos\nsystem\n}b.", "state of a Name", UnsafeCheckpointError),
    "state of a tensor": (
        REBUILD + STORAGE + b"K\x00K\x02\x85K\x01\x85\x89}tR}b.",
        "state of a Tensor",
        UnsafeCheckpointError,
    ),
    "unknown storage": (
        b"\x80\x02(X\x07\x00\x00\x00storagecos\nsystem\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ.",
        r"storage of the kind os\.system",
        UnsafeCheckpointError,
    ),
    "tensor of a list": (REBUILD + b"]K\x00K\x02\x85K\x01\x85\x89}tR.", "tensor from a list", UnsafeCheckpointError),
    "beyond its storage": (REBUILD + STORAGE + b"K\x03K\x02\x85K\x01\x85\x89}tR.", "outside its storage", CheckpointError),
    "expanded": (REBUILD + STORAGE + b"K\x00J\x00\x00\x00\x40\x85K\x00\x85\x89}tR.", "outside its storage", CheckpointError),
    "negative stride": (REBUILD + STORAGE + b"K\x00K\x02\x85J\xff\xff\xff\xff\x85\x89}tR.", "stride", CheckpointError),
    "tuple as a key": (b"\x80\x02}K\x01\x85K\x01s.", "tuple as a key", CheckpointError),
    "list as a key": (b"\x80\x02}]K\x01s.", "list as a key", CheckpointError),
    "empty stack": (b"\x80\x020.", "broken", CheckpointError),
    "no mark": (b"\x80\x02t.", "mark is missing", CheckpointError),
    "unknown memo": (b"\x80\x02h\x07.", "broken", CheckpointError),
    "cut short": (b"\x80\x02]", "broken", CheckpointError),
    "no pickle": (b"\xff\xfe\xfd", "broken", CheckpointError),
    "append to a dict": (b"\x80\x02}K\x01a.", "list expected", CheckpointError),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(name: str, tmp_path: Path) -> None:
    program, message, kind = HOSTILE[name]
    with pytest.raises(kind, match=message):
        read_torch_file(archive(tmp_path / "a.pt", program, {"data/0": bytes(16)}))


def test_deep_nesting_exhausts_no_stack(tmp_path: Path) -> None:
    found = read_torch_file(archive(tmp_path / "a.pt", b"\x80\x02)" + b"\x85" * 200_000 + b"."))
    assert isinstance(found, tuple)


def test_limits(tmp_path: Path) -> None:
    program = pickle.dumps([0] * 1000, protocol=2)
    path = archive(tmp_path / "a.pt", program)
    with pytest.raises(UnsafeCheckpointError, match="at most 100 are read"):
        read_torch_file(path, Limits(pickle_bytes=100))
    with pytest.raises(UnsafeCheckpointError, match="more than 50 opcodes"):
        read_torch_file(path, Limits(opcodes=50))
    torch.save([torch.zeros(4), torch.ones(4)], path)
    assert len(read_torch_file(path, Limits(tensors=2, tensor_bytes=32))) == 2
    with pytest.raises(UnsafeCheckpointError, match="more than 1 tensors"):
        read_torch_file(path, Limits(tensors=1))
    with pytest.raises(UnsafeCheckpointError, match="at most 15 are read"):
        read_torch_file(path, Limits(tensor_bytes=31))
    with pytest.raises(UnsafeCheckpointError, match="members"):
        read_torch_file(path, Limits(members=2))


def test_archives_that_torch_does_not_write_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeCheckpointError, match="compressed"):
        read_torch_file(archive(tmp_path / "a.pt", b"\x80\x02]." * 50, compress=True))
    with pytest.raises(CheckpointError, match="big-endian"):
        read_torch_file(archive(tmp_path / "a.pt", b"\x80\x02].", {"byteorder": b"big"}))
    with pytest.raises(CheckpointError, match="lacks"):
        read_torch_file(archive(tmp_path / "a.pt", REBUILD + STORAGE + b"K\x00K\x02\x85K\x01\x85\x89}tR."))
    with pytest.raises(CheckpointError, match="has 8 bytes for 4 values"):
        read_torch_file(archive(tmp_path / "a.pt", b"\x80\x02" + STORAGE + b".", {"data/0": bytes(8)}))
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as file:
        file.writestr("readme", "nothing")
    with pytest.raises(CheckpointError, match=r"one data\.pkl"):
        read_torch_file(tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(pickle.dumps([1]))
    with pytest.raises(CheckpointError, match=r"expected a zip archive"):
        read_torch_file(tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="no such file"):
        read_torch_file(tmp_path / "missing.pt")


def test_files_of_torch_before_1_6_are_read(tmp_path: Path) -> None:
    shared = torch.arange(12.0)
    content = {
        "a": shared.view(3, 4).T,
        "b": shared[4:8],
        "c": torch.tensor([1, 2]),
        "d": torch.ones(2, dtype=torch.half),
        "n": 7,
    }
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    found = read_torch_file(tmp_path / "old.pth")
    assert found["n"] == 7
    for name in "abcd":
        assert found[name].dtype == content[name].dtype  # type: ignore[attr-defined]
        assert torch.equal(found[name], content[name])  # type: ignore[arg-type]
    data = (tmp_path / "old.pth").read_bytes()
    (tmp_path / "short.pth").write_bytes(data[:-8])
    with pytest.raises(CheckpointError, match="cut short"):
        read_torch_file(tmp_path / "short.pth")
    with pytest.raises(UnsafeCheckpointError, match="more than the file or the limit"):
        read_torch_file(tmp_path / "old.pth", Limits(tensor_bytes=20))
    (tmp_path / "wrong.pth").write_bytes(
        data[:-20].replace(b"\x0c\x00\x00\x00\x00\x00\x00\x00", b"\x0b\x00\x00\x00\x00\x00\x00\x00") + data[-20:]
    )
    with pytest.raises(CheckpointError, match="does not hold 12 values"):
        read_torch_file(tmp_path / "wrong.pth")
    torch.save({"a": os.system}, tmp_path / "call.pth", _use_new_zipfile_serialization=False)
    assert read_torch_file(tmp_path / "call.pth")["a"] == Name("posix", "system")
