"""The onnxruntime adapter.

Decides its settings for small devices: the threads asked for and no spinning, no arena (it keeps the peak for ever),
the CPU provider only, no file but the one it was given, and exact integers. onnxruntime's errors become BackendError here and nowhere else.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import BackendError
from ..tensors import BATCH, DType, TensorSpec

if TYPE_CHECKING:
    from . import Array

try:
    import onnxruntime as ort
except ImportError as error:  # pragma: no cover - depends on the installation
    raise BackendError("onnxruntime is not installed", hint="pip install 'edgeml-fleet[agent]'") from error

_EXACT_INTEGERS = "session.x64quantprecision"
_NOT_EXACT = (ort.capi.onnxruntime_pybind11_state.NotImplemented, ort.capi.onnxruntime_pybind11_state.Fail)
_LINE_MAX = 300
_SOURCE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (?:/\S+:\d+ (?:[^ ].*?\)(?: const)? (?=[A-Z]))?)?")
"""What stands before the sentence that tells: the error's number and name, the line of the source, the function's types."""
_NEWER_OPSET = re.compile(
    r"Opset (\d+) is under development.* official support for domain (\S+) is till opset (\d+)"
)
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
_DTYPES = {
    "tensor(float)": DType.FLOAT32, "tensor(float16)": DType.FLOAT16, "tensor(double)": DType.FLOAT64,
    "tensor(int8)": DType.INT8, "tensor(uint8)": DType.UINT8, "tensor(int16)": DType.INT16,
    "tensor(uint16)": DType.UINT16, "tensor(int32)": DType.INT32, "tensor(int64)": DType.INT64, "tensor(bool)": DType.BOOL,
}  # fmt: skip


class OnnxSession:
    """A model loaded by onnxruntime.

    Raises:
        BackendError: The runtime refuses the model, or it has inputs that are no tensors.
    """

    def __init__(self, model: bytes, threads: int = 1) -> None:
        try:
            try:
                self._session = _session(model, threads, exact="1")
            except _NOT_EXACT:
                # The setting makes int8 by int8 a pair that has no kernel (without it that pair is exact anyway), and
                # stumbles over zero points that nodes share.
                self._session = _session(model, threads, exact="0")
        except Exception as error:  # the library raises bare exceptions of its own kinds
            raise BackendError(
                f"onnxruntime {ort.__version__} cannot load the model: {_first_line(error)}",
                hint=_hint(error),
            ) from error
        self._inputs = tuple(_spec(one) for one in self._session.get_inputs())
        self._outputs = tuple(_spec(one) for one in self._session.get_outputs())
        self._names = [spec.name for spec in self._inputs]

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
        return f"onnxruntime {ort.__version__}"

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Answer one request.

        Raises:
            BackendError: The runtime refused the arrays or failed.
        """
        try:
            result: list[Array] = self._session.run(None, dict(zip(self._names, inputs, strict=True)))
        except Exception as error:  # the library raises bare exceptions of its own kinds
            raise BackendError(f"onnxruntime: {_first_line(error)}") from error
        return result


def _session(model: bytes, threads: int, exact: str) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # On x86 with AVX2 and no VNNI the default kernels add two products of uint8 and int8 in 16 bits, which saturate:
    # a model that keeps 95 % elsewhere was seen to fall to 78 % (tests/edgeml/test_exact_integers.py).
    options.add_session_config_entry(_EXACT_INTEGERS, exact)
    # A model may name other files for its weights, which nobody has verified. The runtime would look for them in
    # the directory of its process; nothing can lie below a device.
    options.add_session_config_entry(_EXTERNAL_FOLDER, "/dev/null/none")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _spec(node: Any) -> TensorSpec:
    if node.type not in _DTYPES:
        raise BackendError(
            f"{node.name} has type {node.type}, which edgeml does not serve",
            hint="give the model numbers: what makes them of strings stays outside of it",
        )
    shape = tuple(size if isinstance(size, int) and size > 0 else BATCH for size in node.shape)
    return TensorSpec(node.name, _DTYPES[node.type], shape)


def _first_line(error: Exception) -> str:
    """Say what is wrong, without the library's source lines; of an opset that is too new, without its long warning."""
    lines = _SOURCE.sub("", str(error).strip()).splitlines()
    if not lines:
        return type(error).__name__
    if newer := _NEWER_OPSET.search(lines[0]):
        return f"opset {newer[1]} of {newer[2]} is newer than it knows ({newer[3]})"
    return textwrap.shorten(lines[0], _LINE_MAX, placeholder=" ...")


def _hint(error: Exception) -> str:
    if newer := _NEWER_OPSET.search(str(error)):
        return f"export the model with opset {newer[3]} or an older one"
    if known := re.search(r"max supported IR version: (\d+)", str(error)):
        return f"export the model with an older onnx, or load it with onnx, set model.ir_version = {known[1]} and save it"
    return ""
