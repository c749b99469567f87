"""The workstation room: shrinks a trained model for its hardware and proves the result on the device's runtime.

Importing it loads nothing heavy. The functions do all that the commands of these names do.

>>> import converters
>>> converters.Recipe.__name__
'Recipe'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .assemble import ReleaseName
    from .existing import PackagingOrder, package
    from .order import ConversionOrder, Limits
    from .plan import Effort
    from .recipe import Recipe
    from .select import Preference
    from .service import convert

__all__ = [
    "ConversionOrder", "Effort", "Limits", "PackagingOrder", "Preference", "Recipe", "ReleaseName", "convert", "package",
]  # fmt: skip

_HOMES: Final = {
    "ConversionOrder": "order", "Effort": "plan", "Limits": "order", "PackagingOrder": "existing", "Preference": "select",
    "Recipe": "recipe", "ReleaseName": "assemble", "convert": "service", "package": "existing",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{home}", __name__), name)
