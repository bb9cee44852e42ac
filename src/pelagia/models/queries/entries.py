"""The models that ask an image with attention, as the registry lists them."""

from __future__ import annotations

from typing import Any

from pelagia.core.types import Task
from pelagia.models.registry import Entry, register

__all__: list[str] = []

# name -> what differs from the defaults, parameters, GFLOPs at 800 x 800 pixels
_DETR: dict[str, tuple[dict[str, Any], int, float]] = {
    "detr-r50": ({}, 41_521_941, 120.3),
    "detr-r50-dc5": ({"dilated": True}, 41_521_941, 246.0),
    "detr-r101": ({"backbone": "timm:resnet101"}, 60_461_845, 215.0),
    "detr-r101-dc5": ({"backbone": "timm:resnet101", "dilated": True}, 60_461_845, 340.7),
}

# size -> backbone and queries of the published models; parameters; GFLOPs at 640 pixels without deformable sampling
_MASK2FORMER: dict[str, tuple[dict[str, Any], int, float]] = {
    "r50": ({"backbone": "timm:resnet50"}, 44_023_377, 205.5),
    "swin-t": ({"backbone": "timm:swin_tiny_patch4_window7_224"}, 47_421_643, 210.3),
    "swin-s": ({"backbone": "timm:swin_small_patch4_window7_224"}, 68_739_547, 282.1),
    "swin-b": ({"backbone": "timm:swin_base_patch4_window12_384"}, 106_904_201, 432.6),
    "swin-l": ({"backbone": "timm:swin_large_patch4_window12_384", "queries": 200}, 215_521_989, 809.9),
}
_MASK2FORMER_TASKS: tuple[Task, ...] = ("panoptic", "instance", "semantic")
_MASK2FORMER_WEIGHTS = "files of Hugging Face transformers"
_MASK2FORMER_TINY = {"width": 32, "heads": 2, "pixel_layers": 1, "pixel_hidden": 32, "hidden": 32, "layers": 3, "queries": 12}

register(
    *(
        Entry(
            name=name,
            builder="pelagia.models.queries.detr:DETR",
            options="pelagia.models.queries.detr:Options",
            tasks=("detect",),
            title="End-to-End Object Detection with Transformers",
            authors="Carion et al.",
            year=2020,
            url="https://arxiv.org/abs/2005.12872",
            defaults=defaults,
            training={"optimizer": "adamw", "lr": 1e-4, "weight_decay": 1e-4, "backbone_lr": 0.1, "clip_norm": 0.1},
            tiny={
                "width": 32,
                "heads": 4,
                "encoder_layers": 1,
                "decoder_layers": 2,
                "hidden": 64,
                "queries": 10,
                "backbone": "timm:test_resnet",
                "norm": "batch",
            },
            parameters={"detect": parameters},
            gflops={"detect": gflops},
            input_size={"detect": 800},
            weights="files of its authors, and of Hugging Face transformers such as facebook/detr-resnet-50",
            weights_licence="Apache-2.0",
        )
        for name, (defaults, parameters, gflops) in _DETR.items()
    ),
    *(
        Entry(
            name=f"mask2former-{size}",
            builder="pelagia.models.queries.mask2former:Mask2Former",
            options="pelagia.models.queries.mask2former:Options",
            tasks=_MASK2FORMER_TASKS,
            title="Masked-attention Mask Transformer for Universal Image Segmentation",
            authors="Cheng et al.",
            year=2022,
            url="https://arxiv.org/abs/2112.01527",
            defaults=defaults,
            training={"optimizer": "adamw", "lr": 1e-4, "weight_decay": 0.05, "backbone_lr": 0.1, "clip_norm": 0.01},
            tiny={
                **_MASK2FORMER_TINY,
                "points": 256,
                "drop_path": 0.0,
                **({"backbone": "timm:test_resnet"} if size == "r50" else {"swin_width": 32, "swin_depths": (2, 1, 1, 1)}),
            },
            parameters=dict.fromkeys(_MASK2FORMER_TASKS, parameters),
            gflops=dict.fromkeys(_MASK2FORMER_TASKS, gflops),
            input_size=dict.fromkeys(_MASK2FORMER_TASKS, 640),
            weights=_MASK2FORMER_WEIGHTS + ("" if size == "r50" else ", such as facebook/mask2former-swin-tiny-coco-instance"),
            weights_licence="" if size == "r50" else "other",
        )
        for size, (defaults, parameters, gflops) in _MASK2FORMER.items()
    ),
)
