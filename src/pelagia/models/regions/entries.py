"""The models that propose regions, then classify them, as the registry lists them."""

from __future__ import annotations

from typing import Any

from pelagia.models.registry import Entry, register

__all__: list[str] = []

_WEIGHTS = {"weights": "files of torchvision", "weights_licence": "BSD-3-Clause"}
#: torchvision's second versions: norms in pyramid and heads, a deeper proposal network, a head of convolutions.
_V2: dict[str, Any] = {"rpn_convs": 2, "box_convs": 4, "norm_heads": True}
_TINY: dict[str, Any] = {
    "backbone": "timm:test_efficientnet",
    "channels": 16,
    "hidden": 32,
    "anchor_sizes": (8.0, 16.0, 32.0, 64.0, 128.0),
    "rpn_before": 60,
    "rpn_after": 40,
    "rpn_before_train": 120,
    "rpn_after_train": 80,
    "rpn_samples": 256,
    "roi_samples": 64,
    "detections": 20,
}
_FASTER: dict[str, Any] = {
    "builder": "pelagia.models.regions.faster_rcnn:FasterRCNN",
    "options": "pelagia.models.regions.faster_rcnn:Options",
    "tasks": ("detect",),
    "input_size": {"detect": 800},
    **_WEIGHTS,
    "exports": "not for the web",
}
_MASK: dict[str, Any] = {
    "builder": "pelagia.models.regions.mask_rcnn:MaskRCNN",
    "options": "pelagia.models.regions.mask_rcnn:Options",
    "tasks": ("instance",),
    "title": "Mask R-CNN",
    "authors": "He, Gkioxari, Dollár and Girshick",
    "year": 2017,
    "url": "https://arxiv.org/abs/1703.06870",
    "input_size": {"instance": 800},
    **_WEIGHTS,
    "exports": "not for the web",
}
_BENCHMARKING: dict[str, Any] = {
    "title": "Benchmarking Detection Transfer Learning with Vision Transformers",
    "authors": "Li, Xie, Chen, Dollár, He and Girshick",
    "year": 2021,
    "url": "https://arxiv.org/abs/2111.11429",
}

_KEYPOINTS: dict[str, Any] = {
    "builder": "pelagia.models.regions.keypoint_rcnn:KeypointRCNN",
    "options": "pelagia.models.regions.keypoint_rcnn:Options",
    "tasks": ("keypoints",),
    "input_size": {"keypoints": 800},
}

# GFLOPs at 800 x 800 pixels with 1000 proposals and 100 detections, parameters with 80 classes (and 17 keypoints).
register(
    Entry(
        name="faster-rcnn",
        title="Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks",
        authors="Ren, He, Girshick and Sun",
        year=2016,
        url="https://arxiv.org/abs/1506.01497",
        tiny=_TINY,
        parameters={"detect": 41_757_156},
        gflops={"detect": 268.7},
        **_FASTER,
    ),
    Entry(
        name="faster-rcnn-v2",
        defaults=_V2,
        tiny=_V2 | _TINY,
        parameters={"detect": 43_661_028},
        gflops={"detect": 560.6},
        **_FASTER,
        **_BENCHMARKING,
    ),
    Entry(
        name="mask-rcnn",
        tiny=_TINY | {"mask_channels": 16, "mask_convs": 2},
        parameters={"instance": 44_400_693},
        gflops={"instance": 374.7},
        **_MASK,
    ),
    Entry(
        name="mask-rcnn-v2",
        defaults=_V2,
        tiny=_V2 | _TINY | {"mask_channels": 16, "mask_convs": 2},
        parameters={"instance": 46_305_589},
        gflops={"instance": 666.7},
        **(_MASK | _BENCHMARKING),
    ),
    Entry(
        name="keypoint-rcnn",
        tiny=_TINY | {"keypoint_channels": 16, "keypoint_convs": 2},
        parameters={"keypoints": 59_595_253},
        gflops={"keypoints": 967.7},
        **(_MASK | _KEYPOINTS),
    ),
)
