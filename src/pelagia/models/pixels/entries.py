"""The models that label every pixel, as the registry lists them."""

from __future__ import annotations

from pelagia.models.registry import Entry, register

__all__: list[str] = []

#: Windows at full resolution: what a pixel is shows in its surroundings at their own scale.
_WINDOWS = {"mosaic": 0.0, "crop": 1.0, "rare": 0.5, "scale": 0.25}

register(
    Entry(
        name="unet",
        builder="pelagia.models.pixels.unet:UNet",
        options="pelagia.models.pixels.unet:Options",
        tasks=("semantic", "instance"),
        title="U-Net: Convolutional Networks for Biomedical Image Segmentation",
        authors="Ronneberger, Fischer and Brox",
        year=2015,
        url="https://arxiv.org/abs/1505.04597",
        # The paper deforms its few training images elastically; 10 pixels is its figure.
        training={"imgsz": 572, "batch": 4, "augment": {**_WINDOWS, "elastic_px": 10.0}},
        tiny={"depth": 2, "width": 8, "dropout": 0.0},
        tiny_input=(76, 108),
        classes=2,
        parameters={"semantic": 31_031_810, "instance": 31_031_875},
        gflops={"semantic": 301.6, "instance": 301.6},
        input_size={"semantic": 572, "instance": 572},
    ),
    Entry(
        name="unet-timm",
        builder="pelagia.models.pixels.unet_timm:TimmUNet",
        options="pelagia.models.pixels.unet_timm:Options",
        tasks=("semantic", "instance"),
        title="U-Net: Convolutional Networks for Biomedical Image Segmentation (over an encoder of timm)",
        authors="Ronneberger, Fischer and Brox",
        year=2015,
        url="https://arxiv.org/abs/1505.04597",
        training={"imgsz": 256, "batch": 8, "augment": _WINDOWS},
        tiny={"backbone": "timm:test_efficientnet", "width": 0.25},
        classes=2,
        parameters={"semantic": 14_345_042, "instance": 14_345_187},
        gflops={"semantic": 11.17, "instance": 11.19},
        input_size={"semantic": 256, "instance": 256},
    ),
    Entry(
        name="fcn",
        builder="pelagia.models.pixels.fcn:FCN",
        options="pelagia.models.pixels.fcn:Options",
        tasks=("semantic",),
        title="Fully Convolutional Networks for Semantic Segmentation",
        authors="Long, Shelhamer and Darrell",
        year=2015,
        url="https://arxiv.org/abs/1411.4038",
        training={"imgsz": 512, "batch": 8, "augment": _WINDOWS},
        tiny={"backbone": "timm:test_efficientnet", "dropout": 0.0},
        classes=21,
        parameters={"semantic": 35_322_218},
        gflops={"semantic": 285.5},
        input_size={"semantic": 520},
        weights="files of torchvision",
        weights_licence="BSD-3-Clause",
    ),
    Entry(
        name="deeplabv3",
        builder="pelagia.models.pixels.deeplabv3:DeepLabV3",
        options="pelagia.models.pixels.deeplabv3:Options",
        tasks=("semantic",),
        title="Rethinking Atrous Convolution for Semantic Image Segmentation",
        authors="Chen, Papandreou, Schroff and Adam",
        year=2017,
        url="https://arxiv.org/abs/1706.05587",
        training={"imgsz": 512, "batch": 8, "augment": _WINDOWS},
        tiny={"backbone": "timm:test_efficientnet", "width": 16, "rates": "2,4", "dropout": 0.0},
        classes=21,
        parameters={"semantic": 42_004_074},
        gflops={"semantic": 337.5},
        input_size={"semantic": 520},
        weights="files of torchvision",
        weights_licence="BSD-3-Clause",
    ),
)
