"""What the supervisor and a worker say to each other, as bytes.

Decides the frame: a fixed header, tensors as raw bytes, everything else as typed JSON. Needs no numpy, so the supervisor
stays small. Moving frames is `channel`'s business; who says what when, `supervisor`'s and `worker`'s. Both ends run on one machine,
yet a worker has foreign code in it, so every length is checked before memory is given to it. Integers are little-endian
and tensor data start at multiples of 8, so that the worker can use them where they lie.
"""

from __future__ import annotations

import enum
import functools
import math
import struct
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import msgspec

from edgeml import errors
from edgeml.errors import BackendError, BudgetError, EdgemlError, ManifestError
from edgeml.ids import Digest
from edgeml.manifest import Manifest
from edgeml.sketch import Sketch
from edgeml.telemetry import NO_VIOLATIONS, InputQuality
from edgeml.tensors import DType

if TYPE_CHECKING:
    from collections.abc import Sequence

PAYLOAD_BYTES_MAX: Final = 64 << 20
TENSORS_MAX: Final = 64
RANK_MAX: Final = 8
VERSION: Final = 2

_HEADER: Final = struct.Struct("<4sIQ")
"""What every frame starts with (b"em", version, kind), request id, length of the payload."""
HEADER_BYTES: Final = _HEADER.size
_COUNTS: Final = struct.Struct("<II")
"""What tensors start with: their number, and the length of all their heads."""
_TIMING: Final = struct.Struct("<dq")
_HEADS: Final = tuple(struct.Struct(f"<BB6x{rank}Q") for rank in range(RANK_MAX + 1))
_DTYPES: Final = tuple(DType)
_CODES: Final = {dtype: code for code, dtype in enumerate(_DTYPES)}
HEADS_BYTES_MAX: Final = TENSORS_MAX * _HEADS[-1].size

Buffer: TypeAlias = bytes | bytearray | memoryview
_Message = TypeVar("_Message")


class Kind(enum.IntEnum):
    """What a frame carries. The supervisor asks, the worker answers each with the next kind, or with FAILURE."""

    LOAD = 1
    LOADED = 2
    INFER = 3
    ANSWER = 4
    GOLDEN = 5
    COMPARED = 6
    TAKE = 7
    TAKEN = 8
    STOP = 9
    STOPPED = 10
    FAILURE = 11


class Place(enum.IntEnum):
    """Where a frame's payload is: behind its header, or in memory that both ends share."""

    BEHIND = 0
    SHARED = 0x80


SHAREABLE: Final = frozenset({Kind.INFER, Kind.ANSWER})
"""What may lie in shared memory: frames of tensors, which are copied before they are believed. JSON is parsed where it
lies, and must not change meanwhile."""
_LEADS: Final = {
    (kind, place): b"em" + bytes((VERSION, kind | place))
    for kind in Kind
    for place in Place
    if place is Place.BEHIND or kind in SHAREABLE
}
_KINDS: Final = {lead: found for found, lead in _LEADS.items()}


class TensorBytes(msgspec.Struct, frozen=True):
    """A tensor as it lies in memory: C order, little-endian. `data` has items of one byte."""

    dtype: DType
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview


class Answer(msgspec.Struct, frozen=True):
    """What a model said. `predicted` is the class of a classifier's answer to one sample."""

    outputs: tuple[TensorBytes, ...]
    latency_us: float
    predicted: int | None


class LoadRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which bundle to load."""

    path: str
    digest: Digest
    threads: int


class LoadResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was loaded, the worker's resident memory then, and from which latency on its monitor calls an answer slow."""

    manifest: Manifest
    runtime: str
    memory_bytes: int
    latency_slow_ms: float | None = None


class Taken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was counted since the last one was taken. `memory_bytes` is the highest resident memory since then."""

    sketch: Sketch | None
    low_confidence: int
    memory_bytes: int
    quality: InputQuality = NO_VIOLATIONS


class Failure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An error on its way from the worker to the caller."""

    kind: str
    message: str
    hint: str = ""
    budget: float = 0.0
    observed: float = 0.0
    unit: str = ""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Describe an error; what is not edgeml's own becomes a BackendError."""
        if isinstance(error, BudgetError):
            return cls("BudgetError", error.message, error.hint, error.budget, error.observed, error.unit)
        if isinstance(error, EdgemlError):
            return cls(type(error).__name__, error.message, error.hint)
        first_line = next(iter(str(error).strip().splitlines()), "")[:300]
        return cls("BackendError", f"the worker failed: {type(error).__name__} {first_line}".rstrip())

    def error(self) -> EdgemlError:
        """Make the error again, of the class it had."""
        if self.kind == "BudgetError":
            return BudgetError(
                self.message, budget=self.budget, observed=self.observed, unit=self.unit, hint=self.hint
            )
        known = getattr(errors, self.kind, None)
        if not (isinstance(known, type) and issubclass(known, EdgemlError)):
            known = BackendError
        return known(self.message, hint=self.hint)


def encode_header(kind: Kind, request_id: int, length: int, place: Place = Place.BEHIND) -> bytes:
    """Lay out a header.

    Raises:
        ValueError: The payload would be longer than PAYLOAD_BYTES_MAX.
    """
    if length > PAYLOAD_BYTES_MAX:
        raise ValueError(f"a frame of {length} bytes, more than {PAYLOAD_BYTES_MAX}")
    return _HEADER.pack(_LEADS[kind, place], request_id, length)


def decode_header(data: Buffer) -> tuple[Kind, Place, int, int]:
    """Read a header into kind, place, request id and length of the payload in bytes.

    Raises:
        ManifestError: It is none, or announces more than PAYLOAD_BYTES_MAX.
    """
    if len(data) < HEADER_BYTES:
        raise ManifestError(f"a frame's header of {len(data)} bytes, not {HEADER_BYTES}")
    lead, request_id, length = _HEADER.unpack_from(data)
    found = _KINDS.get(lead)
    if found is None:
        raise ManifestError("a frame that starts with something else than a header")
    if length > PAYLOAD_BYTES_MAX:
        raise ManifestError(f"a frame of {length} bytes, more than {PAYLOAD_BYTES_MAX}")
    return *found, request_id, length


def encode_heads(tensors: Sequence[TensorBytes]) -> bytes:
    """Lay out types and shapes of tensors, which come before all data.

    Raises:
        ValueError: Too many tensors or dimensions.
    """
    if len(tensors) > TENSORS_MAX or any(len(tensor.shape) > RANK_MAX for tensor in tensors):
        raise ValueError(f"more than {TENSORS_MAX} tensors, or one of rank above {RANK_MAX}")
    heads = [_HEADS[len(t.shape)].pack(_CODES[t.dtype], len(t.shape), *t.shape) for t in tensors]
    return b"".join((_COUNTS.pack(len(tensors), sum(map(len, heads))), *heads))


def encode_tensors(tensors: Sequence[TensorBytes], heads: bytes | None = None) -> list[Buffer]:
    """Lay out tensors as parts of a payload; data are not copied. `heads` are theirs, if they are known already.

    Raises:
        ValueError: Too many tensors or dimensions.
    """
    parts: list[Buffer] = [encode_heads(tensors) if heads is None else heads]
    for tensor in tensors:
        parts.append(tensor.data)
        padding = -len(tensor.data) % 8
        if padding:
            parts.append(bytes(padding))
    return parts


class Layout(msgspec.Struct, frozen=True):
    """Where tensors lie in a payload: `spans[i]` are the first and the one after the last byte of tensor i."""

    dtypes: tuple[DType, ...]
    shapes: tuple[tuple[int, ...], ...]
    spans: tuple[tuple[int, int], ...]
    length: int


def read_layout(payload: memoryview, start: int = 0) -> Layout:
    """Find the tensors of `payload[start:]`. Equal heads give the same object, mostly.

    Raises:
        ManifestError: Not tensors, cut short, or followed by something else.
    """
    if len(payload) - start < _COUNTS.size:
        raise ManifestError("tensors that are cut short")
    _, heads_bytes = _COUNTS.unpack_from(payload, start)
    if heads_bytes > HEADS_BYTES_MAX:
        raise ManifestError(f"heads of tensors of {heads_bytes} bytes, more than {HEADS_BYTES_MAX}")
    layout = _parse_heads(bytes(payload[start : start + _COUNTS.size + heads_bytes]))
    if layout.length != len(payload) - start:
        raise ManifestError("tensors that are cut short, or followed by something else")
    return layout


def decode_tensors(payload: memoryview, start: int = 0) -> tuple[TensorBytes, ...]:
    """Read tensors from `payload[start:]`; their data are copied, so that they outlive the frame.

    Raises:
        ManifestError: Not tensors, cut short, or followed by something else.
    """
    layout = read_layout(payload, start)
    return tuple(
        [
            TensorBytes(dtype, shape, bytes(payload[start + first : start + end]))
            for dtype, shape, (first, end) in zip(layout.dtypes, layout.shapes, layout.spans, strict=True)
        ]
    )


@functools.lru_cache(maxsize=64)
def _parse_heads(heads: bytes) -> Layout:
    count, heads_bytes = _COUNTS.unpack_from(heads)
    if count > TENSORS_MAX or len(heads) != _COUNTS.size + heads_bytes:
        raise ManifestError("too many tensors, or their heads are cut short")
    at, end = _COUNTS.size, len(heads)
    dtypes, shapes, spans = [], [], []
    for _ in range(count):
        code, rank = heads[at : at + 2] if len(heads) - at >= 8 else (255, 0)
        if code >= len(_DTYPES) or rank > RANK_MAX or len(heads) - at < _HEADS[rank].size:
            raise ManifestError("a tensor of an unknown type, of too many dimensions, or cut short")
        shape = _HEADS[rank].unpack_from(heads, at)[2:]
        at += _HEADS[rank].size
        size = _DTYPES[code].item_bytes * math.prod(shape)
        # Also an empty tensor may not have absurd dimensions: numpy would refuse them with an error of its own.
        if end + size > len(heads) + PAYLOAD_BYTES_MAX or any(one > PAYLOAD_BYTES_MAX for one in shape):
            raise ManifestError(f"a tensor of shape {shape}, longer than a frame")
        dtypes.append(_DTYPES[code])
        shapes.append(shape)
        spans.append((end, end + size))
        end += size + (-size & 7)
    if at != len(heads):
        raise ManifestError("heads of tensors that are followed by something else")
    return Layout(tuple(dtypes), tuple(shapes), tuple(spans), end)


def encode_answer(answer: Answer) -> list[Buffer]:
    """Lay out an answer as parts of a payload."""
    timing = _TIMING.pack(answer.latency_us, -1 if answer.predicted is None else answer.predicted)
    return [timing, *encode_tensors(answer.outputs)]


def decode_answer(payload: memoryview) -> Answer:
    """Read an answer; its data are copied, so that they outlive the frame.

    Raises:
        ManifestError: It is none.
    """
    if len(payload) < _TIMING.size:
        raise ManifestError("an answer that is cut short")
    latency_us, predicted = _TIMING.unpack_from(payload)
    return Answer(decode_tensors(payload, _TIMING.size), latency_us, None if predicted < 0 else predicted)


def encode_message(message: msgspec.Struct) -> list[Buffer]:
    """Lay out a control message as the one part of a payload."""
    return [msgspec.json.encode(message)]


def decode_message(payload: memoryview, kind: type[_Message]) -> _Message:
    """Read a control message.

    Raises:
        ManifestError: Not JSON, or not of this kind.
    """
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"not a {kind.__name__}: {error}") from error
