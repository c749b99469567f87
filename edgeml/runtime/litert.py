"""The adapter for .tflite models: ai-edge-litert, or tflite-runtime where that is what the device has.

Decides the one import ladder and the settings. The two libraries share an interface and not every answer: some recipes
are right in one and at chance level in the other, so a variant is verified on the one its device has, and who asks for
one never gets the other.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..errors import BackendError
from ..tensors import DType, TensorSpec
from . import KernelSet

if TYPE_CHECKING:
    from ..profile import DeviceRuntime
    from . import Array

_MODULES: Final = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
}
"""Libraries in the order in which they are tried."""


class LiteRtSession:
    """A model loaded by ai-edge-litert or tflite-runtime. Takes one sample a request unless the file says otherwise.

    Raises:
        BackendError: No such runtime is installed, or it refuses the model.
    """

    def __init__(
        self,
        model: bytes,
        threads: int = 1,
        wanted: DeviceRuntime | None = None,
        kernels: KernelSet = KernelSet.OPTIMIZED,
    ) -> None:
        self._library, module = _load(wanted)
        kind = module.OpResolverType
        resolver = kind.BUILTIN_REF if kernels is KernelSet.REFERENCE else kind.AUTO
        try:
            self._interpreter = module.Interpreter(
                model_content=model, num_threads=threads, experimental_op_resolver_type=resolver
            )
            self._interpreter.allocate_tensors()
            self._input_details = self._interpreter.get_input_details()
            self._output_details = self._interpreter.get_output_details()
        except Exception as error:  # the library raises ValueError, RuntimeError and others
            raise BackendError(f"{self.runtime} cannot load the model: {str(error).strip()[:300]}") from error
        self._inputs = tuple(spec_of(one) for one in self._input_details)
        self._outputs = tuple(spec_of(one) for one in self._output_details)

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
        return f"{self._library} {metadata.version(self._library)}"

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
            raise BackendError(f"{self._library}: {str(error).strip()[:300]}") from error


def _load(wanted: DeviceRuntime | None) -> tuple[str, Any]:
    """Return the library's name and its module; of `wanted` alone, if one is wanted."""
    names = list(_MODULES) if wanted is None else [wanted.value]
    for name in names:
        if name not in _MODULES:
            raise BackendError(
                f"{name} does not load .tflite files in a Python process",
                hint="ai-edge-litert and tflite-runtime do, and tflite-micro with its own kernels alone",
            )
        try:
            return name, importlib.import_module(_MODULES[name])
        except ImportError:
            continue
    raise BackendError(
        f"no {' or '.join(names)} for .tflite models is installed here",
        hint="pip install 'edgeml-fleet[agent]', or 'edgeml-fleet[agent-tflite-runtime]' on armv7 and old devices",
    )


def spec_of(detail: dict[str, Any]) -> TensorSpec:
    """Read what these libraries tell of a tensor: its name, NumPy type, shape and quantization.

    Raises:
        BackendError: It has a type that is not served.
    """
    try:
        dtype = DType(np.dtype(detail["dtype"]).name)
    except ValueError as error:
        raise BackendError(
            f"{detail['name']} has type {detail['dtype']}, which edgeml does not serve",
            hint="give the model numbers: what makes them of strings stays outside of it",
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
