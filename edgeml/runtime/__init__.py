"""Runtimes: one loaded model behind one small face.

Decides the `Session` port and which adapter loads which family. Loading native code on a file is done only after the
file was verified, and of foreign files only in a child process (`edgeml.probe`).
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from ..errors import BackendError
from ..manifest import RuntimeFamily
from ..tensors import TensorSpec

if TYPE_CHECKING:
    # Not at run time: the supervisor asks this package what is installed, and has no numpy.
    import numpy as np
    import numpy.typing as npt

    from ..profile import DeviceRuntime

    Array = npt.NDArray[np.generic]

RUNTIME_PACKAGES: Final = ("onnxruntime", "ai-edge-litert", "tflite-runtime")
"""What agents run models on."""


class KernelSet(enum.Enum):
    """Which of a runtime's implementations of operators are used."""

    OPTIMIZED = "optimized"
    """What it takes by itself."""
    REFERENCE = "reference"
    """LiteRT's plain loops. TensorFlow Lite Micro's own came from them, yet they round in other ways: an autoencoder's
    int8 answers differ by up to 12 steps of 255. Agreement here is a hint for a microcontroller, no proof."""


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


def open_session(
    model: bytes,
    family: RuntimeFamily,
    threads: int = 1,
    runtime: DeviceRuntime | None = None,
    kernels: KernelSet = KernelSet.OPTIMIZED,
) -> Session:
    """Load a model.

    Args:
        model: the model file's bytes.
        family: which kind of runtime loads it.
        threads: that it may use; TensorFlow Lite Micro has one.
        runtime: the one library to use; with None, whichever of the family a device would have is installed. torch is used
            only if it is named, so that no device loads it by accident.
        kernels: reference kernels are for `ai-edge-litert` and `tflite-runtime` alone.

    Raises:
        BackendError: No runtime of this family is installed, or not the one asked for, or it refuses the model.
    """
    if family is RuntimeFamily.ONNX:
        if kernels is not KernelSet.OPTIMIZED or (runtime and runtime.value != "onnxruntime"):
            raise BackendError(
                f"an ONNX file does not run on {runtime.value if runtime else family.value} with {kernels.value} kernels",
                hint="onnxruntime loads it, with its own kernels",
            )
        from .onnx import OnnxSession

        return OnnxSession(model, threads)
    if family is RuntimeFamily.TORCHSCRIPT:
        if runtime is None or runtime.value != "torch" or kernels is not KernelSet.OPTIMIZED:
            raise BackendError(
                "TorchScript is for programs that have torch: no agent loads it",
                hint="convert for ONNX or TFLite; `edgeml measure` runs the bundle where torch is installed",
            )
        from .torchscript import TorchScriptSession

        return TorchScriptSession(model, threads)
    if runtime is not None and runtime.value == "tflite-micro":
        if kernels is not KernelSet.OPTIMIZED:
            raise BackendError(
                f"tflite-micro has no {kernels.value} kernels to choose", hint="it has one set of its own"
            )
        from .tflite_micro import TfliteMicroSession

        return TfliteMicroSession(model)
    from .litert import LiteRtSession

    return LiteRtSession(model, threads, runtime, kernels)


def installed_runtimes(packages: Sequence[str] = RUNTIME_PACKAGES) -> dict[str, str]:
    """Names and versions of the runtimes on this machine, without loading them.

    Looks for their metadata directories by name: importlib.metadata would cost the supervisor 3 MB.
    """
    found: dict[str, str] = {}
    for folder in map(Path, sys.path):
        for package in packages:
            for entry in folder.glob(f"{package.replace('-', '_')}-*.dist-info"):
                found.setdefault(package, entry.name.removesuffix(".dist-info").rpartition("-")[2])
    return found
