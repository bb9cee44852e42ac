"""The peer's side of `parity_ultralytics.py`; runs in an environment that has ultralytics.

For each size and task: build the network, give its batch normalisations statistics of real activations and scramble them, save it
as the peer saves, load it again as the peer loads, and write what it answers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from ultralytics import YOLO

__all__: list[str] = []


def scramble(model: torch.nn.Module, images: torch.Tensor) -> None:
    """Random weights whose activations neither vanish nor explode, with scores on both sides of 0.25."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.7, 1.3)
            norm.bias.normal_(0.0, 0.3)
            norm.momentum = None  # plain average
        model.train()
        model(images)
        model.eval()
        for norm in norms:
            norm.momentum = 0.03
            norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.8, 1.3))
            norm.running_mean.add_(torch.randn_like(norm.running_mean) * 0.1 * norm.running_var.sqrt())

        def raw() -> dict[str, torch.Tensor]:
            found = model(images)[1]
            return found.get("one2many", found)  # later releases have two heads

        head = dict(model.named_children())["model"][-1]
        for branch in head.cv2:  # distributions that are not flat
            branch[-1].weight.mul_(4.0)
        scores = raw()["scores"]
        for branch in head.cv3:  # logits of unit variance, at least two hundred cells of each image above the threshold
            branch[-1].weight.div_(scores.std())
            branch[-1].bias.zero_()
        for name in ("mask_coefficient", "kpts"):  # coefficients and keypoints of unit variance
            if name in raw():
                spread = raw()[name].std()
                for branch in head.cv4:
                    branch[-1].weight.div_(spread)
        best = raw()["scores"].amax(dim=1)  # [B, A]
        level = best.sort(dim=1, descending=True).values[:, 200].min()
        for branch in head.cv3:
            branch[-1].bias.fill_(-1.0986 - level)  # logit(0.25)


def main() -> None:
    """Arguments: folder with `images.npy` [B, 3, H, W] float32 in [0, 1], then names of peer configurations."""
    folder = Path(sys.argv[1])
    images = torch.from_numpy(np.load(folder / "images.npy"))
    for name in sys.argv[2:]:
        torch.manual_seed(0)
        peer = YOLO(f"{name}.yaml")
        scramble(peer.model, images)
        peer.save(folder / f"{name}.pt")
        peer = YOLO(folder / f"{name}.pt")
        model = peer.model.float().eval()
        with torch.no_grad():
            decoded, raw = model(images)
        decoded = decoded[0] if isinstance(decoded, tuple) else decoded
        arrays = {key: value.numpy() for key, value in raw.items() if isinstance(value, torch.Tensor)}
        picture = np.ascontiguousarray((images[0].numpy() * 255).round().astype(np.uint8).transpose(1, 2, 0)[..., ::-1])
        found = peer.predict(picture, imgsz=picture.shape[0], conf=0.25, iou=0.7, max_det=30_000, verbose=False)[0]
        box = found.obb if found.boxes is None else found.boxes
        arrays["final"] = box.data.numpy()  # [N, 6] x1 y1 x2 y2 score class; oriented [N, 7] cx cy w h angle score class
        if found.keypoints is not None:
            arrays["final_keypoints"] = found.keypoints.data.numpy()  # [N, K, 3]
        if found.masks is not None:
            # Every pixel doubled: both sides shrink it to the same input, and masks have to be resampled to the original.
            twice = picture.repeat(2, 0).repeat(2, 1)
            found = peer.predict(
                twice, imgsz=picture.shape[0], conf=0.25, iou=0.7, max_det=30_000, retina_masks=True, verbose=False
            )[0]
            arrays["twice"] = found.boxes.data.numpy()
            arrays["masks"] = np.packbits(found.masks.data.numpy() > 0.5, axis=2)  # [N, 2 H, 2 W / 8]
        np.savez(folder / f"{name}.npz", decoded=decoded.numpy(), **arrays)


if __name__ == "__main__":
    main()
