"""Prediction of many images into a results folder: it goes on where an earlier run stopped, and can be divided among processes.

An image is finished when its result file is there (`infer.result_files`). A run predicts what is not finished, and what was made
with another model, runtime or options or from an image that has changed since. When all images are finished, the tables are made
from the result files in the order of the images, so they are the same to the byte however often the run was stopped, and
whichever process predicted what.

The promise holds on a CPU, where an image goes through the network alone (`infer.runtimes`); on a GPU the last digit of a number
may depend on the other images of a batch.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any, Self

from pelagia.core.files import remove_leftovers, sha256
from pelagia.core.lazy import installed
from pelagia.core.lock import locked
from pelagia.errors import OptionError
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import FileResult, predict_files
from pelagia.infer.progress import Advance
from pelagia.infer.result_files import ResultFolder
from pelagia.infer.result_names import picture_names, portable, relative_names
from pelagia.infer.result_tables import Totals, write_tables
from pelagia.infer.runtimes import Runtime, runtime_name
from pelagia.infer.stamps import Look, Stamp, look
from pelagia.infer.watching import Watch

__all__ = ["FolderRun", "Shard", "made_with"]

#: The lock of a results folder; each shard has one of its own, too.
_LOCK = ".lock"

#: Threads that write results.
_WRITERS = 4

#: The result of an image of more pixels is written before the next image is taken up: a class map of its size may be a gigabyte.
_LARGE_PIXELS = 1 << 25


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index`, counted from 1, of `count` parts of a run: the images are dealt out in turn.

    Raises:
        OptionError: not 1 <= index <= count.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise OptionError(f"a shard is I/N with I from 1 to N, got {self}")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """`2/8`, the second of eight.

        Raises:
            OptionError: it is not that.
        """
        index, slash, count = text.partition("/")
        if not slash or not index.strip().isdecimal() or not count.strip().isdecimal():
            raise OptionError(f"a shard is I/N, such as 2/8 for the second of eight, got {text!r}")
        return cls(int(index), int(count))


def made_with(runtime: Runtime, options: PredictOptions, model: Path | None) -> dict[str, Any]:
    """What a result must have been made with to be used again: `model`, a SHA-256 of the file (for an .xml also of the .bin with
    its weights) and of the card (empty if no file is known), `runtime`, the name of what computes, and `options`, those that
    matter and are not the default, and `limits`, those by which images are refused, and whether Zarr can be read.
    """
    known = ""
    if model is not None:
        files = [model, model.with_suffix(".bin")] if model.suffix.lower() == ".xml" else [model]
        card = hashlib.sha256(runtime.card.to_json().encode()).hexdigest()
        known = hashlib.sha256(" ".join([*map(sha256, files), card]).encode()).hexdigest()
    limits = {**options.limits(), "zarr": installed("zarr")}
    return {"model": known, "runtime": runtime_name(runtime), "options": options.identity(), "limits": limits}


class FolderRun:
    """One run over images into a results folder: looks at what is there, then predicts the rest.

    Args:
        runtime: the model.
        images: all, each once, in the order of the tables, and the folder that each is named from (`result_names`); without
            such folders each is named by its file. The same for all shards.
        folder: where results lie or shall lie.
        options: of prediction.
        model: the file that the weights came from; without it no result is used again.
        label: what the tables call the model.
        draw: write annotated pictures.
        shard: the part that this process predicts; None for all. Two processes may write into one folder at a time only if both
            have a shard, and not the same: a lock (`core.lock`) sees to it.

    Attributes:
        names: of all images, in the tables.
        kept: how many of its own images were finished before.
        anew: why results that are there are made anew -> how many.
        broken: what was wrong with its own images, one sentence each.
        complete: whether the tables were written from all images.
        left: how many images of all shards had no result at the end; of its own, those that changed while they were predicted.
        totals: counts over the images that the tables hold, or of its own images without tables.
    """

    def __init__(
        self,
        runtime: Runtime,
        images: Sequence[Path] | Mapping[Path, Path],
        folder: str | Path,
        options: PredictOptions | None = None,
        *,
        model: Path | None = None,
        label: str = "",
        draw: bool = True,
        shard: Shard | None = None,
    ) -> None:
        self._runtime, self._paths, self._options = runtime, list(images), options or PredictOptions()
        self.shard, self._label = shard, portable(label or ("" if model is None else model.name))
        self.names = relative_names(images if isinstance(images, Mapping) else {path: path.parent for path in images})
        self.files = ResultFolder(folder, runtime.card, made=made_with(runtime, self._options, model), names=self.names)
        self._pictures: list[str] | list[None] = picture_names(self.names) if draw else [None] * len(self.names)
        self._own = range(len(self.names)) if shard is None else range(shard.index - 1, len(self.names), shard.count)
        self.kept = 0
        self._written: list[int] = []
        self.anew: Counter[str] = Counter()
        self.broken: list[str] = []
        self.complete, self.left = False, 0
        self.totals = Totals(runtime.card)
        self._looks: dict[int, Look | None] = {}
        self._look_around()

    @property
    def own(self) -> int:
        """How many images are this run's."""
        return len(self._own)

    @property
    def predicted(self) -> int:
        """How many images were predicted so far, and their results written."""
        return len(self._written)

    @property
    def to_do(self) -> int:
        """How many images are still to be predicted."""
        return len(self._looks) - self.predicted

    @property
    def told(self) -> list[str]:
        """Names of the images of which `totals` speak."""
        return self.names if self.shard is None or self.complete else [self.names[index] for index in self._own]

    def _look_around(self) -> None:
        for index in self._own:
            reason = self.files.why_anew(self.names[index], self._paths[index])
            if reason is None:
                self.kept += 1
                continue
            self._looks[index] = look(self._paths[index])
            if reason:
                self.anew[reason] += 1

    def go(self, advance: Advance, tell: Callable[[str], None] = lambda _: None) -> None:
        """Predict what is not finished, draw what is not drawn, and write the tables if all images are finished.

        Stopped by KeyboardInterrupt, a run without a shard writes tables of what is finished, marked `"complete": false`.

        Args:
            advance: called for each image that was predicted, and with 0 steps for tiles of a large one.
            tell: called once with a sentence for each choice that was made without being asked and changes results, and for
                intensities beyond the window of the model.

        Raises:
            OptionError: something cannot be written, an option does not fit the model, or another run writes into the folder.
                What is finished stays.
            ModelError: the model fails.
        """
        with self._alone():
            self._go(advance, tell)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder: for itself without a shard; with one beside other shards, but not beside the same one."""
        remedy = "wait for it or stop it, choose another folder, or divide the images with shards"
        with ExitStack() as stack:
            stack.enter_context(locked(self.files.folder / _LOCK, shared=self.shard is not None, remedy=remedy))
            if self.shard is not None:
                own = self.files.folder / f"{_LOCK}-{self.shard.index}-of-{self.shard.count}"
                stack.enter_context(locked(own, remedy="it predicts this very shard; wait for it or stop it"))
            else:
                remove_leftovers(self.files.folder)
            yield

    def _go(self, advance: Advance, tell: Callable[[str], None]) -> None:
        if self._looks:
            self.files.remove_tables()
        try:
            self._draw_missing()
            self._predict(advance, tell)
        except KeyboardInterrupt:
            if self.shard is None:
                done = [name for name, path in zip(self.names, self._paths, strict=True) if self._is_finished(name, path)]
                self._write(done, complete=False)
            raise
        self.left = 0 if self.shard is None else self._missing()
        self.complete = self.left == 0
        if self.complete:
            self._write(self.names, complete=True)
        else:
            for item, _ in self.files.items(self.told):
                self.totals.add(item)
        self.broken += self._unreadable()

    def _missing(self) -> int:
        """How many images of all shards have no result that this run could use."""
        return sum(not self._is_finished(name, path) for name, path in zip(self.names, self._paths, strict=True))

    def _is_finished(self, name: str, path: Path) -> bool:
        return self.files.why_anew(name, path) is None

    def _draw_missing(self) -> None:
        for index in self._own:
            picture = self._pictures[index]
            if picture is not None and index not in self._looks and self.files.lacks_picture(self.names[index], picture):
                self._note(self.files.draw(self.names[index], self._paths[index], picture))

    def _predict(self, advance: Advance, tell: Callable[[str], None]) -> None:
        """Results of small images are written and drawn in threads: a disk takes milliseconds to say that a file is safe."""
        results = predict_files(
            self._runtime,
            (self._paths[index] for index in self._looks),
            self._options,
            maps=self.files.map_folder,
            watch=Watch(advance, tell),
        )
        writing: deque[tuple[int, Future[None]]] = deque()

        def wait(most: int) -> None:
            while len(writing) > most:
                index, done = writing.popleft()
                done.result()
                advance(1, self.names[index])

        together = Barrier(_WRITERS)
        with ThreadPoolExecutor(_WRITERS) as pool:
            # All threads begin now: one that Ctrl-C catches at its start would be unknown to the pool, and not waited for.
            for _ in range(_WRITERS):
                pool.submit(together.wait)
            for index, result in zip(self._looks, results, strict=True):
                writing.append((index, pool.submit(self._keep, index, result)))
                wait(2 * _WRITERS if result.width * result.height < _LARGE_PIXELS else 0)
            wait(0)

    def _keep(self, index: int, result: FileResult) -> None:
        before = self._looks[index]
        stamp = None if before is None else Stamp.of(self._paths[index], before)
        self._note(self.files.add(result, self.names[index], image=stamp, picture=self._pictures[index]))
        self._written.append(index)

    def _note(self, problem: str | None) -> None:
        if problem is not None:
            self.broken.append(problem)

    def _write(self, names: Sequence[str], *, complete: bool) -> None:
        files = self.files

        def counted() -> Any:
            for item, text in files.items(names):
                self.totals.add(item)
                yield item, text

        write_tables(files.folder, files.card, counted(), model=self._label, complete=complete)

    def _unreadable(self) -> list[str]:
        items = ((self._paths[index], self.files.read(self.names[index])[0]) for index in self._own)
        return [f"{path}: {item['error']}" for path, item in items if "error" in item]
