"""Calls the function in a user's Python file that returns a model.

Decides how the file is imported and that nothing of that is left behind. It is the user's own code and runs in this
process. What came back is judged by whoever asked.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgeml.errors import ConfigError, EdgemlError

from ..quiet import first_line
from .source_name import SourceName


def call_factory(name: SourceName) -> Any:
    """Import the file, call its function and return what it returns.

    Raises:
        ConfigError: The file or the function fails, or there is no such function.
    """
    with _module_of(name.path) as module:
        factory: Callable[[], Any] | None = getattr(module, name.factory, None)
        if not callable(factory):
            raise ConfigError(
                f"{name.path.name} has no function {name.factory}", hint="name a function without arguments"
            )
        return _guarded(factory, f"{name.path.name}:{name.factory}()")


@contextlib.contextmanager
def _module_of(path: Path) -> Iterator[Any]:
    """Import a file as the user would from its own directory, and leave no trace of that."""
    spec = importlib.util.spec_from_file_location(f"_source_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    writes = sys.dont_write_bytecode
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent.absolute()))
    sys.dont_write_bytecode = True
    try:
        _guarded(lambda: spec.loader.exec_module(module), path.name)  # type: ignore[union-attr]  # asserted above
        yield module
    finally:
        sys.dont_write_bytecode = writes
        sys.path.remove(str(path.parent.absolute()))
        sys.modules.pop(spec.name, None)


def _guarded(code: Callable[[], Any], what: str) -> Any:
    """Run the user's code; what it prints goes to stderr, so that our own output stays readable."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return code()
    except EdgemlError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ConfigError(
            f"{what} fails: {first_line(error)}", hint="run the file with Python to see where"
        ) from error
