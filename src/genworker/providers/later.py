"""Packages of the SDKs that are run when something of them is first asked for.

Both SDKs import all types of all their answers when they are imported, some hundred modules, and a run needs
none of them: its answers are read by `genworker.core.wire`. This does for a package what the standard
library's `LazyLoader` does for a module: that one runs a package as soon as a part of it is imported.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    """A package that has not run yet. Its parts can be imported; any other name runs it."""

    def __getattr__(self, name: str) -> Any:
        loader, lock = self.__dict__["__genworker_later__"]
        with lock:
            if self.__class__ is _Later:  # else another thread has run it meanwhile
                self.__class__ = ModuleType  # type: ignore[assignment]  # a module's class may be set so
                loader.exec_module(self)
        return getattr(self, name)


class _LaterLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__genworker_later__"] = (self._loader, threading.RLock())
        module.__class__ = _Later


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not f"{name}.".startswith(f"{self._package}."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None and spec.submodule_search_locations is not None:
            spec.loader = _LaterLoader(spec.loader)
        return spec


@contextlib.contextmanager
def run_later(package: str) -> Iterator[None]:
    """Have a package that is imported within run only when it is used."""
    finder = _Finder(package)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
