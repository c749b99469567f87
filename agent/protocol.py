"""The Open Inference Protocol, version 2, as bytes.

Decides how a request's JSON (with or without the binary tensor extension) becomes tensors and how an answer becomes
JSON again, without numpy. Floats that JSON cannot say (NaN, infinities) are null in both directions: null is read as
NaN, and NaN and infinities are written as null; the binary extension carries them unharmed. Routes and status codes are
`server`'s business; whether tensors fit the model is checked in `supervisor`.

Source: https://github.com/kserve/open-inference-protocol, REST, with the binary tensor data extension.
"""

from __future__ import annotations

import array
import itertools
import math
import struct
import sys
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from edgeml.errors import ConfigError
from edgeml.flow import Meaning
from edgeml.inference import ID_LENGTH_MAX, Feedback, ReplyParameters
from edgeml.manifest import Manifest
from edgeml.tensors import DType

from .ipc import RANK_MAX, TENSORS_MAX, TensorBytes
from .misfit import DTYPE, SCHEMA, MisfitError

if TYPE_CHECKING:
    from .serving import Served

JSON_BYTES_MAX: Final = 4 << 20
"""Numbers grow about twentyfold while they are JSON; larger tensors come through the binary extension."""
BODY_BYTES_MAX: Final = 32 << 20
DIMENSION_MAX: Final = 1 << 40
LABELS_MAX: Final = 1000
"""Classes of an output that are named; of more, a caller looks the names up in the model's metadata."""
_ARRAY_CODES: Final = {
    DType.FLOAT32: "f", DType.FLOAT64: "d", DType.INT8: "b", DType.UINT8: "B",
    DType.INT16: "h", DType.UINT16: "H", DType.INT32: "i", DType.INT64: "q",
}  # fmt: skip
_PACKED: Final = {DType.FLOAT32: "f", DType.FLOAT64: "d"}
_FLOATS: Final = (DType.FLOAT16, DType.FLOAT32, DType.FLOAT64)


class Call(msgspec.Struct, frozen=True):
    """A request for inference: the model's inputs in its order, and which outputs are wanted in which form.

    `timeout_us` is how long it may wait for its turn; 0: as long as that takes.
    """

    request_id: str
    tensors: tuple[TensorBytes, ...]
    wanted: tuple[WantedOutput, ...]
    timeout_us: int = 0


class WantedOutput(msgspec.Struct, frozen=True):
    """The index of an output, and whether to send it as bytes."""

    index: int
    binary: bool


class Reply(msgspec.Struct, frozen=True):
    """An answer's body. `json_length` is 0 if all of it is JSON."""

    body: bytes
    json_length: int


class _TensorParameters(msgspec.Struct, frozen=True, omit_defaults=True):
    binary_data_size: int | None = None
    binary_data: bool | None = None
    classification: int | None = None
    shared_memory_region: str | None = None


class _Input(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0, le=DIMENSION_MAX)], ...], msgspec.Meta(max_length=RANK_MAX)
    ]
    data: msgspec.Raw = msgspec.Raw()
    parameters: _TensorParameters = _TensorParameters()


class _WantedOutput(msgspec.Struct, frozen=True):
    name: str
    parameters: _TensorParameters = _TensorParameters()


class _RequestParameters(msgspec.Struct, frozen=True):
    binary_data_output: bool = False
    timeout: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Microseconds, as other servers of the protocol have it."""


class _Request(msgspec.Struct, frozen=True):
    inputs: Annotated[tuple[_Input, ...], msgspec.Meta(max_length=TENSORS_MAX)]
    id: Annotated[str, msgspec.Meta(max_length=ID_LENGTH_MAX)] = ""
    outputs: Annotated[tuple[_WantedOutput, ...], msgspec.Meta(max_length=TENSORS_MAX)] = ()
    parameters: _RequestParameters = _RequestParameters()


class _OutputParameters(msgspec.Struct, frozen=True, omit_defaults=True):
    binary_data_size: int | None = None
    labels: list[str | None] | None = None


_NOTHING_SAID: Final = _OutputParameters()


class _Output(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: _OutputParameters = _NOTHING_SAID
    data: list[float] | list[int] | list[bool] | None = None


class _Reply(msgspec.Struct, frozen=True):
    model_name: str
    model_version: str
    id: str
    parameters: ReplyParameters
    outputs: list[_Output]


def decode_call(body: bytes, json_length: int, manifest: Manifest) -> Call:
    """Read a request.

    Args:
        body: JSON, then the binary tensors in the order of `inputs`.
        json_length: how much of it is JSON.
        manifest: the model that is asked.

    Raises:
        ConfigError: It does not follow the protocol, or names what the model has not (for inputs, a MisfitError).
    """
    if not 0 <= json_length <= min(len(body), JSON_BYTES_MAX):
        raise ConfigError(
            f"JSON of {json_length} bytes in a body of {len(body)}; at most {JSON_BYTES_MAX} are read",
            hint="send large tensors with the binary extension",
        )
    request: _Request = _decode(memoryview(body)[:json_length], _Request)
    given = {}
    at = json_length
    for one in request.inputs:
        size = one.parameters.binary_data_size
        _check_supported(one.name, one.parameters)
        if one.name in given:
            raise ConfigError(f"input {one.name} is given twice")
        if size is None:
            given[one.name] = TensorBytes(_dtype(one), one.shape, _packed(one))
        else:
            if not 0 <= size <= len(body) - at:
                raise ConfigError(f"input {one.name} states {size} binary bytes, {len(body) - at} are left")
            given[one.name] = TensorBytes(_dtype(one), one.shape, body[at : at + size])
            at += size
    if at != len(body):
        raise ConfigError(f"{len(body) - at} bytes follow the inputs")
    names = [spec.name for spec in manifest.surface.inputs]
    if set(given) != set(names):
        raise MisfitError(f"inputs {sorted(given)} given, the model takes {names}", SCHEMA)
    return Call(
        request.id or uuid.uuid4().hex,
        tuple(given[name] for name in names),
        _wanted(request, manifest),
        request.parameters.timeout,
    )


def decode_feedback(body: bytes) -> Feedback:
    """Read feedback.

    Raises:
        ConfigError: It is none.
    """
    if len(body) > JSON_BYTES_MAX:
        raise ConfigError(f"JSON of {len(body)} bytes; at most {JSON_BYTES_MAX} are read")
    feedback: Feedback = _decode(body, Feedback)
    return feedback


def encode_reply(served: Served, call: Call) -> Reply:
    """Write an answer."""
    manifest, answer = served.manifest, served.answer
    outputs, blobs = [], []
    for wanted in call.wanted:
        tensor = answer.outputs[wanted.index]
        name = manifest.surface.outputs[wanted.index].name
        labels = _labels(manifest, wanted.index, tensor)
        if wanted.binary:
            blobs.append(tensor.data)
            parameters, data = _OutputParameters(len(tensor.data), labels), None
        else:
            # The very default where nothing is said: only then is it left out.
            parameters = _NOTHING_SAID if labels is None else _OutputParameters(labels=labels)
            data = _numbers(tensor)
        outputs.append(_Output(name, tensor.dtype.protocol_name, tensor.shape, parameters, data))
    predicted = answer.predicted
    label = None
    if predicted is not None and predicted < len(manifest.labels):
        label = manifest.labels[predicted]
    more = ReplyParameters(round(answer.latency_us, 1), predicted, label)
    head = msgspec.json.encode(_Reply(manifest.model, manifest.version, call.request_id, more, outputs))
    if not blobs:
        return Reply(head, 0)
    return Reply(b"".join((head, *blobs)), len(head))


def _labels(manifest: Manifest, index: int, tensor: TensorBytes) -> list[str | None] | None:
    """Names of the classes that a step found, element by element; None for any other output, or for too many."""
    is_classes = manifest.results[index].meaning is Meaning.CLASSES
    if not is_classes or not manifest.labels or len(tensor.data) > LABELS_MAX * tensor.dtype.item_bytes:
        return None
    known = len(manifest.labels)
    return [manifest.labels[int(one)] if 0 <= one < known else None for one in _numbers(tensor)]


def _wanted(request: _Request, manifest: Manifest) -> tuple[WantedOutput, ...]:
    by_default = request.parameters.binary_data_output
    outputs = manifest.surface.outputs
    if not request.outputs:
        return tuple(WantedOutput(index, by_default) for index in range(len(outputs)))
    names = [spec.name for spec in outputs]
    wanted = []
    for one in request.outputs:
        if one.name not in names:
            raise ConfigError(f"the model has no output {one.name!r}", hint=f"it has {', '.join(names)}")
        _check_supported(one.name, one.parameters)
        binary = one.parameters.binary_data
        wanted.append(WantedOutput(names.index(one.name), by_default if binary is None else binary))
    return tuple(wanted)


def _check_supported(name: str, parameters: _TensorParameters) -> None:
    """Refuse extensions that would change the answer; other unknown parameters are ignored, as the protocol says."""
    if parameters.classification is not None or parameters.shared_memory_region is not None:
        raise ConfigError(
            f"{name}: the extensions classification and shared memory are not spoken here",
            hint="ask for the scores; parameters.predicted and parameters.label of an answer say the class",
        )


def _dtype(tensor: _Input) -> DType:
    try:
        return DType.from_protocol_name(tensor.datatype)
    except ValueError as error:
        raise MisfitError(f"input {tensor.name}: {error}", DTYPE, hint="for example FP32") from error


def _packed(tensor: _Input) -> bytes:
    """Turn JSON numbers, flat or nested, into bytes."""
    dtype = _dtype(tensor)
    kind: Any = list[float | None] if dtype in _FLOATS else list[bool] if dtype is DType.BOOL else list[int]
    if tensor.data == msgspec.Raw():
        raise ConfigError(f"input {tensor.name} has no data")
    try:
        values = msgspec.json.decode(tensor.data, type=kind)
    except msgspec.ValidationError as error:
        nested = _decode(tensor.data, Any)
        if not isinstance(nested, list) or not any(isinstance(one, list) for one in nested):
            raise ConfigError(f"input {tensor.name}: {error}") from error
        values = _convert(_flat(nested, tensor), kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"input {tensor.name}: {error}") from error
    if dtype in _PACKED:
        try:
            # Half as long as an array takes, and refuses what is rare: null, and floats that only infinity can stand for.
            return struct.pack(f"<{len(values)}{_PACKED[dtype]}", *values)
        except (struct.error, OverflowError):
            values = [math.nan if value is None else value for value in values]
    elif None in values:
        values = [math.nan if value is None else value for value in values]
    try:
        if dtype is DType.BOOL:
            return bytes(values)
        if dtype is DType.FLOAT16:
            return struct.pack(f"<{len(values)}e", *values)
        packed = array.array(_ARRAY_CODES[dtype], values)
    except (OverflowError, struct.error) as error:
        raise ConfigError(f"input {tensor.name} has a number that is no {tensor.datatype}") from error
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _flat(value: Any, tensor: _Input) -> list[Any]:
    values = [value]
    for size in tensor.shape:
        if any(not isinstance(one, list) or len(one) != size for one in values):
            raise ConfigError(f"input {tensor.name} is not nested as its shape {list(tensor.shape)} says")
        values = list(itertools.chain.from_iterable(values))
    return values


def _numbers(tensor: TensorBytes) -> list[float] | list[int] | list[bool]:
    if tensor.dtype is DType.BOOL:
        return list(map(bool, tensor.data))
    if tensor.dtype is DType.FLOAT16:
        return list(struct.unpack(f"<{len(tensor.data) // 2}e", tensor.data))
    values: array.array[Any] = array.array(_ARRAY_CODES[tensor.dtype])
    values.frombytes(tensor.data)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


def _decode(data: bytes | memoryview | msgspec.Raw, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"the request does not follow the protocol: {error}") from error


def _convert(values: Sequence[Any], kind: Any) -> Any:
    try:
        return msgspec.convert(values, type=kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the request does not follow the protocol: {error}") from error
