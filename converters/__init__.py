"""The workstation room: shrinks a trained model for its hardware and proves the result on the device's runtime.

Importing it loads nothing heavy. `convert` and `package` do all that the commands of these names do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .existing import package
    from .service import convert

__all__ = ["convert", "package"]


def __getattr__(name: str) -> Any:
    if name == "convert":
        from .service import convert

        return convert
    if name == "package":
        from .existing import package

        return package
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
