"""Networks of the timm collection as backbones (Wightman, https://github.com/huggingface/pytorch-image-models, Apache-2.0)."""

from __future__ import annotations

import warnings

import timm
from torch import Tensor, nn

from pelagia.errors import OptionError

__all__ = ["TimmBackbone"]


class TimmBackbone(nn.Module):
    """A timm network cut at strides 8, 16 and 32: images [B, 3, H, W] -> P3, P4, P5.

    Built without pretrained weights, so that building never asks the network; `load_pretrained` fetches them.

    Raises:
        OptionError: timm does not know the name, or the network has no feature maps of these strides.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.network = _build(name, pretrained=False)
        self.channels: tuple[int, int, int] = _levels(self.network, name)

    def load_pretrained(self) -> str:
        """Fetch the pretrained weights through timm (network or its cache); returns the licence that timm states."""
        self.network.load_state_dict(_build(self.name, pretrained=True).state_dict())
        config = getattr(self.network, "pretrained_cfg", None) or {}
        return str(config.get("license") or "unknown")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p3, p4, p5 = self.network(images)
        return p3, p4, p5


def _build(name: str, *, pretrained: bool) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # timm warns of renamed models; the name still resolves
            info = timm.create_model(name, features_only=True, pretrained=False).feature_info
            wanted = [info.reduction().index(stride) for stride in (8, 16, 32)]
            network: nn.Module = timm.create_model(name, features_only=True, pretrained=pretrained, out_indices=wanted)
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise OptionError(
            f"timm:{name} cannot be a backbone ({error}); name a network with feature maps at strides 8, 16 and 32, "
            "such as timm:resnet50 or timm:convnext_tiny"
        ) from error
    return network


def _levels(network: nn.Module, name: str) -> tuple[int, int, int]:
    info = network.feature_info
    channels = [int(count) for count in info.channels()]  # type: ignore[operator, union-attr]
    if len(channels) != 3:
        raise OptionError(f"timm:{name} gives {len(channels)} feature maps instead of three")
    return channels[0], channels[1], channels[2]
