"""The models that answer at every cell of a grid, as the registry lists them."""

from __future__ import annotations

from typing import Any

from pelagia.models.registry import Entry, register

__all__: list[str] = []

# size -> depth, width, most channels, nested blocks everywhere; parameters (keypoints: 17 points); GFLOPs at 640 (oriented: 1024)
# pixels, attention included
_YOLO11: dict[str, tuple[dict[str, Any], dict[str, int], dict[str, float]]] = {
    "n": (
        {"depth": 0.5, "width": 0.25, "most_channels": 1024, "nested": False},
        {"detect": 2_624_080, "oriented": 2_695_747, "instance": 2_876_848, "keypoints": 2_908_507},
        {"detect": 6.5, "oriented": 17.6, "instance": 9.8, "keypoints": 7.6},
    ),
    "s": (
        {"depth": 0.5, "width": 0.5, "most_channels": 1024, "nested": False},
        {"detect": 9_458_752, "oriented": 9_744_931, "instance": 10_113_248, "keypoints": 9_948_811},
        {"detect": 21.6, "oriented": 58.3, "instance": 33.1, "keypoints": 23.3},
    ),
    "m": (
        {"depth": 0.5, "width": 1.0, "most_channels": 512, "nested": True},
        {"detect": 20_114_688, "oriented": 20_963_523, "instance": 22_420_896, "keypoints": 20_973_273},
        {"detect": 68.1, "oriented": 184.3, "instance": 113.3, "keypoints": 71.8},
    ),
    "l": (
        {"depth": 1.0, "width": 1.0, "most_channels": 512, "nested": True},
        {"detect": 25_372_160, "oriented": 26_220_995, "instance": 27_678_368, "keypoints": 26_230_745},
        {"detect": 87.2, "oriented": 233.5, "instance": 132.4, "keypoints": 90.9},
    ),
    "x": (
        {"depth": 1.0, "width": 1.5, "most_channels": 512, "nested": True},
        {"detect": 56_966_176, "oriented": 58_875_331, "instance": 62_142_656, "keypoints": 58_889_881},
        {"detect": 195.3, "oriented": 522.6, "instance": 296.7, "keypoints": 203.6},
    ),
}

register(
    *(
        Entry(
            name=f"yolo11{size}",
            builder="pelagia.models.grids.yolo11:YOLO11",
            options="pelagia.models.grids.yolo11:Options",
            tasks=("detect", "oriented", "instance", "keypoints"),
            title="YOLO11 (no paper; overview: arXiv:2410.17725)",
            authors="Jocher and Qiu",
            year=2024,
            url="https://docs.ultralytics.com/models/yolo11/",
            defaults=defaults,
            tiny={"depth": 0.5, "width": 0.125, "most_channels": 256, "nested": defaults["nested"]},
            parameters=parameters,
            gflops=gflops,
            input_size={"detect": 640, "oriented": 1024, "instance": 640, "keypoints": 640},
            weights="files of Ultralytics, such as yolo11n.pt",
            weights_licence="AGPL-3.0",
        )
        for size, (defaults, parameters, gflops) in _YOLO11.items()
    )
)
