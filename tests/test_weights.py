"""Published weights are fetched whole and checked, or not at all; training starts from them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import detection, segmentation

from pelagia.core.types import Category
from pelagia.errors import CheckpointError, OptionError
from pelagia.models import registry, weights
from pelagia.models.foreign import load_foreign
from pelagia.models.regions.faster_rcnn import TwoStage
from pelagia.train.transfer import transfer


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.endswith("short.pth"):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"a few bytes")
        else:
            super().do_GET()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "served"
    folder.mkdir()
    found = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=str(folder)))
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.server_address[1]}", folder
    found.shutdown()
    found.server_close()
    thread.join()


def item(url: str, data: bytes) -> weights.Published:
    return weights.Published(url, hashlib.sha256(data).hexdigest()[:8], "MIT", "AP 1", "a test")


def test_a_file_is_fetched_once(server: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = server
    (folder / "a.pth").write_bytes(b"weights")
    found = weights.fetch(item(f"{address}/a.pth", b"weights"), tmp_path / "cache")
    assert found == tmp_path / "cache" / "a.pth"
    assert found.read_bytes() == b"weights"
    (folder / "a.pth").unlink()
    assert weights.fetch(item(f"{address}/a.pth", b"weights"), tmp_path / "cache") == found
    with pytest.raises(CheckpointError, match="delete it and ask again"):
        weights.fetch(item(f"{address}/a.pth", b"others"), tmp_path / "cache")


def test_nothing_is_kept_of_what_is_wrong(server: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = server
    (folder / "a.pth").write_bytes(b"something else")
    cache = tmp_path / "cache"
    with pytest.raises(CheckpointError, match="nothing was kept"):
        weights.fetch(item(f"{address}/a.pth", b"weights"), cache)
    with pytest.raises(CheckpointError, match="11 of 1000 bytes"):
        weights.fetch(item(f"{address}/short.pth", b"a few bytes"), cache)
    with pytest.raises(CheckpointError, match=r"cannot fetch .*[Nn]ot [Ff]ound"):
        weights.fetch(item(f"{address}/missing.pth", b"weights"), cache)
    with pytest.raises(CheckpointError, match="without network"):
        weights.fetch(item("http://127.0.0.1:9/a.pth", b"weights"), cache)
    with pytest.raises(OptionError, match="http or https"):
        weights.fetch(item("file:///etc/passwd", b"weights"), cache)
    assert list(cache.iterdir()) == []


def test_the_list_is_that_of_torchvision() -> None:
    enums = {
        "faster-rcnn": detection.FasterRCNN_ResNet50_FPN_Weights,
        "faster-rcnn-v2": detection.FasterRCNN_ResNet50_FPN_V2_Weights,
        "mask-rcnn": detection.MaskRCNN_ResNet50_FPN_Weights,
        "mask-rcnn-v2": detection.MaskRCNN_ResNet50_FPN_V2_Weights,
        "keypoint-rcnn": detection.KeypointRCNN_ResNet50_FPN_Weights,
    }
    for name, enum in enums.items():
        found = weights.PUBLISHED[name]
        assert found.url == enum.COCO_V1.url
        assert found.file_name.endswith(f"-{found.digest}.pth")
        for value in enum.COCO_V1.meta["_metrics"]["COCO-val2017"].values():
            assert str(value) in found.metric


@pytest.mark.parametrize(
    "enum",
    [
        segmentation.FCN_ResNet50_Weights,
        segmentation.FCN_ResNet101_Weights,
        segmentation.DeepLabV3_ResNet50_Weights,
        segmentation.DeepLabV3_ResNet101_Weights,
    ],
)
def test_segmenters_of_torchvision_are_known(enum: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    published = enum.COCO_WITH_VOC_LABELS_V1
    monkeypatch.setattr("pelagia.models.weights.sha256", lambda _path: published.url[-12:-4] + "00")
    found = weights.known_file("any")
    assert found is not None
    assert (found.url, found.licence) == (published.url, "BSD-3-Clause")
    assert found.metric == f"mean IoU {published.meta['_metrics']['COCO-val2017-VOC-labels']['miou']}"


def test_a_published_file_is_known_and_its_heads_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    theirs = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    state = {key: value for key, value in theirs.state_dict().items() if "num_batches_tracked" not in key}
    torch.save(state, tmp_path / "renamed.pth", _use_new_zipfile_serialization=False)
    digest = hashlib.sha256((tmp_path / "renamed.pth").read_bytes()).hexdigest()
    monkeypatch.setitem(weights.PUBLISHED, "faster-rcnn", replace(weights.PUBLISHED["faster-rcnn"], digest=digest[:8]))
    model = load_foreign(tmp_path / "renamed.pth")
    assert isinstance(model, TwoStage)
    assert (model.options.norm, model.options.norm_epsilon) == ("frozen", 0.0)
    assert all(module.eps == 0 for module in model.backbone.modules() if hasattr(module, "running_var"))
    assert model.card.licence == "BSD-3-Clause"
    assert sum(parameter.numel() for parameter in model.parameters()) == 41_808_406 - 53_120
    own = [Category(i, f"species {i}") for i in range(90)]
    mine = registry.create("faster-rcnn", own, "detect", options=dict(weights.PUBLISHED["faster-rcnn"].options))
    found = transfer(mine, model.state_dict(), model.card.class_names)
    parts = ("logits.weight", "logits.bias", "offsets.weight", "offsets.bias")
    assert set(found.new) == {f"box_head.classes.{part}" for part in parts}
    assert found.unused == tuple(name for name in model.state_dict() if name in found.new)
    frozen = [name for name, parameter in mine.named_parameters() if not parameter.requires_grad]
    assert {name.split(".")[2] for name in frozen} == {"conv1", "layer1"}
