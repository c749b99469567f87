"""Frames between the supervisor and a worker.

Decides the bytes on the socket: a fixed header, tensors as raw bytes, everything else as typed JSON. Needs no numpy, so
the supervisor stays small. Who sends what when is `worker`'s and `supervisor`'s business. Both ends run on one machine,
yet a worker has foreign code in it, so every length is checked before memory is given to it. Integers are little-endian
and tensor data start at multiples of 8, so that the worker can use them where they lie.
"""

from __future__ import annotations

import enum
import struct
import time
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import msgspec

from edgeml import errors
from edgeml.errors import BackendError, BudgetError, EdgemlError, ManifestError
from edgeml.ids import Digest
from edgeml.manifest import Manifest
from edgeml.sketch import Sketch
from edgeml.tensors import DType

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

PAYLOAD_BYTES_MAX: Final = 64 << 20
TENSORS_MAX: Final = 64
RANK_MAX: Final = 8
BUFFER_BYTES: Final = 64 << 10
"""What a channel receives into at first; it grows with the data that really arrive."""
VERSION: Final = 1

_MAGIC: Final = b"em"
_HEADER: Final = struct.Struct("<2sBBIQ")
_COUNT: Final = struct.Struct("<Q")
_TIMING: Final = struct.Struct("<dq")
_HEADS: Final = tuple(struct.Struct(f"<BB6x{rank}Q") for rank in range(RANK_MAX + 1))
_DTYPES: Final = tuple(DType)
_CODES: Final = {dtype: code for code, dtype in enumerate(_DTYPES)}
_ITEM_BYTES: Final = tuple(dtype.item_bytes for dtype in _DTYPES)
_PADDING: Final = tuple(bytes(-length % 8) for length in range(8))

Buffer: TypeAlias = bytes | bytearray | memoryview
_Message = TypeVar("_Message")


class Kind(enum.IntEnum):
    """What a frame carries. The supervisor asks, the worker gives one answer to each."""

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


_KINDS: Final = {int(kind): kind for kind in Kind}


class TensorBytes(msgspec.Struct, frozen=True):
    """A tensor as it lies in memory: C order, little-endian."""

    dtype: DType
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview


class Answer(msgspec.Struct, frozen=True):
    """What a model said. `predicted` is the class of a classifier's answer to one sample."""

    outputs: tuple[TensorBytes, ...]
    latency_us: float
    predicted: int | None


class Frame(msgspec.Struct, frozen=True):
    """One received frame. `payload` is valid until the channel receives the next one."""

    kind: Kind
    request_id: int
    payload: memoryview


class LoadRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which bundle to load."""

    path: str
    digest: Digest
    threads: int


class LoadResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was loaded, and the worker's resident memory then."""

    manifest: Manifest
    runtime: str
    memory_bytes: int


class Taken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was counted since the last one was taken. `memory_bytes` is the highest resident memory since then."""

    sketch: Sketch | None
    low_confidence: int
    memory_bytes: int


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
            return BudgetError(self.message, budget=self.budget, observed=self.observed, unit=self.unit, hint=self.hint)
        known = getattr(errors, self.kind, None)
        if not (isinstance(known, type) and issubclass(known, EdgemlError)):
            known = BackendError
        return known(self.message, hint=self.hint)


class Channel:
    """Frames over one end of a stream socket, which it owns. For one thread at a time.

    A frame is received into a buffer that is used again for the next one.
    """

    def __init__(self, stream: socket.socket) -> None:
        self._socket = stream
        self._view = memoryview(bytearray(BUFFER_BYTES))
        self._filled = 0
        self._consumed = 0
        self._timeout_s: float | None = None
        stream.settimeout(None)

    def send(self, kind: Kind, request_id: int, parts: Sequence[Buffer], timeout_s: float | None = None) -> None:
        """Send one frame; `parts` are bytes-like and sent without being joined.

        Raises:
            OSError: The peer is gone.
            TimeoutError: It does not read.
            ValueError: The frame would be too long.
        """
        sizes = [len(part) if isinstance(part, bytes) else memoryview(part).nbytes for part in parts]
        length = sum(sizes)
        if length > PAYLOAD_BYTES_MAX:
            raise ValueError(f"a frame of {length} bytes, more than {PAYLOAD_BYTES_MAX}")
        self._limit(timeout_s)
        header = _HEADER.pack(_MAGIC, VERSION, kind, request_id, length)
        sent = self._socket.sendmsg([header, *parts])
        if sent < len(header) + length:
            # The socket's buffer is full: the frame is large, and one more copy of the rest is the lesser cost.
            self._socket.sendall(memoryview(b"".join([header, *parts]))[sent:])

    def receive(self, timeout_s: float | None = None) -> Frame:
        """Wait for one frame.

        Raises:
            EOFError: The peer closed its end, perhaps by dying.
            OSError: The connection failed.
            TimeoutError: Nothing came, or too slowly.
            ManifestError: What came is no frame.
        """
        self._limit(timeout_s)
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        if self._consumed:
            left = self._filled - self._consumed
            if left:
                self._view[:left] = bytes(self._view[self._consumed : self._filled])
            self._filled, self._consumed = left, 0
        while self._filled < _HEADER.size:
            self._receive_some(deadline_s)
        kind, request_id, length = decode_header(self._view[: _HEADER.size])
        end = _HEADER.size + length
        while self._filled < end:
            self._receive_some(deadline_s, end)
        self._consumed = end
        return Frame(kind, request_id, self._view[_HEADER.size : end])

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _limit(self, timeout_s: float | None) -> None:
        if timeout_s != self._timeout_s:
            self._socket.settimeout(timeout_s)
            self._timeout_s = timeout_s

    def _receive_some(self, deadline_s: float | None, wanted: int = 0) -> None:
        if self._filled == len(self._view):
            larger = memoryview(bytearray(min(wanted, 4 * len(self._view))))
            larger[: self._filled] = self._view
            self._view = larger
        received = self._socket.recv_into(self._view[self._filled :])
        if not received:
            raise EOFError("the other end closed")
        self._filled += received
        if deadline_s is not None and time.monotonic() > deadline_s:
            raise TimeoutError("the other end sends too slowly")


def decode_header(data: Buffer) -> tuple[Kind, int, int]:
    """Read a header into kind, request id and length of the payload in bytes.

    Raises:
        ManifestError: It is none, or announces more than PAYLOAD_BYTES_MAX.
    """
    if len(data) != _HEADER.size:
        raise ManifestError(f"a frame's header of {len(data)} bytes, not {_HEADER.size}")
    magic, version, code, request_id, length = _HEADER.unpack(data)
    kind = _KINDS.get(code)
    if magic != _MAGIC or version != VERSION or kind is None:
        raise ManifestError("a frame that starts with something else than a header")
    if length > PAYLOAD_BYTES_MAX:
        raise ManifestError(f"a frame of {length} bytes, more than {PAYLOAD_BYTES_MAX}")
    return kind, request_id, length


def encode_tensors(tensors: Sequence[TensorBytes]) -> list[Buffer]:
    """Lay out tensors as parts of a payload; data are not copied.

    Raises:
        ValueError: Too many tensors or dimensions.
    """
    if len(tensors) > TENSORS_MAX:
        raise ValueError(f"{len(tensors)} tensors, more than {TENSORS_MAX}")
    parts: list[Buffer] = []
    lead = _COUNT.pack(len(tensors))
    for tensor in tensors:
        rank = len(tensor.shape)
        if rank > RANK_MAX:
            raise ValueError(f"a tensor of rank {rank}, more than {RANK_MAX}")
        parts += (lead + _HEADS[rank].pack(_CODES[tensor.dtype], rank, *tensor.shape), tensor.data)
        size = len(tensor.data) if isinstance(tensor.data, bytes) else memoryview(tensor.data).nbytes
        lead = _PADDING[size & 7]
    parts.append(lead)
    return parts


def decode_tensors(payload: memoryview, start: int = 0) -> tuple[TensorBytes, ...]:
    """Read tensors from `payload[start:]`; their data are views into it.

    Raises:
        ManifestError: Not tensors, cut short, or followed by something else.
    """
    end = len(payload)
    if end - start < _COUNT.size:
        raise ManifestError("tensors that are cut short")
    (count,) = _COUNT.unpack_from(payload, start)
    if count > TENSORS_MAX:
        raise ManifestError(f"{count} tensors, more than {TENSORS_MAX}")
    at = start + _COUNT.size
    tensors = []
    for _ in range(count):
        if end - at < 8:
            raise ManifestError("tensors that are cut short")
        code, rank = payload[at], payload[at + 1]
        if code >= len(_DTYPES) or rank > RANK_MAX or end - at < 8 + 8 * rank:
            raise ManifestError("a tensor of an unknown type, of too many dimensions, or cut short")
        shape = _HEADS[rank].unpack_from(payload, at)[2:]
        at += 8 + 8 * rank
        size = _ITEM_BYTES[code]
        for dimension in shape:
            size *= dimension
        # Empty tensors may not carry absurd dimensions either: numpy would refuse them with an error of its own.
        if size > end - at or any(dimension > PAYLOAD_BYTES_MAX for dimension in shape):
            raise ManifestError(f"a tensor of shape {shape}, longer than its frame")
        tensors.append(TensorBytes(_DTYPES[code], shape, payload[at : at + size]))
        at += size + (-size & 7)
    if at != end:
        raise ManifestError("tensors that are cut short, or followed by something else")
    return tuple(tensors)


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
    outputs = decode_tensors(payload, _TIMING.size)
    copies = tuple(TensorBytes(tensor.dtype, tensor.shape, bytes(tensor.data)) for tensor in outputs)
    return Answer(copies, latency_us, None if predicted < 0 else predicted)


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
