"""Training: one readable loop, its options, data, optimiser, checkpoints and run folder.

`pelagia.train(...)` is the function of `pelagia.api`, and this package has the same name: once any of its modules is imported,
Python lets `pelagia.train` mean the package. So the package can be called, and calls that function.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from pelagia.core.lazy import resolve

__all__: list[str] = []


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return resolve("pelagia.api", purpose="train a model").train(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
