"""Runtimes: one loaded model behind one small face.

Decides the `Session` port and which adapter loads which family. Loading native code on a file is done only after the
file was verified, and of foreign files only in a child process (`edgeml.probe`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from ..manifest import RuntimeFamily
from ..tensors import TensorSpec

if TYPE_CHECKING:
    # Not at run time: the supervisor asks this package what is installed, and has no numpy.
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.generic]

RUNTIME_PACKAGES: Final = ("onnxruntime", "ai-edge-litert", "tflite-runtime")


class Session(Protocol):
    """A loaded model."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes, in order."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it gives, in order."""
        ...

    @property
    def runtime(self) -> str:
        """Name and version of the library, for example `onnxruntime 1.32.0`."""
        ...

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Answer one request.

        Raises:
            BackendError: The runtime refused the arrays or failed.
        """
        ...


def open_session(model: bytes, family: RuntimeFamily, threads: int = 1) -> Session:
    """Load a model.

    Raises:
        BackendError: No runtime of this family is installed, or it refuses the model.
    """
    if family is RuntimeFamily.ONNX:
        from .onnx import OnnxSession

        return OnnxSession(model, threads)
    from .litert import LiteRtSession

    return LiteRtSession(model, threads)


def installed_runtimes() -> dict[str, str]:
    """Names and versions of the runtimes on this machine, without loading them.

    Looks for their metadata directories by name: importlib.metadata would cost the supervisor 3 MB.
    """
    found: dict[str, str] = {}
    for folder in map(Path, sys.path):
        for package in RUNTIME_PACKAGES:
            for entry in folder.glob(f"{package.replace('-', '_')}-*.dist-info"):
                found.setdefault(package, entry.name.removesuffix(".dist-info").rpartition("-")[2])
    return found
