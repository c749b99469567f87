"""Runs code of the user's: a factory of a model, a metric.

Decides that it is imported as from its own directory and leaves no trace of that, that what it prints goes to stderr, and
that whatever it raises is told as the user's to fix.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
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
    directory, loaded, places = path.parent.absolute(), [*sys.modules], [*sys.path]
    sys.modules[spec.name] = module
    sys.path.insert(0, str(directory))
    sys.dont_write_bytecode = True
    try:
        call_user(lambda: spec.loader.exec_module(module), path.name)  # type: ignore[union-attr]  # asserted above
        yield module
    finally:
        sys.dont_write_bytecode = writes
        with contextlib.suppress(ValueError):  # The user's code may have changed it.
            sys.path.remove(str(directory))
        sys.modules.pop(spec.name, None)
        for name in _beside(directory, loaded, places):
            sys.modules.pop(name, None)


def _beside(directory: Path, loaded: list[str], places: list[str]) -> list[str]:
    """Name the modules that a file brought from its directory: to a file in another one, the same name means another module.

    What is found from a place of the interpreter's stays, even if that is in the directory: a user's .venv often is.
    """
    known = {name.partition(".")[0] for name in loaded}
    absolute = [Path(place).absolute() for place in places]
    others = [place for place in absolute if not directory.is_relative_to(place)]
    found = []
    for name, module in [*sys.modules.items()]:
        if name.partition(".")[0] in known or not isinstance(module, ModuleType):
            continue
        # Not by getattr: some modules of torch's take any name for a class of theirs.
        said = vars(module).get("__file__") or next(iter(vars(module).get("__path__") or ()), None)
        file = Path(said) if isinstance(said, str) else None
        if file and file.is_relative_to(directory) and not any(map(file.is_relative_to, others)):
            found.append(name)
    return found


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
        place = _place(error)
        raise ConfigError(
            f"{what} fails: {first_line(error)}{f' ({place})' if place else ''}",
            hint="correct it there" if place else "run the file with Python to see where",
        ) from error


def _place(error: BaseException) -> str:
    """Name the innermost line of the user's own that an error came through; empty where there is none."""
    others = [
        Path(__file__).parent,
        *(Path(sysconfig.get_path(one)) for one in ("stdlib", "purelib", "platlib")),
    ]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_file() and not any(map(file.absolute().is_relative_to, others)):
            return f"{file.name}, line {frame.lineno}"
    return ""
