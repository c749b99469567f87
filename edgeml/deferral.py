"""Imports that are put off until something of them is used.

Decides how a library that we import is kept from loading a module that it may never need: while the library is imported,
something stands in the module's place that loads it when it is first asked for anything, or nothing does, where the
library has a way without it. For processes that live for years in little memory; nobody else needs it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class _Deferred(ModuleType):
    """Stands for a module until something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def deferred(name: str) -> Iterator[None]:
    """Put off the import of a module that is imported meanwhile. Afterwards imports are real again."""
    if name in sys.modules:
        yield
        return
    package, _, last = name.rpartition(".")
    stand_in = _Deferred(name)
    sys.modules[name] = stand_in
    if package:
        # An import that finds it there does not tell the package, which is where its users look for it.
        setattr(importlib.import_module(package), last, stand_in)
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def absent(name: str) -> Iterator[None]:
    """Let what is imported meanwhile do without a module of which it can do without."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # as Python itself has it: an import of it fails
    try:
        yield
    finally:
        del sys.modules[name]
