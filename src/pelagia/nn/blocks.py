"""Convolution, batch normalisation and ReLU in the order of the residual and the dense networks."""

from __future__ import annotations

from torch import nn

__all__ = ["conv_norm_relu"]


def conv_norm_relu(channels: int, out: int, kernel: int = 3, *, dilation: int = 1) -> nn.Sequential:
    """ReLU(BN(conv(x))), [B, channels, H, W] -> [B, out, H, W] for odd kernels."""
    padding = kernel // 2 * dilation
    conv = nn.Conv2d(channels, out, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True))
