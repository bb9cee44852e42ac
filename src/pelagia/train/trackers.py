"""Where the numbers of a run go besides its own `metrics.jsonl`: TensorBoard, Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from pelagia.core import image as core_image
from pelagia.core.lazy import resolve

__all__ = ["TensorBoard", "Tracker", "WandB", "open_trackers"]


class Tracker(Protocol):
    """What a run tells. Numbers come once an epoch, pictures when they are made."""

    def numbers(self, epoch: int, values: Mapping[str, float]) -> None: ...
    def picture(self, epoch: int, name: str, path: Path) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in `<run>/tensorboard`; look at them with `tensorboard --logdir <run>`."""

    def __init__(self, folder: Path, config: Mapping[str, Any], first_epoch: int) -> None:
        resolve("tensorboard", purpose="log to TensorBoard")
        module = resolve("torch.utils.tensorboard", purpose="log to TensorBoard")
        # Events after the epoch that a resumed run starts from come from the killed run: they are hidden.
        self._writer = module.SummaryWriter(str(folder / "tensorboard"), purge_step=first_epoch + 1 if first_epoch else None)
        if not first_epoch:
            self._writer.add_text("config", "\n".join(f"    {key}: {value}" for key, value in sorted(config.items())))

    def numbers(self, epoch: int, values: Mapping[str, float]) -> None:
        """One point per number, at `epoch`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)

    def picture(self, epoch: int, name: str, path: Path) -> None:
        """The image file at `path`."""
        self._writer.add_image(name, core_image.to_rgb(core_image.read(path)), epoch, dataformats="HWC")

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class WandB:
    """A Weights & Biases run in `<run>/wandb`.

    Nothing leaves the machine unless the environment says `WANDB_MODE=online`; `wandb sync <run>/wandb/offline-run-*` uploads it
    later.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], first_epoch: int) -> None:
        self._module = resolve("wandb", purpose="log to Weights & Biases")
        (folder / "wandb").mkdir(parents=True, exist_ok=True)
        self._run = self._module.init(
            project="pelagia",
            name=folder.name,
            dir=str(folder),
            config=dict(config),
            mode=os.environ.get("WANDB_MODE", "offline"),
        )

    def numbers(self, epoch: int, values: Mapping[str, float]) -> None:
        """One point per number, at `epoch`."""
        self._run.log({**values, "epoch": epoch})

    def picture(self, epoch: int, name: str, path: Path) -> None:
        """The image file at `path`."""
        self._run.log({name: self._module.Image(str(path)), "epoch": epoch})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


_KINDS: dict[str, type[TensorBoard] | type[WandB]] = {"tensorboard": TensorBoard, "wandb": WandB}


def open_trackers(names: Sequence[str], folder: Path, config: Mapping[str, Any], first_epoch: int) -> list[Tracker]:
    """The trackers called `names`, all open or none.

    Raises:
        MissingExtraError: one is not installed.
    """
    opened: list[Tracker] = []
    try:
        for name in dict.fromkeys(names):
            opened.append(_KINDS[name](folder, config, first_epoch))  # noqa: PERF401 (those already open must be closed on failure)
    except BaseException:
        for tracker in opened:
            with suppress(OSError):
                tracker.close()
        raise
    return opened
