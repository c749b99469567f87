"""Runs code of the user's: a factory of a model, a metric.

Decides that it is imported as from its own directory and leaves no trace of that, that what it prints goes to stderr, and
that whatever it raises is told as the user's to fix.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgeml.errors import ConfigError, EdgemlError

from .quiet import first_line


@contextlib.contextmanager
def module_of(path: Path) -> Iterator[Any]:
    """Import a file as the user would from its own directory.

    Raises:
        ConfigError: It fails.
    """
    spec = importlib.util.spec_from_file_location(f"_source_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    writes = sys.dont_write_bytecode
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent.absolute()))
    sys.dont_write_bytecode = True
    try:
        call_user(lambda: spec.loader.exec_module(module), path.name)  # type: ignore[union-attr]  # asserted above
        yield module
    finally:
        sys.dont_write_bytecode = writes
        sys.path.remove(str(path.parent.absolute()))
        sys.modules.pop(spec.name, None)


def call_user(code: Callable[[], Any], what: str) -> Any:
    """Run the user's code; what it prints goes to stderr, so that our own output stays readable.

    Raises:
        ConfigError: It raised, or wanted to exit.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return code()
    except EdgemlError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ConfigError(
            f"{what} fails: {first_line(error)}", hint="run the file with Python to see where"
        ) from error
