"""`pelagia doctor`, `pelagia convert` and `pelagia split`: labelled images without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from pelagia.cli.common import Json, print_json, say
from pelagia.cli.datasets import NO_FLAGS, DataFlags
from pelagia.core.types import Task
from pelagia.data.convert import convert as convert_dataset
from pelagia.data.doctor import examine
from pelagia.data.formats.writing import WriteOptions
from pelagia.data.split import split as split_dataset
from pelagia.data.split import split_table, write_splits
from pelagia.errors import OptionError
from pelagia.infer.progress import bar

__all__ = ["convert", "doctor", "split"]


def doctor(
    data: Path,
    /,
    *,
    imgsz: int = 640,
    read: bool = True,
    flags: Annotated[DataFlags, Parameter(name="*")] = NO_FLAGS,
    json: Json = False,
) -> int:
    """Examine labelled images and report what is wrong.

    Missing, broken, equal and unlabelled images, the same image in two splits, impossible boxes, class balance, sizes of objects
    at the input; class maps, panoptic images, outlines and keypoints that are empty, off, or stand for nothing. The exit code is
    1 if there are errors.

    Args:
        data: An annotation file or a folder.
        imgsz: Side in pixels of the network's input that objects are measured at.
        read: Read the images and label images; without it only what the annotation files say is examined.
    """
    dataset = flags.open(data)
    with bar("examining", len(dataset) if read else None, show=False if json else None) as advance:
        report = examine(dataset, imgsz, images=read, progress=lambda done, total: advance(1, ""))
    if json:
        print_json(report.to_dict())
    else:
        print("\n".join(report.lines()))
    return 1 if report.has_errors else 0


def convert(
    data: Path,
    out: Path,
    /,
    *,
    to: Literal["coco", "yolo", "voc", "dota", "panoptic", "labels"],
    copy: Literal["copy", "link", "none"] = "copy",
    write_task: Task | None = None,
    write_angle: str | None = None,
    voc_offset: Literal[0, 1] = 1,
    flags: Annotated[DataFlags, Parameter(name="*")] = NO_FLAGS,
    json: Json = False,
) -> int:
    """Write labels in another format, and say what it cannot hold.

    Args:
        data: An annotation file or a folder.
        out: Folder to write; for COCO a .json file also does.
        to: Format to write.
        copy: Copy the images, make symbolic links, or write labels only.
        write_task: Which labels to write, where the format holds one kind; by default the richest that there are.
        write_angle: For COCO: write oriented boxes as 5 numbers with this angle, rad-cw or deg-ccw; else as corner polygons.
        voc_offset: First pixel of Pascal VOC; 1 is its standard.
    """
    dataset = flags.open(data)
    options = WriteOptions(images=copy, angle=write_angle, voc_offset=voc_offset)
    report = convert_dataset(dataset, out, to, task=write_task, options=options)
    if json:
        read = [{"severity": f.severity, "code": f.code, "message": f.message, "where": f.where} for f in dataset.findings]
        print_json({**report.to_dict(), "read": read})
        return 0
    for finding in (*dataset.findings, *report.losses):
        print(finding)
    print(f"{report.images} images, {report.objects} objects written as {report.format} ({report.task}) to {report.out}")
    return 0


def split(
    data: Path,
    /,
    *,
    fractions: Annotated[str, Parameter(name=["--fractions", "--by"])] = "train=0.8,val=0.2",
    seed: int = 0,
    stratify: bool = True,
    group: str | None = None,
    copies: bool = True,
    out: Path = Path("splits.json"),
    flags: Annotated[DataFlags, Parameter(name="*")] = NO_FLAGS,
    json: Json = False,
) -> int:
    """Divide images into training, validation and test, so that near copies stay together.

    `pelagia train --splits` and `pelagia evaluate --splits` read the file.

    Args:
        data: An annotation file or a folder.
        fractions: Names and shares, such as train=0.7,val=0.2,test=0.1.
        seed: The same seed gives the same splits.
        stratify: Give each split its share of every class.
        group: A regular expression on file names; images whose first group is equal stay together, such as '^(cruise[0-9]+)_'.
        copies: Keep equal and nearly equal images together; reads all images.
        out: A .json file of image names, or a folder for train.txt, val.txt and so on.
    """
    dataset = flags.open(data)
    shares = _fractions(fractions)
    with bar("comparing images", len(dataset) if copies else None, show=False if json else None) as advance:
        splits = split_dataset(dataset, shares, seed, stratify, group, copies=copies, progress=lambda done, total: advance(1, ""))
    written = write_splits(dataset, splits, out)
    if json:
        names = {name: [dataset.names[index] for index in chosen.tolist()] for name, chosen in splits.items()}
        print_json({"files": [str(path) for path in written], "splits": names})
        return 0
    print("\n".join(split_table(dataset, splits).lines()))
    say(f"written: {', '.join(map(str, written))}")
    return 0


def _fractions(text: str) -> dict[str, float]:
    """`train=0.8,val=0.2` -> shares by name."""
    shares = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        try:
            shares[name.strip()] = float(value)
        except ValueError as error:
            raise OptionError(f"--fractions wants names and shares such as train=0.8,val=0.2, got {text!r}") from error
        if not equals:
            raise OptionError(f"--fractions wants names and shares such as train=0.8,val=0.2, got {text!r}")
    return shares
