"""Published weights by name: where they lie, how to know them, under which licence; and fetching them when the user asks.

Nothing here asks the network unless `fetch` is called. A file is kept where `torch.hub` keeps its own, so that what torchvision
has fetched before is found. The list needs no torch.
"""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pelagia.core.files import atomic_path, sha256
from pelagia.core.lazy import resolve
from pelagia.errors import CheckpointError, OptionError

__all__ = ["PUBLISHED", "Published", "cache_folder", "fetch", "known_file"]

_CHUNK_BYTES = 1 << 20
#: Seconds without an answer before a server counts as silent.
_PATIENCE = 30


@dataclass(frozen=True)
class Published:
    """One file of published weights.

    Args:
        url: where it lies.
        digest: its SHA-256 in hexadecimal, or the beginning of it as far as it is published.
        licence: of the weights, an SPDX name or a sentence.
        metric: what its authors report.
        source: who made it, and from what data.
        options: of the model, where the weights ask for others than its defaults.
    """

    url: str
    digest: str
    licence: str
    metric: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        """The last part of the address."""
        return self.url.rpartition("/")[2]


_TORCHVISION = "https://download.pytorch.org/models/"
_BSD = "BSD-3-Clause"
_COCO = "torchvision, trained on COCO train2017"
_VOC = "torchvision, trained on the images of COCO train2017 that hold the classes of Pascal VOC"
#: With batch norms that are fixed, as they were when the weights were made; stem and first stage stay as they are.
_FROZEN = {"norm": "frozen", "norm_epsilon": 0.0, "trainable_stages": 3}

_META = "https://dl.fbaipublicfiles.com/detr/"
_DETR = "the authors of DETR (Meta), trained on COCO train2017"

#: Name of a model -> its weights.
PUBLISHED: dict[str, Published] = {
    "faster-rcnn": Published(
        f"{_TORCHVISION}fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", "258fb6c6", _BSD, "box AP 37.0", _COCO, _FROZEN
    ),
    "faster-rcnn-v2": Published(
        f"{_TORCHVISION}fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
        "dd69338a",
        _BSD,
        "box AP 46.7",
        _COCO,
        {"trainable_stages": 3},
    ),
    "mask-rcnn": Published(
        f"{_TORCHVISION}maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
        "bf2d0c1e",
        _BSD,
        "box AP 37.9, mask AP 34.6",
        _COCO,
        _FROZEN,
    ),
    "mask-rcnn-v2": Published(
        f"{_TORCHVISION}maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
        "73cbd019",
        _BSD,
        "box AP 47.4, mask AP 41.8",
        _COCO,
        {"trainable_stages": 3},
    ),
    "keypoint-rcnn": Published(
        f"{_TORCHVISION}keypointrcnn_resnet50_fpn_coco-fc266e95.pth",
        "fc266e95",
        _BSD,
        "box AP 54.6, keypoint AP 65.0",
        _COCO,
        _FROZEN,
    ),
    "fcn": Published(f"{_TORCHVISION}fcn_resnet50_coco-1167a1af.pth", "1167a1af", _BSD, "mean IoU 60.5", _VOC),
    "deeplabv3": Published(f"{_TORCHVISION}deeplabv3_resnet50_coco-cd0a2569.pth", "cd0a2569", _BSD, "mean IoU 66.4", _VOC),
    "detr-r50": Published(f"{_META}detr-r50-e632da11.pth", "e632da11", "Apache-2.0", "box AP 42.0", _DETR),
    "detr-r50-dc5": Published(
        f"{_META}detr-r50-dc5-f0fb7ef5.pth", "f0fb7ef5", "Apache-2.0", "box AP 43.3", _DETR, {"dilated": True}
    ),
    "detr-r101": Published(f"{_META}detr-r101-2c7b67e5.pth", "2c7b67e5", "Apache-2.0", "box AP 43.5", _DETR),
    "detr-r101-dc5": Published(
        f"{_META}detr-r101-dc5-a2e86def.pth", "a2e86def", "Apache-2.0", "box AP 44.9", _DETR, {"dilated": True}
    ),
}

#: Published files of other sizes, which are known when they are read; no model has their name.
_FURTHER = (
    Published(f"{_TORCHVISION}fcn_resnet101_coco-7ecb50ca.pth", "7ecb50ca", _BSD, "mean IoU 63.7", _VOC),
    Published(f"{_TORCHVISION}deeplabv3_resnet101_coco-586e9e4e.pth", "586e9e4e", _BSD, "mean IoU 67.4", _VOC),
)


def cache_folder() -> Path:
    """Where fetched weights are kept: `checkpoints` in the folder of `torch.hub` (TORCH_HOME, else XDG_CACHE_HOME/torch)."""
    return Path(resolve("torch.hub", purpose="find weights that were fetched").get_dir()) / "checkpoints"


def known_file(path: str | Path) -> Published | None:
    """The entry whose digest a file has, whatever it is called; None if it is not one of them."""
    digest = sha256(path)
    return next((item for item in (*PUBLISHED.values(), *_FURTHER) if digest.startswith(item.digest)), None)


def fetch(item: Published, folder: str | Path | None = None) -> Path:
    """The file of `item` in `folder` (by default `cache_folder`), fetched if it is not there.

    Raises:
        CheckpointError: no network, the server refuses, or the content is not what was published. No half file is left.
        OptionError: the folder cannot be written.
    """
    path = Path(folder or cache_folder()) / item.file_name
    if path.is_file():
        if not sha256(path).startswith(item.digest):
            raise CheckpointError(
                f"this file should have a SHA-256 that begins with {item.digest}, but does not; delete it and ask again",
                where=path,
            )
        return path
    if not item.url.startswith(("https://", "http://")):
        raise OptionError(f"weights are fetched by http or https, not from {item.url}")
    with atomic_path(path) as temporary:
        found = _download(item.url, temporary)
        if not found.startswith(item.digest):
            raise CheckpointError(
                f"what came from {item.url} has the SHA-256 {found}, it should begin with {item.digest}; nothing was kept. "
                "Try again, and if it repeats, ask who runs your network",
                where=path,
            )
    return path


def _download(url: str, path: Path) -> str:
    """Write what `url` gives to `path`; returns its SHA-256.

    Raises:
        CheckpointError: it cannot be had whole.
    """
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE) as answer, open(path, "wb") as file:
            expected = answer.headers.get("Content-Length")
            while chunk := answer.read(_CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
            if expected is not None and file.tell() != int(expected):
                raise CheckpointError(f"{url} ended after {file.tell()} of {expected} bytes; try again", where=path.parent)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise CheckpointError(
            f"cannot fetch {url} ({reason}); without network, fetch it elsewhere and put it into {path.parent}", where=path.parent
        ) from error
    return digest.hexdigest()
