"""Telemetry: closed windows of counts, events and sampled inputs, on their way from a device to the fleet.

Decides the rows, the batch and their codec (JSON rows under zlib, with limits on both sides of the compression), and
which stream matters more.
Rows are keyed by (device, boot, stream, seq); order by (boot, seq), never by arrival. Storing and sending are the
agent's business, storing and acknowledging the fleet's. Wire: docs/protocol.md.
"""

from __future__ import annotations

import enum
import math
import zlib
from types import MappingProxyType
from typing import Final

import msgspec

from .errors import ManifestError
from .ids import Digest, ReleaseId
from .sketch import Sketch
from .tensors import DType

BATCH_BYTES_MAX: Final = 64 << 10
"""Compressed size of a batch on the wire."""
BATCH_RAW_BYTES_MAX: Final = 1 << 20
"""Size of a batch after decompression."""
TENSOR_BYTES_MAX: Final = 1 << 20
"""Size of one sampled input before compression."""
TENSOR_RANK_MAX: Final = 8
LATENCY_BINS: Final = 80
"""Bin i of a latency histogram holds latencies in [2^(i/4), 2^((i+1)/4)) microseconds; the last one, all above."""


class Stream(enum.Enum):
    """Rows of one stream are numbered and acknowledged together."""

    WINDOWS = "windows"
    EVENTS = "events"
    SAMPLES = "samples"


PRIORITIES: Final = (Stream.EVENTS, Stream.WINDOWS, Stream.SAMPLES)
"""What is sent first and given up last comes first."""


class Counters(msgspec.Struct, frozen=True, omit_defaults=True):
    """Outcomes of the inferences in a window. Every field is a count."""

    inferences: int = 0
    errors: int = 0
    low_confidence: int = 0
    slow: int = 0
    labelled: int = 0
    wrong: int = 0

    def plus(self, other: Counters) -> Counters:
        """Add field by field."""
        return Counters(*(getattr(self, name) + getattr(other, name) for name in Counters.__struct_fields__))

    def minus(self, earlier: Counters) -> Counters:
        """Subtract field by field what was counted earlier."""
        return Counters(
            *(getattr(self, name) - getattr(earlier, name) for name in Counters.__struct_fields__)
        )


class InputQuality(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was wrong with requests in a window. Each kind counts a request once, whatever its size."""

    schema: int = 0
    """Tensors of other names, number, shapes or lengths than the model takes; never served."""
    dtype: int = 0
    """Tensors of another type; never served."""
    out_of_range: int = 0
    missing: int = 0
    """More NaN than the bundle allows."""
    non_finite: int = 0
    """Infinities."""
    refused: int = 0
    """Not served because the bundle's policy says so."""
    clipped: int = 0
    """Served after values were brought into their range."""
    volume_low: int = 0
    """Windows with fewer requests than expected."""
    volume_high: int = 0
    """Windows with more."""

    def plus(self, other: InputQuality) -> InputQuality:
        """Add field by field."""
        sums = [getattr(self, name) + getattr(other, name) for name in InputQuality.__struct_fields__]
        # The very default where nothing is counted: only then does the codec leave it out.
        return InputQuality(*map(int, sums)) if any(sums) else NO_VIOLATIONS


NO_VIOLATIONS: Final = InputQuality()


class Window(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one release did on one device in a closed span of time."""

    seq: int
    release: ReleaseId
    digest: Digest
    started_at_ms: int
    duration_ms: int
    counters: Counters
    latency: tuple[int, ...] = ()
    """Latency histogram, trailing zeros left out."""
    sketch: Sketch | None = None
    memory_bytes: int = 0
    """Highest resident memory of the worker in the window."""
    quality: InputQuality = NO_VIOLATIONS


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that happened on a device and is no window."""

    seq: int
    kind: str
    at_ms: int
    detail: str = ""
    release: ReleaseId | None = None


class Why(enum.Enum):
    """What a request was sampled for."""

    UNCERTAIN = "uncertain"
    """The model was less sure of it than of any other in its time."""
    RANDOM = "random"
    """By lot: every request of its time was as likely."""


class SampledTensor(msgspec.Struct, frozen=True):
    """One input of a sampled request: zlib over C order, little-endian."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    packed: bytes

    def unpack(self) -> bytes:
        """Return the bytes of all elements.

        Raises:
            ManifestError: They are not those of such a tensor, or more than TENSOR_BYTES_MAX.
        """
        if len(self.shape) > TENSOR_RANK_MAX or any(size < 0 for size in self.shape):
            raise ManifestError(f"a tensor of the shape {str(self.shape)[:80]}")
        length = math.prod(self.shape) * self.dtype.item_bytes
        if length > TENSOR_BYTES_MAX:
            raise ManifestError(f"a tensor of {str(length)[:40]} bytes, more than {TENSOR_BYTES_MAX}")
        inflater = zlib.decompressobj()
        try:
            # One byte more than it may have, for 0 would be no limit.
            data = inflater.decompress(self.packed, length + 1)
        except zlib.error as error:
            raise ManifestError(f"a tensor that is no zlib: {error}") from error
        if len(data) != length or not inflater.eof or inflater.unused_data:
            raise ManifestError(f"a tensor that does not have the {length} bytes of its shape")
        return data


class Sample(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one request showed a model, and what the model made of it. For a person to label and to train on again."""

    seq: int
    release: ReleaseId
    digest: Digest
    request: str
    inputs: tuple[SampledTensor, ...]
    at_ms: int
    why: Why
    predicted: int | None = None
    confidence: float | None = None
    """Highest probability, in [0, 1]; None if the model is no classifier."""


Row = Window | Event | Sample
ROW_TYPES: Final[MappingProxyType[Stream, type[Row]]] = MappingProxyType(
    {Stream.WINDOWS: Window, Stream.EVENTS: Event, Stream.SAMPLES: Sample}
)


def stream_of(row: Row) -> Stream:
    """Say where a row belongs."""
    return next(stream for stream, kind in ROW_TYPES.items() if isinstance(row, kind))


def time_ms(row: Row) -> int:
    """When it was, or began, Unix ms by the device's clock."""
    return row.started_at_ms if isinstance(row, Window) else row.at_ms


def moved(row: Row, shift_ms: int) -> Row:
    """The same row some time later; never before 1970."""
    at_ms = max(0, time_ms(row) + shift_ms)
    if isinstance(row, Window):
        return msgspec.structs.replace(row, started_at_ms=at_ms)
    return msgspec.structs.replace(row, at_ms=at_ms)


class DropReason(enum.Enum):
    """Why a device gave a row up. The value is the name of its count in `Drops`."""

    EVICTED = "evicted"
    """The buffer or the disk was full, and the row was among the oldest."""
    REFUSED = "refused"
    """The fleet said that it will never store it."""
    TOO_LONG = "too_long"
    """No batch can carry it."""
    UNREADABLE = "unreadable"
    """It is in the file, but is no row any more."""
    DISK_REFUSED = "disk_refused"
    """The disk refused it until memory was full too."""
    STARTED_OVER = "started_over"
    """It was in a file that could not be read and was set aside."""
    UNEXPLAINED = "unexplained"
    """It is gone from the file by another hand, or was dropped by an agent that did not count reasons yet."""


class Drops(msgspec.Struct, frozen=True, omit_defaults=True):
    """Rows dropped, by `DropReason`. A reason that only a newer device knows is not read: the sum may be below `dropped`."""

    evicted: int = 0
    refused: int = 0
    too_long: int = 0
    unreadable: int = 0
    disk_refused: int = 0
    started_over: int = 0
    unexplained: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        # Every field is a count; the agent asks several times a second.
        return sum(msgspec.structs.astuple(self))

    def count(self, reason: DropReason) -> int:
        """Rows dropped for one reason."""
        rows: int = getattr(self, reason.value)
        return rows

    def plus(self, reason: DropReason, rows: int) -> Drops:
        """Add rows to one reason."""
        # Adding nothing gives the very same: only then does the codec leave an empty one out.
        return (
            self if not rows else msgspec.structs.replace(self, **{reason.value: self.count(reason) + rows})
        )


NO_DROPS: Final = Drops()


class Loss(msgspec.Struct, frozen=True, omit_defaults=True):
    """Exact counts of rows of one stream since the buffer was created."""

    produced: int = 0
    acknowledged: int = 0
    dropped: int = 0
    reasons: Drops = NO_DROPS
    """`dropped` by reason; empty from devices that do not count reasons."""
    sent: int = 0
    """Rows that were handed to the link at least once, before this batch; 0 from devices that do not count them."""


class Batch(msgspec.Struct, frozen=True, omit_defaults=True):
    """Rows of one boot and stream, in order of seq; either in their turn, or ahead of it."""

    boot: str
    windows: tuple[Window, ...] = ()
    events: tuple[Event, ...] = ()
    loss: Loss = Loss()
    samples: tuple[Sample, ...] = ()
    ahead_windows: tuple[Window, ...] = ()
    """The newest, while older ones wait. They are stored, not acknowledged, and come again in their turn. In fields of
    their own: a fleet that does not know them refuses such a batch, rather than acknowledge what it has not got."""
    ahead_events: tuple[Event, ...] = ()

    @property
    def rows(self) -> tuple[Window, ...] | tuple[Event, ...] | tuple[Sample, ...]:
        """The rows, of whichever stream."""
        return self.windows or self.events or self.samples

    @property
    def is_ahead(self) -> bool:
        """Whether it holds rows ahead of their turn."""
        return bool(self.ahead_windows or self.ahead_events)

    def ahead(self) -> Batch:
        """The same windows or events, ahead of their turn."""
        return Batch(self.boot, loss=self.loss, ahead_windows=self.windows, ahead_events=self.events)

    def in_turn(self) -> Batch:
        """The same rows as if their turn had come; a batch that has both kinds keeps what is ahead."""
        if self.rows or not self.is_ahead:
            return self
        return Batch(self.boot, self.ahead_windows, self.ahead_events, self.loss)


def encode_row(row: Row) -> bytes:
    """Bytes of one row, as the device's buffer holds it."""
    return msgspec.json.encode(row)


def encode_batch(batch: Batch) -> bytes:
    """Compress a batch for the wire; `decode_batch(encode_batch(b)) == b`."""
    return zlib.compress(msgspec.json.encode(batch), 6)


def decode_batch(data: bytes) -> Batch:
    """Read a batch.

    Raises:
        ManifestError: Too long before or after decompression, not zlib, not JSON, or not a batch.
    """
    if len(data) > BATCH_BYTES_MAX:
        raise ManifestError(f"a batch of {len(data)} bytes, more than {BATCH_BYTES_MAX}")
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data, BATCH_RAW_BYTES_MAX)
        if inflater.unconsumed_tail or not inflater.eof:
            raise ManifestError(f"a batch that is cut, or inflates to more than {BATCH_RAW_BYTES_MAX} bytes")
        return msgspec.json.decode(raw, type=Batch)
    except (zlib.error, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"not a batch: {error}") from error


def latency_bin(latency_us: float) -> int:
    """Bin of a latency.

    >>> latency_bin(0.2), latency_bin(1.0), latency_bin(1000.0), latency_bin(1e12)
    (0, 0, 39, 79)
    """
    if latency_us < 1.0:
        return 0
    mantissa, exponent = math.frexp(latency_us)
    # 2^(i/4): four bins to an octave; mantissa is in [0.5, 1)
    quarter = (
        0
        if mantissa < 0.5946035575013605
        else 1
        if mantissa < 0.7071067811865476
        else 2
        if mantissa < 0.8408964152537145
        else 3
    )
    return min((exponent - 1) * 4 + quarter, LATENCY_BINS - 1)
