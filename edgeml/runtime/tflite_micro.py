"""The adapter for .tflite models on TensorFlow Lite Micro: its own interpreter and reference kernels, on this processor.

Decides how large the arena is, and what is made of the library's words, which it prints where others raise. It is no
microcontroller: pointers have 64 bits, memory is as much as one likes, and no chip maker's kernels are in it.
"""

from __future__ import annotations

import functools
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

from ..errors import BackendError
from ..tensors import TensorSpec
from .litert import spec_of

if TYPE_CHECKING:
    from . import Array

LIBRARY: Final = "tflite-micro"
ARENAS_BYTES: Final = (1 << 20, 1 << 24, 1 << 28)
"""Tried in turn; what nothing is put into takes no memory. The first is more than most chips have, the last than any. None is
so small that the interpreter itself does not fit: that ends the process."""
PRINTED_BYTES_MAX: Final = 1 << 16
REASON_MAX: Final = 300
_STDERR: Final = 2
_ARENA_TOTAL: Final = re.compile(r"Arena allocation total (\d+) bytes")

T = TypeVar("T")


class TfliteMicroSession:
    """A model loaded by TensorFlow Lite Micro. Takes one sample a request unless the file says otherwise.

    Raises:
        BackendError: The library is not installed, or it refuses the model. Of a model that it was not made for it may
            also end the process.
    """

    def __init__(self, model: bytes) -> None:
        try:
            from tflite_micro import runtime
        except ImportError as error:
            raise BackendError(
                f"no {LIBRARY} is installed here", hint="pip install 'edgeml-fleet[tflite-micro]'"
            ) from error
        try:
            # The interpreter tells neither the names of tensors nor how many it takes.
            graph = runtime.convert_bytearray_to_object(model).subgraphs[0]
            self._interpreter = _opened(runtime.Interpreter.from_bytes, model)
            self._inputs = _specs(graph, graph.inputs, self._interpreter.get_input_details)
            self._outputs = _specs(graph, graph.outputs, self._interpreter.get_output_details)
        except Exception as error:  # over a damaged file the parser stumbles in ways of its own
            raise BackendError(
                f"{self.runtime} cannot load the model: {_reason(error)}",
                hint="it takes float and static int8 models, of the operators that it has",
            ) from error

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
        return f"{LIBRARY} {metadata.version(LIBRARY)}"

    @property
    def arena_used_bytes(self) -> int:
        """How much of the arena the model takes here, by the library's own count. With 32-bit pointers it is less.

        Raises:
            BackendError: It did not say.
        """
        _, said = _listen(self._interpreter.print_allocations)
        found = _ARENA_TOTAL.search(said)
        if found is None:
            raise BackendError(f"{self.runtime} does not say how much of the arena it uses")
        return int(found[1])

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Answer one request.

        Raises:
            BackendError: The runtime refused the arrays or failed.
        """
        try:
            for index, array in zip(range(len(self._inputs)), inputs, strict=True):
                self._interpreter.set_input(array, index)
            self._invoke()
            return [self._interpreter.get_output(index) for index in range(len(self._outputs))]
        except (ValueError, RuntimeError) as error:
            raise BackendError(f"{LIBRARY}: {_reason(error)}") from error

    def _invoke(self) -> None:
        try:
            self._interpreter.invoke()
        except RuntimeError:
            _listen(
                self._interpreter.invoke
            )  # once more: listening each time would cost time that is measured
            raise


def _opened(make: Callable[..., Any], model: bytes) -> Any:
    """Make the interpreter in the smallest of the arenas that is large enough."""
    *small, largest = ARENAS_BYTES
    for length_bytes in small:
        with suppress(RuntimeError):
            return _listen(functools.partial(make, model, arena_size=length_bytes))[0]
    return _listen(functools.partial(make, model, arena_size=largest))[0]


def _listen(call: Callable[[], T]) -> tuple[T, str]:
    """Call into the library; return what it gave and what it printed.

    Raises:
        RuntimeError: It failed; what it printed is the text, for its own exceptions tell no reason.
    """
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(_STDERR)
        os.dup2(file.fileno(), _STDERR)
        try:
            given = call()
        except RuntimeError as error:
            said = _printed(file)
            raise RuntimeError(
                "; ".join(filter(None, map(str.strip, said.splitlines()))) or str(error)
            ) from error
        finally:
            os.dup2(stderr, _STDERR)
            os.close(stderr)
        return given, _printed(file)


def _printed(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(PRINTED_BYTES_MAX).decode("utf-8", "replace")


def _reason(error: Exception) -> str:
    return str(error).strip()[:REASON_MAX]


def _specs(
    graph: Any, indices: Sequence[int], tell: Callable[[int], dict[str, Any]]
) -> tuple[TensorSpec, ...]:
    names = [graph.tensors[index].name.decode("utf-8", "replace") for index in indices]
    return tuple(spec_of({**tell(place), "name": name}) for place, name in enumerate(names))
