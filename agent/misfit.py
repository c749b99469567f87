"""A request whose tensors are not what the model takes.

Decides nothing but that it is counted: who refuses it says by which count, and whoever holds the windows adds it.
"""

from __future__ import annotations

from typing import Final

from edgeml.errors import ConfigError
from edgeml.telemetry import InputQuality

SCHEMA: Final = InputQuality(schema=1)
"""Other names, another number, other shapes or lengths."""
DTYPE: Final = InputQuality(dtype=1)
"""Another type of element."""


class MisfitError(ConfigError):
    """Tensors that are not what the model takes; `counted` is what it adds to the counts of inputs."""

    def __init__(self, message: str, counted: InputQuality, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.counted = counted
