"""The adapter for .tflite models: ai-edge-litert, or tflite-runtime where that is what the device has.

Decides the one import ladder and the settings. The two libraries share an interface and not every answer: some recipes
are right in one and at chance level in the other, so a variant is verified on the one its device has.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BackendError
from ..tensors import DType, TensorSpec

if TYPE_CHECKING:
    from . import Array

try:
    from ai_edge_litert.interpreter import Interpreter

    _LIBRARY = "ai-edge-litert"
except ImportError:
    try:
        from tflite_runtime.interpreter import Interpreter

        _LIBRARY = "tflite-runtime"
    except ImportError as error:  # pragma: no cover - depends on the installation
        raise BackendError(
            "no runtime for .tflite models is installed",
            hint="pip install 'edgeml-fleet[agent]', or 'edgeml-fleet[agent-tflite-runtime]' on armv7 and old devices",
        ) from error


class LiteRtSession:
    """A model loaded by ai-edge-litert or tflite-runtime. Takes one sample a request unless the file says otherwise.

    Raises:
        BackendError: The runtime refuses the model.
    """

    def __init__(self, model: bytes, threads: int = 1) -> None:
        try:
            self._interpreter = Interpreter(model_content=model, num_threads=threads)
            self._interpreter.allocate_tensors()
            self._input_details = self._interpreter.get_input_details()
            self._output_details = self._interpreter.get_output_details()
        except Exception as error:  # the library raises ValueError, RuntimeError and others
            raise BackendError(f"{self.runtime} cannot load the model: {str(error).strip()[:300]}") from error
        self._inputs = tuple(_spec(one) for one in self._input_details)
        self._outputs = tuple(_spec(one) for one in self._output_details)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model takes."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the model gives."""
        return self._outputs

    @property
    def runtime(self) -> str:
        """Library and version."""
        return f"{_LIBRARY} {metadata.version(_LIBRARY)}"

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Answer one request.

        Raises:
            BackendError: The runtime refused the arrays or failed.
        """
        try:
            for detail, array in zip(self._input_details, inputs, strict=True):
                self._interpreter.set_tensor(detail["index"], array)
            self._interpreter.invoke()
            return [self._interpreter.get_tensor(detail["index"]) for detail in self._output_details]
        except (ValueError, RuntimeError) as error:
            raise BackendError(f"{_LIBRARY}: {str(error).strip()[:300]}") from error


def _spec(detail: dict[str, Any]) -> TensorSpec:
    try:
        dtype = DType(np.dtype(detail["dtype"]).name)
    except ValueError as error:
        raise BackendError(
            f"{detail['name']} has type {detail['dtype']}, which edgeml does not serve"
        ) from error
    scales = detail["quantization_parameters"]["scales"]
    quantized = len(scales) == 1 and dtype is not DType.FLOAT32
    return TensorSpec(
        str(detail["name"]),
        dtype,
        tuple(int(size) for size in detail["shape"]),
        scale=float(scales[0]) if quantized else None,
        zero_point=int(detail["quantization_parameters"]["zero_points"][0]) if quantized else None,
    )
