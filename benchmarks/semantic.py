"""Claim: U-Net over resnet18 here segments at least as well as that of segmentation_models_pytorch, in no more time.

    python benchmarks/semantic.py --data ../shared/data/em-membranes [--seeds 0 1 2] [--steps 300] [--folds 0 1 2 3 4 5]

Both networks train from scratch on all but four images (by default the last four), on the very same windows of 256 pixels
(drawn by Pelagia's augmentation), for the same number of steps of 8, with AdamW, the same rates and the same terms of loss.
Pelagia trains by `pelagia.train`, whose time includes its run folder and its one validation; the peer in a plain loop over
the batches alone. The images held out are answered at full size and scored by one function: the mean IoU of membrane and cell
over all their pixels. The peer is installed by `benchmarks/requirements.txt`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray

import pelagia
from pelagia.core.card import Normalisation
from pelagia.core.types import SemanticMap
from pelagia.data.augment import AugmentOptions
from pelagia.data.dataset import Dataset
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_image
from pelagia.nn.intensities import to_network
from pelagia.train.data import CachedDataset, ImageCache, Maker, Plan
from pelagia.train.loop import train
from pelagia.train.optim import Schedule, choose_settings, clip_gradients
from pelagia.train.options import TrainOptions

__all__: list[str] = []

HELD_OUT = 4
SIDE = 256
#: Windows at full resolution, flipped and turned; nothing else, so that the comparison is one of networks.
VARIATION: dict[str, float] = {
    **dict.fromkeys(("scale", "translate", "hsv_h", "hsv_s", "hsv_v", "blur", "noise", "mosaic"), 0.0),
    "quarter_turn": 0.5,
    "crop": 1.0,
}


def mean_iou(data: Dataset, answer: Callable[[NDArray[Any]], NDArray[Any]]) -> tuple[float, list[float]]:
    """The mean over classes of intersection over union, counted over all pixels of all images; and that of each class."""
    count = len(data.categories)
    pairs = np.zeros((count, count), dtype=np.int64)
    for index in range(len(data)):
        truth = data.semantic(index).labels.astype(np.int64)
        found = answer(data.image(index)).astype(np.int64)
        pairs += np.bincount((truth * count + found).ravel(), minlength=count**2).reshape(count, count)
    each = np.diag(pairs) / (pairs.sum(axis=0) + pairs.sum(axis=1) - np.diag(pairs))
    return float(each.mean()), each.tolist()


def fold_of(data: Dataset, number: int | None) -> tuple[Dataset, Dataset]:
    """What is learnt and what is held out: `HELD_OUT` images in a row, the `number`-th such row, or the last for None."""
    first = len(data) - HELD_OUT if number is None else number * HELD_OUT
    held = np.arange(first, min(first + HELD_OUT, len(data)))
    return data.subset(np.setdiff1d(np.arange(len(data)), held)), data.subset(held)


def options_of(args: argparse.Namespace, seed: int, images: int) -> TrainOptions:
    """The options of both runs."""
    epochs = -(-args.steps // Plan(images, args.batch, seed).steps_per_epoch)
    return TrainOptions(
        model="unet-timm",
        task="semantic",
        epochs=epochs,
        batch=args.batch,
        imgsz=SIDE,
        optimizer="adamw",
        augment=AugmentOptions(**VARIATION),
        close_mosaic=0,
        val_every=epochs,
        save_every=epochs,
        patience=0,
        seed=seed,
        model_options=(f"loss={args.loss}",),
        device=args.device,
    )


def run_pelagia(options: TrainOptions, data: Dataset, held: Dataset, folder: Path) -> dict[str, Any]:
    """Train as a user does; the time is that of the whole run."""
    begin = time.perf_counter()
    run = train(replace(options, out=str(folder)), data, held, quiet=True)
    seconds = time.perf_counter() - begin
    runtime = pelagia.load(run.best).runtime

    def answer(image: NDArray[Any]) -> NDArray[Any]:
        found = predict_image(runtime, image, PredictOptions(tile=SIDE, tiling="always"))
        assert isinstance(found, SemanticMap)
        return found.labels

    score, each = mean_iou(held, answer)
    return {"miou": score, "each": each, "seconds": seconds}


def run_peer(options: TrainOptions, data: Dataset, held: Dataset, terms: list[str]) -> dict[str, Any]:
    """The peer with its own decoder and first weights, in its usual memory format."""
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    model = smp.Unet("resnet18", encoder_weights=None, classes=len(data.categories)).to(device)
    losses: dict[str, Callable[..., Any]] = {
        "ce": torch.nn.functional.cross_entropy,
        "dice": smp.losses.DiceLoss("multiclass"),
        "focal": smp.losses.FocalLoss("multiclass"),
        "lovasz": smp.losses.LovaszLoss("multiclass"),
    }
    plan = Plan(len(data), options.batch, options.seed)
    steps = options.epochs * plan.steps_per_epoch
    settings, schedule = choose_settings(options, options.batch, steps), Schedule.of(options, plan.steps_per_epoch)
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    begin = time.perf_counter()
    cached = CachedDataset.wrap(data, ImageCache(2**30))
    maker = Maker(cached, options.augment, (SIDE, SIDE), options.seed, options.epochs)
    model.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * schedule.factor(step)
        batch = maker.batch(plan.step(step))
        assert batch.targets.semantic is not None
        truth = batch.targets.semantic.to(device)
        logits = model(to_network(batch.images, Normalisation(), device).contiguous())
        loss = torch.stack([losses[name](logits, truth) for name in terms]).sum()
        loss.backward()
        clip_gradients(model.parameters(), options.clip_norm)
        optimiser.step()
        optimiser.zero_grad()
    seconds = time.perf_counter() - begin
    model.eval()

    def answer(image: NDArray[Any]) -> NDArray[Any]:
        stored = torch.from_numpy(np.repeat(image, 3 // image.shape[2], axis=2)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            found: NDArray[Any] = model(to_network(stored, Normalisation(), device)).argmax(1)[0].cpu().numpy()
        return found

    score, each = mean_iou(held, answer)
    return {"miou": score, "each": each, "seconds": seconds}


def main() -> None:
    """Train both for every seed, print each and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images and masks of two classes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", type=int, nargs="+", default=[None], help="which four images are held out, counted from 0")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--loss", default="ce+dice", help="terms of the loss of both, such as ce")
    parser.add_argument("--out", type=Path, help="folder for the runs and results.json; temporary if not given")
    args = parser.parse_args()
    data = pelagia.open_dataset(args.data, task="semantic")
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        results: list[dict[str, Any]] = []
        for fold, seed in itertools.product(args.folds, args.seeds):
            learnt, held = fold_of(data, fold)
            options = options_of(args, seed, len(learnt))
            ours = run_pelagia(options, learnt, held, out / f"pelagia-{seed}{'' if fold is None else f'-fold-{fold}'}")
            theirs = run_peer(options, learnt, held, args.loss.split("+"))
            results.append({"fold": fold, "seed": seed, "pelagia": ours, "smp": theirs})
            held_out = "last" if fold is None else fold
            for name, row in (("pelagia", ours), ("smp", theirs)):
                classes = "  ".join(f"{c} {value:.4f}" for c, value in zip(data.class_names, row["each"], strict=True))
                print(
                    f"fold {held_out}  seed {seed}  {name:8s} mean IoU {row['miou']:.4f}  ({classes})  {row['seconds']:.0f} s",
                    flush=True,
                )
            (out / "results.json").write_text(json.dumps(results, indent=2))
    table = {name: np.array([[row[name]["miou"], row[name]["seconds"]] for row in results]) for name in ("pelagia", "smp")}
    for name, values in table.items():
        spread = f"{values[:, 0].min():.4f} to {values[:, 0].max():.4f}"
        print(f"{name:8s} mean IoU {values[:, 0].mean():.4f} ({spread}), {values[:, 1].mean():.0f} s")
    ratio = table["pelagia"].mean(axis=0) / table["smp"].mean(axis=0)
    print(f"pelagia / smp: mean IoU {ratio[0]:.4f}, time {ratio[1]:.3f}")


if __name__ == "__main__":
    main()
