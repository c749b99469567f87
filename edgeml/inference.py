"""The Open Inference Protocol, version 2, as both sides of it see it.

Decides the messages that describe what serves, how arrays become a request with binary tensors, how an answer becomes
arrays, and which error an answer's status means. What an endpoint accepts is `agent`'s business; connections are
`client`'s. numpy is imported when arrays are packed or unpacked: the device's supervisor reads these types too.

Source: https://github.com/kserve/open-inference-protocol, REST, with the binary tensor data extension.
"""

from __future__ import annotations

import http
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import msgspec

from .errors import BackendError, ConfigError, EdgemlError, ManifestError, TransferError
from .manifest import Manifest
from .tensors import DType, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.generic]

JSON_LENGTH_HEADER: Final = "Inference-Header-Content-Length"
ID_LENGTH_MAX: Final = 128
REPLY_BYTES_MAX: Final = 64 << 20
_Message = TypeVar("_Message")


class Quantization(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a tensor's integers stand for reals, as in `edgeml.tensors.TensorSpec`."""

    scale: float | None = None
    zero_point: int | None = None


class TensorMetadata(msgspec.Struct, frozen=True, omit_defaults=True):
    """An input or output in a model's metadata."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: Quantization = Quantization()

    @classmethod
    def of(cls, spec: TensorSpec) -> TensorMetadata:
        """Describe a tensor of a manifest."""
        return cls(spec.name, spec.dtype.protocol_name, spec.shape, Quantization(spec.scale, spec.zero_point))


class ModelParameters(msgspec.Struct, frozen=True):
    """What the protocol has no field for."""

    task: str
    scores: str
    labels: tuple[str, ...]


class ModelMetadata(msgspec.Struct, frozen=True):
    """What a model takes and gives."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    parameters: ModelParameters

    @classmethod
    def of(cls, manifest: Manifest) -> ModelMetadata:
        """Describe a variant as its callers see it: before and after the steps around the model."""
        manifest = manifest.surface
        return cls(
            manifest.model,
            (manifest.version,),
            manifest.runtime.value,
            tuple(map(TensorMetadata.of, manifest.inputs)),
            tuple(map(TensorMetadata.of, manifest.outputs)),
            ModelParameters(manifest.task.value, manifest.scores.value, manifest.labels),
        )


class ServerMetadata(msgspec.Struct, frozen=True):
    """What answers here. `models` is an addition to the protocol."""

    name: str
    version: str
    extensions: tuple[str, ...]
    models: tuple[str, ...]


class Feedback(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an earlier request really showed. An addition to the protocol."""

    id: Annotated[str, msgspec.Meta(max_length=ID_LENGTH_MAX)]
    label: Annotated[int, msgspec.Meta(ge=0)] | Annotated[str, msgspec.Meta(max_length=ID_LENGTH_MAX)]


class ReplyParameters(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the protocol has no field for: time in the model, and a classifier's choice for a single sample."""

    latency_us: float
    predicted: int | None = None
    label: str | None = None


class _Size(msgspec.Struct, frozen=True, omit_defaults=True):
    binary_data_size: int
    labels: tuple[str | None, ...] | None = None


class _Tensor(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: _Size


class _Binary(msgspec.Struct, frozen=True):
    binary_data: bool = True


class _Wanted(msgspec.Struct, frozen=True):
    name: str
    parameters: _Binary = _Binary()


class _Asked(msgspec.Struct, frozen=True, omit_defaults=True):
    binary_data_output: bool = False
    timeout: int = 0


class _Question(msgspec.Struct, frozen=True, omit_defaults=True):
    inputs: list[_Tensor]
    id: str = ""
    outputs: tuple[_Wanted, ...] = ()
    parameters: _Asked = _Asked()


class _Answer(msgspec.Struct, frozen=True):
    model_name: str
    parameters: ReplyParameters
    outputs: tuple[_Tensor, ...]
    model_version: str = ""
    id: str = ""


class _Refusal(msgspec.Struct, frozen=True):
    error: str
    matched: bool | None = None


class _Matched(msgspec.Struct, frozen=True):
    matched: bool


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent. One that is not `repeatable` is not sent again when the connection breaks while it is under way."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True


@dataclass(frozen=True, slots=True)
class Response:
    """What came back. `json_length` is how much of the body is JSON."""

    status: int
    body: bytes
    json_length: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's answer.

    `outputs` are read-only arrays by name, in the model's order. `predicted` and `label` are a classifier's choice for a
    single sample. `latency_us` is the time in the model. `request_id` names the request in feedback. `labels` are names of
    the classes in those outputs that a step of the bundle found, flattened; None where there is no class.
    """

    model: str
    version: str
    request_id: str
    outputs: Mapping[str, Array]
    latency_us: float
    predicted: int | None = None
    label: str | None = None
    labels: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)


def model_path(name: str) -> str:
    """Path of a model's resources.

    >>> model_path("a/b")
    '/v2/models/a%2Fb'
    """
    return f"/v2/models/{urllib.parse.quote(name, safe='')}"


def infer_request(
    model: str,
    inputs: Mapping[str, Array],
    request_id: str = "",
    outputs: tuple[str, ...] = (),
    timeout_s: float | None = None,
) -> Request:
    """Write a request for inference.

    Args:
        model: its name.
        inputs: an array for each of the model's inputs, of its types.
        request_id: what the request is called in feedback; empty: the endpoint finds a name.
        outputs: names of the outputs that are wanted; none: all.
        timeout_s: how long the request may wait for its turn; after that it is not run. None: as long as that takes.

    Raises:
        ConfigError: An array is of a type that no model takes.
    """
    import numpy as np

    described, blobs = [], []
    for name, given in inputs.items():
        array = np.asarray(given)
        try:
            dtype = DType(array.dtype.name)
        except ValueError as error:
            raise ConfigError(f"input {name} is {array.dtype}, which no model takes") from error
        data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        described.append(_Tensor(name, dtype.protocol_name, array.shape, _Size(len(data))))
        blobs.append(data)
    # Written out although they are defaults: an endpoint of somebody else has defaults of its own.
    timeout_us = 0 if timeout_s is None else max(int(timeout_s * 1e6), 1)
    parameters = _Asked(binary_data_output=not outputs, timeout=timeout_us)
    head = msgspec.json.encode(_Question(described, request_id, tuple(map(_Wanted, outputs)), parameters))
    headers = {"Content-Type": "application/octet-stream", JSON_LENGTH_HEADER: str(len(head))}
    return Request("POST", model_path(model) + "/infer", b"".join((head, *blobs)), headers)


def feedback_request(model: str, request_id: str, label: int | str) -> Request:
    """Write what an earlier request really showed."""
    body = msgspec.json.encode(Feedback(request_id, label))
    path = model_path(model) + "/feedback"
    return Request("POST", path, body, {"Content-Type": "application/json"}, repeatable=False)


def read_message(response: Response, kind: type[_Message]) -> _Message:
    """Read an answer in JSON.

    Raises:
        EdgemlError: It is a refusal, or no such answer.
    """
    if response.status != http.HTTPStatus.OK:
        raise refusal(response)
    return _decode(response.body[: response.json_length], kind)


def read_prediction(response: Response) -> Prediction:
    """Read an answer with binary tensors.

    Raises:
        EdgemlError: It is a refusal, or no such answer.
    """
    import numpy as np

    answer = read_message(response, _Answer)
    outputs: dict[str, Array] = {}
    at = response.json_length
    for one in answer.outputs:
        size = one.parameters.binary_data_size
        if not 0 <= size <= len(response.body) - at or min(one.shape, default=0) < 0:
            raise ManifestError(
                f"the agent's answer is not an answer: {one.name} has {size} bytes, {list(one.shape)[:8]}"
            )
        try:
            dtype = np.dtype(DType.from_protocol_name(one.datatype).value).newbyteorder("<")
            flat = np.frombuffer(response.body, np.uint8, size, at).view(dtype)
            outputs[one.name] = flat.reshape(one.shape)
        except (ValueError, OverflowError) as error:
            raise ManifestError(f"the agent's answer is not an answer: {error}") from error
        at += size
    if not outputs:
        raise ManifestError("the agent's answer has no outputs")
    more = answer.parameters
    return Prediction(
        answer.model_name,
        answer.model_version,
        answer.id,
        outputs,
        more.latency_us,
        more.predicted,
        more.label,
        {one.name: one.parameters.labels for one in answer.outputs if one.parameters.labels is not None},
    )


def read_matched(response: Response) -> bool:
    """Read the answer to feedback: whether the request is remembered.

    Raises:
        EdgemlError: It is another refusal, or no such answer.
    """
    if response.status == http.HTTPStatus.NOT_FOUND:
        said = _refused(response)
        if said is not None and said.matched is False:
            return False
    return read_message(response, _Matched).matched


def read_ready(response: Response) -> bool:
    """Read the answer to the question whether it is ready.

    Raises:
        EdgemlError: It is neither yes nor no.
    """
    if response.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        return False
    if response.status != http.HTTPStatus.OK:
        raise refusal(response)
    return True


def refusal(response: Response) -> EdgemlError:
    """Make the error of a status, by what the caller should do: fix the request, ask again later, or neither."""
    said = _refused(response)
    lines = said.error.splitlines() if said is not None else []
    message = lines[0] if lines else f"the agent answered {response.status}"
    if response.status in {429, 502, 503, 504}:
        return TransferError(message, hint="try again in a moment")
    if 400 <= response.status < 500:
        return ConfigError(message)
    return BackendError(message)


def _refused(response: Response) -> _Refusal | None:
    try:
        return msgspec.json.decode(response.body, type=_Refusal)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _decode(data: bytes, kind: type[_Message]) -> _Message:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(
            f"what answers is no agent: {error}", hint="check the URL; is something else listening there?"
        ) from error
