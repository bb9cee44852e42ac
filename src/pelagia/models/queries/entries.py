"""The models that ask an image with attention, as the registry lists them."""

from __future__ import annotations

from typing import Any

from pelagia.models.registry import Entry, register

__all__: list[str] = []

# name -> what differs from the defaults, parameters, GFLOPs at 800 x 800 pixels
_DETR: dict[str, tuple[dict[str, Any], int, float]] = {
    "detr_r50": ({}, 41_521_941, 120.3),
    "detr_r50_dc5": ({"dilated": True}, 41_521_941, 246.0),
    "detr_r101": ({"backbone": "timm:resnet101"}, 60_461_845, 215.0),
    "detr_r101_dc5": ({"backbone": "timm:resnet101", "dilated": True}, 60_461_845, 340.7),
}

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
            weights_licence="Apache-2.0",
        )
        for name, (defaults, parameters, gflops) in _DETR.items()
    )
)
