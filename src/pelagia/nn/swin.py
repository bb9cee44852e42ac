"""Swin Transformer as a backbone (Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
ICCV 2021, arXiv:2103.14030).

Attention runs inside windows of w x w cells; every second block shifts the windows by w // 2, so that neighbours meet. Tensors
have the names of timm's network, whose ImageNet weights (MIT) `load_pretrained` fetches. timm's network shifts before it pads,
that of detectors pads before it shifts; on most sizes of images the two differ, hence this file (`docs/decisions/005`).
"""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from pelagia.errors import OptionError

__all__ = ["SWINS", "Swin"]

#: timm's name -> channels of the first stage, blocks per stage, side of a window.
SWINS: dict[str, tuple[int, tuple[int, ...], int]] = {
    "swin_tiny_patch4_window7_224": (96, (2, 2, 6, 2), 7),
    "swin_small_patch4_window7_224": (96, (2, 2, 18, 2), 7),
    "swin_base_patch4_window7_224": (128, (2, 2, 18, 2), 7),
    "swin_base_patch4_window12_384": (128, (2, 2, 18, 2), 12),
    "swin_large_patch4_window7_224": (192, (2, 2, 18, 2), 7),
    "swin_large_patch4_window12_384": (192, (2, 2, 18, 2), 12),
}

_PATCH = 4  # pixels per side of a cell of the first stage
_HEAD = 32  # channels per head
_GROWTH = 4  # hidden channels of a block's feed-forward part, in channels of the block
#: Added to the logits of cells that only the shift made neighbours; the authors' number, which leaves e^-100 of attention.
_APART = -100.0


class Swin(nn.Module):
    """Images [B, 3, H, W] -> four normalised maps [B, C 2^i, H / 2^(i + 2), W / 2^(i + 2)], sides rounded up.

    Args:
        name: of the network in timm, which says where pretrained weights come from and the sizes that are not given.
        width: channels C of the first stage, a multiple of 32; 0 for those of `name`.
        depths: blocks of each stage; empty for those of `name`.
        drop_path: chance that the last block is left out of a training step for an image; it grows linearly from 0 at the first.

    Attributes:
        channels: of the maps.
        strides: of the maps.

    Raises:
        OptionError: an unknown name, or a size that cannot be used.
    """

    def __init__(self, name: str, width: int = 0, depths: tuple[int, ...] = (), *, drop_path: float = 0.0) -> None:
        super().__init__()
        base = name.partition(".")[0]
        if base not in SWINS:
            raise OptionError(f"no Swin Transformer is called {name!r}; known are {', '.join(SWINS)}")
        self.name = name
        named_width, named_depths, window = SWINS[base]
        width, depths = width or named_width, depths or named_depths
        if width % _HEAD or len(depths) != 4 or min(depths) < 1:
            raise OptionError(f"a Swin needs a width that is a multiple of {_HEAD} and four depths, got {width} and {depths}")
        self.channels = tuple(width * 2**stage for stage in range(4))
        self.strides = tuple(_PATCH * 2**stage for stage in range(4))
        self.patch_embed = _PatchEmbed(width)
        chances = torch.split(torch.linspace(0, drop_path, sum(depths), device="cpu"), list(depths))
        self.layers = nn.ModuleList(
            _Stage(self.channels[max(stage - 1, 0)], self.channels[stage], chance.tolist(), window, merge=stage > 0)
            for stage, chance in enumerate(chances)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in self.channels)
        self.apply(_initialise)

    def load_pretrained(self) -> str:
        """Fetch the ImageNet weights through timm (network or its cache); returns the licence that timm states.

        Raises:
            OptionError: the network has other sizes than the published one.
        """
        fetched = timm.create_model(self.name, pretrained=True, num_classes=0)
        weights = {name: value for name, value in fetched.state_dict().items() if name in self.state_dict()}
        if any(value.shape != self.state_dict()[name].shape for name, value in weights.items()):
            raise OptionError(f"timm:{self.name} has other sizes than this network; leave width and depths as published")
        self.load_state_dict(weights, strict=False)  # classifiers have no norm after a stage
        return str((getattr(fetched, "pretrained_cfg", None) or {}).get("license") or "unknown")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.patch_embed(images)  # [B, H, W, C]
        maps = []
        for stage, norm in zip(self.layers, self.norms, strict=True):
            x = stage(x)
            maps.append(norm(x).permute(0, 3, 1, 2).contiguous())
        return tuple(maps)


class _PatchEmbed(nn.Module):
    """Patches of 4 x 4 pixels -> vectors, [B, 3, H, W] -> [B, ceil(H / 4), ceil(W / 4), C]; missing pixels are 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, _PATCH, _PATCH)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        images = F.pad(images, (0, -images.shape[3] % _PATCH, 0, -images.shape[2] % _PATCH))
        out: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))
        return out


class _Merge(nn.Module):
    """Four neighbours -> one cell of twice the channels, [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), 2 C]."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = torch.cat((x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]), dim=3)
        out: Tensor = self.reduction(self.norm(x))
        return out


class _Stage(nn.Module):
    """A merging of cells (but in the first stage), then blocks, every second one with shifted windows."""

    def __init__(self, channels: int, out: int, drop_path: list[float], window: int, *, merge: bool) -> None:
        super().__init__()
        self.window = window
        self.downsample: nn.Module = _Merge(channels, out) if merge else nn.Identity()
        self.blocks = nn.ModuleList(
            _Block(out, window, window // 2 if index % 2 else 0, chance) for index, chance in enumerate(drop_path)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        apart = _apart(x.shape[1], x.shape[2], self.window, x) if len(self.blocks) > 1 else None
        for block in self.blocks:
            x = block(x, apart)
        return x


class _Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); [B, H, W, C] -> the same shape."""

    def __init__(self, channels: int, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = _WindowAttention(channels, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = _FeedForward(channels)
        self.drop = StochasticDepth(drop_path, "row") if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, apart: Tensor | None) -> Tensor:
        x = x + self.drop(self._attend(self.norm1(x), apart))
        out: Tensor = x + self.drop(self.mlp(self.norm2(x)))
        return out

    def _attend(self, x: Tensor, apart: Tensor | None) -> Tensor:
        batch, height, width, _ = x.shape
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        rows, columns = x.shape[1], x.shape[2]
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = self.attn(_cut(x, self.window), apart if self.shift else None)
        x = _join(x, batch, rows, columns, self.window)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), (1, 2))
        return x[:, :height, :width]


class _WindowAttention(nn.Module):
    """softmax(q k^T / sqrt(d) + b) v within windows [B n, w w, C]; the bias b depends on head and relative position (eq. 4)."""

    index: Tensor

    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        self.heads = channels // _HEAD
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, self.heads))
        self.register_buffer("index", _relative(window), persistent=False)

    def forward(self, x: Tensor, apart: Tensor | None) -> Tensor:
        cells, channels = x.shape[1:]
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, _HEAD)).permute(2, 0, 3, 1, 4).unbind(0)  # [B n, h, w w, d]
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)  # [h, w w, w w]
        logits = (q * _HEAD**-0.5) @ k.transpose(2, 3)
        if apart is None:
            logits = logits + bias
        else:
            windows = apart.shape[0]
            logits = (logits.unflatten(0, (-1, windows)) + (bias + apart[:, None])).flatten(0, 1)
        mixed = logits.softmax(dim=3) @ v
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(-1, cells, channels))
        return out


class _FeedForward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, _GROWTH * channels)
        self.fc2 = nn.Linear(_GROWTH * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


def _cut(x: Tensor, window: int) -> Tensor:
    """[B, H, W, C] -> [B n, w w, C], windows row by row."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def _join(x: Tensor, batch: int, height: int, width: int, window: int) -> Tensor:
    """What `_cut` cut."""
    x = x.view(batch, height // window, width // window, window, window, x.shape[2])
    return x.transpose(2, 3).reshape(batch, height, width, x.shape[5])


def _relative(window: int) -> Tensor:
    """[w w, w w] int64, row in the table of relative positions (dy, dx) of two cells of a window."""
    place = torch.arange(window, device="cpu")  # not on the meta device, on which checkpoints are built: it is in no file
    y, x = (axis.flatten() for axis in torch.meshgrid(place, place, indexing="ij"))
    down, right = y[:, None] - y[None, :], x[:, None] - x[None, :]
    return (down + window - 1) * (2 * window - 1) + right + window - 1


def _apart(height: int, width: int, window: int, like: Tensor) -> Tensor:
    """[n, w w, w w]: 0 for cells that lie together in the image too, `_APART` for those that only the shift joined (fig. 4)."""
    regions = []
    for side in (height, width):
        side += -side % window
        place = torch.arange(side, device=like.device)
        regions.append((place >= side - window).to(like.dtype) + (place >= side - window // 2).to(like.dtype))
    region = 3 * regions[0][:, None] + regions[1][None, :]
    cells = _cut(region[None, :, :, None], window)[..., 0]  # [n, w w]
    return (cells[:, :, None] != cells[:, None, :]).to(like.dtype) * _APART


def _initialise(module: nn.Module) -> None:
    """The authors' first weights: normal of deviation 0.02, cut at two deviations, biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, _WindowAttention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
