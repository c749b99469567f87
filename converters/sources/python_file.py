"""Calls the function in a user's Python file that returns a model.

Decides what is said where there is no such function. It is the user's own code and runs in this process
(`user_code.py`). What came back is judged by whoever asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeml.errors import ConfigError

from ..user_code import call_user, module_of
from .source_name import SourceName


def call_factory(name: SourceName) -> Any:
    """Import the file, call its function and return what it returns.

    Raises:
        ConfigError: The file or the function fails, or there is no such function.
    """
    with module_of(name.path) as module:
        factory: Callable[[], Any] | None = getattr(module, name.factory, None)
        if not callable(factory):
            raise ConfigError(
                f"{name.path.name} has no function {name.factory}", hint="name a function without arguments"
            )
        return call_user(factory, f"{name.path.name}:{name.factory}()")
