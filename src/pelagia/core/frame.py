"""The way back from a network's input to the image that the user gave."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pelagia.core.types import Float

__all__ = ["Frame"]


@dataclass(frozen=True, slots=True)
class Frame:
    """An affine map from network-input pixels to original pixels, and the size of the original.

    Args:
        matrix: [2, 3] float64, (x, y, 1) in network input -> (x, y) in the original, both in continuous pixel coordinates.
        width: of the original image, in pixels.
        height: of the original image, in pixels.

    Frames that this package makes are similarities without rotation (`scale_x`, `scale_y` and a shift), so that axis-aligned
    boxes stay axis-aligned.
    """

    matrix: Float
    width: int
    height: int

    @classmethod
    def identity(cls, width: int, height: int) -> Frame:
        """Network input and original are the same picture."""
        return cls(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), width, height)

    @classmethod
    def letterbox(cls, width: int, height: int, input_width: int, input_height: int, *, enlarge: bool = True) -> Frame:
        """The frame of an image scaled to fit an input, aspect kept, centred to a whole pixel, the rest padded.

        scale = min(input_width / width, input_height / height), at most 1 unless `enlarge`; the left and top margins are
        rounded down, so that an image that need not be scaled is copied and never blurred by half a pixel.
        """
        scale = min(input_width / width, input_height / height)
        if not enlarge:
            scale = min(scale, 1.0)
        # The small number keeps a margin of -1e-14 from becoming -1.
        left, top = (math.floor(margin / 2 + 1e-9) for margin in (input_width - width * scale, input_height - height * scale))
        return cls(np.array([[1 / scale, 0.0, -left / scale], [0.0, 1 / scale, -top / scale]]), width, height)

    @property
    def scale(self) -> tuple[float, float]:
        """Original pixels per input pixel, along x and along y."""
        return float(np.hypot(*self.matrix[:, 0])), float(np.hypot(*self.matrix[:, 1]))

    @property
    def inverse(self) -> Float:
        """[2, 3], original pixels -> network-input pixels."""
        linear = np.linalg.inv(self.matrix[:, :2])
        return np.concatenate([linear, -linear @ self.matrix[:, 2:]], axis=1)

    def points(self, points: Float) -> Float:
        """[..., 2] points of the network input -> the original."""
        return points @ self.matrix[:, :2].T + self.matrix[:, 2]

    def boxes(self, boxes: Float, *, clip: bool = True) -> Float:
        """[N, 4] boxes of the network input -> the original, cut at its border if `clip`."""
        corners = self.points(boxes.reshape(-1, 2, 2)).reshape(-1, 4)
        if clip:
            corners[:, 0::2] = np.clip(corners[:, 0::2], 0, self.width)
            corners[:, 1::2] = np.clip(corners[:, 1::2], 0, self.height)
        return corners

    def oriented(self, oriented: Float) -> Float:
        """[N, 5] oriented boxes of the network input -> the original (equal scale along x and y); never clipped."""
        centres = self.points(oriented[:, :2])
        return np.concatenate([centres, oriented[:, 2:4] * self.scale[0], oriented[:, 4:]], axis=1)
