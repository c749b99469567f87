"""The adapter for TorchScript: torch itself, where a device's own program has it. No agent loads this.

Decides what such a file has to say of itself: TorchScript knows neither the shapes nor the types that it takes, so whoever
wrote it for us put them beside the code (`edgeml.json`). A file is opened by whoever asked for torch by name, and for
nobody else: its archive holds code, so it is opened only after it was verified, in a child process.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from ..errors import BackendError
from ..tensors import TensorSpec

if TYPE_CHECKING:
    from . import Array

LIBRARY: Final = "torch"
SURFACE: Final = "edgeml.json"
"""Name of the archive's extra file that says what the model takes and gives."""
SURFACE_BYTES_MAX: Final = 1 << 16


class Surface(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a TorchScript model takes and gives, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class TorchScriptSession:
    """A model loaded by torch.

    Raises:
        BackendError: torch is not installed, or refuses the file, or the file does not say what it takes.
    """

    def __init__(self, model: bytes, threads: int = 1) -> None:
        try:
            import torch
        except ImportError as error:
            raise BackendError(
                "torch is not installed here", hint="pip install torch; only TorchScript needs it"
            ) from error
        self._torch = torch
        torch.set_num_threads(threads)
        extra = {SURFACE: ""}
        try:
            with warnings.catch_warnings():
                # torch would rather have torch.export everywhere; devices that ask for TorchScript do not have it.
                warnings.simplefilter("ignore", DeprecationWarning)
                self._module = torch.jit.load(io.BytesIO(model), map_location="cpu", _extra_files=extra)
        except Exception as error:  # torch raises errors of many kinds for a file that it cannot read
            raise BackendError(f"{self.runtime} cannot load the model: {_first_line(error)}") from error
        self._surface = _surface(extra[SURFACE])

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model takes."""
        return self._surface.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the model gives."""
        return self._surface.outputs

    @property
    def runtime(self) -> str:
        """Library and version."""
        return f"{LIBRARY} {self._torch.__version__}"

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Answer one request.

        Raises:
            BackendError: torch refused the arrays or failed, or answered with something else than one tensor.
        """
        torch = self._torch
        try:
            with torch.inference_mode():
                answer = self._module(*map(torch.from_numpy, inputs))
        except Exception as error:  # torch raises errors of many kinds
            raise BackendError(f"{LIBRARY}: {_first_line(error)}") from error
        if not isinstance(answer, torch.Tensor):
            raise BackendError(f"{LIBRARY}: the model answers with a {type(answer).__name__}, not one tensor")
        given: Array = answer.numpy()
        return [given]


def _surface(said: str | bytes) -> Surface:
    data = said.encode() if isinstance(said, str) else said
    try:
        if len(data) > SURFACE_BYTES_MAX:
            raise msgspec.ValidationError("too long")
        surface = msgspec.json.decode(data, type=Surface)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BackendError(
            f"the TorchScript file does not say what it takes: no readable {SURFACE} in it",
            hint="`edgeml convert --target torchscript` writes one that does",
        ) from error
    if len(surface.outputs) != 1:
        raise BackendError("the TorchScript file states no single output")
    return surface


def _first_line(error: Exception) -> str:
    """TorchScript's own errors tell where first, and what last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return (lines[-1] if "TorchScript interpreter" in lines[0] else lines[0])[:300]
