"""The device room: keeps exactly one good model serving, inside its budget, and reports what it sees.

`from agent import Agent, Mode` is for programs that want answers without HTTP; it is imported when it is asked for,
because the device's own supervisor has no numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .embedded import Agent, Mode

__all__ = ["Agent", "Mode"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import embedded

    return getattr(embedded, name)
