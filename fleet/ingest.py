"""Reads what devices send, and refuses what cannot be true.

Decides which messages are well-formed: the topic is a device's own, the size is within the topic's limit, the content
follows its format, says the same device as the topic, and every number is one that the database can hold and add.
Pure: bytes in, typed messages out. What they change is decided in `twins` and stored by `telemetry_store`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgeml import pull, telemetry, topics, twin
from edgeml.errors import ConfigError, ManifestError
from edgeml.ids import DeviceId, ModelName, ReleaseId, TenantId, is_digest, model_of
from edgeml.sketch import Sketch
from edgeml.telemetry import LATENCY_BINS, Batch, DropReason, Event, Loss, Sample, Stream, Window
from edgeml.topics import RULES, Leaf
from edgeml.transport import Message

COUNT_MAX: Final = 1 << 50
"""Counts above this are no counts; sums of many of them still fit the database's 64 bits."""
SUM_MAX: Final = 1 << 62
"""Sums of standardised values carry more bits than counts."""
TEXT_MAX: Final = 1024
NAME_MAX: Final = 128
SAMPLE_TENSORS_MAX: Final = 64
CLOCK_SLACK_MS: Final = 24 * 3600 * 1000
"""A device's clock that is further off than this is not believed."""


@dataclass(frozen=True, slots=True)
class PresenceHeard:
    """A device, or its last will, says whether it is there."""

    device: DeviceId
    presence: twin.Presence


@dataclass(frozen=True, slots=True)
class BirthHeard:
    """A device says what it is."""

    device: DeviceId
    birth: twin.Birth


@dataclass(frozen=True, slots=True)
class ReportHeard:
    """A device says what it runs of one model."""

    device: DeviceId
    model: ModelName
    reported: twin.Reported


@dataclass(frozen=True, slots=True)
class RowsHeard:
    """A device hands over telemetry."""

    device: DeviceId
    stream: Stream
    batch: Batch
    ahead: bool = False
    """The rows came ahead of their turn: older ones may be missing."""

    @property
    def last_seq(self) -> int:
        """Highest sequence number in the batch."""
        return self.batch.rows[-1].seq


@dataclass(frozen=True, slots=True)
class PullHeard:
    """A device asks for a piece of a file."""

    device: DeviceId
    request: pull.Request


Heard = PresenceHeard | BirthHeard | ReportHeard | RowsHeard
"""What is stored."""


def sender(topic: str) -> str:
    """Name whose message this is, for the log; empty if the topic says none."""
    address = topics.parse(topic)
    return address.device if address else ""


def read(message: Message, tenant: TenantId) -> Heard | PullHeard:
    """Read a message from a device.

    Raises:
        ManifestError: The topic is not one that devices of this tenant publish to, the message is too long or does not
            follow its format, speaks for another device, or holds a value that cannot be true.
    """
    address = topics.parse(message.topic)
    if (
        address is None
        or address.tenant != tenant
        or RULES[address.leaf].direction is not topics.Direction.UP
    ):
        raise ManifestError(
            f"topic {message.topic[:NAME_MAX]!r} is none that a device of {tenant} publishes to"
        )
    limit = RULES[address.leaf].bytes_max
    if len(message.payload) > limit:
        raise ManifestError(f"{len(message.payload)} bytes on {address.leaf.value}, more than {limit}")
    device = address.device
    match address.leaf:
        case Leaf.STATE:
            presence = twin.decode(message.payload, twin.Presence)
            _check_text(presence.session, "session", NAME_MAX)
            return PresenceHeard(device, presence)
        case Leaf.BIRTH:
            return BirthHeard(device, _checked_birth(twin.decode(message.payload, twin.Birth), device))
        case Leaf.REPORTED:
            assert address.model is not None
            reported = _checked_report(twin.decode(message.payload, twin.Reported), address.model)
            return ReportHeard(device, address.model, reported)
        case Leaf.PULL:
            return PullHeard(device, pull.decode_request(message.payload))
        case _:
            assert address.stream is not None
            batch = telemetry.decode_batch(message.payload)
            in_turn = _checked_batch(batch.in_turn(), address.stream)
            return RowsHeard(device, address.stream, in_turn, batch.is_ahead)


def judged_at_ms(window: Window, received_at_ms: int) -> int:
    """When a window counts: when it began, unless the device's clock cannot be right."""
    believable = abs(received_at_ms - window.started_at_ms) <= CLOCK_SLACK_MS
    return window.started_at_ms if believable else received_at_ms


def _checked_birth(birth: twin.Birth, device: DeviceId) -> twin.Birth:
    if birth.device != device:
        raise ManifestError(f"a birth of {birth.device[:NAME_MAX]!r} on the topic of {device}")
    _check_text(birth.session, "session", NAME_MAX)
    _check_text(birth.profile, "profile", NAME_MAX)
    return birth


def _checked_report(reported: twin.Reported, model: ModelName) -> twin.Reported:
    for name in ("generation", "fetched_bytes"):
        _check_count(getattr(reported, name), name)
    _check_text(reported.deployment or "-", "deployment", NAME_MAX)
    _check_text(reported.reason or "-", "reason", TEXT_MAX * 4)
    for slot in (reported.slots.current, reported.slots.previous, reported.slots.factory):
        if slot is not None:
            if _checked_model(slot.release) != model:
                raise ManifestError(f"a slot with {slot.release} on the topic of {model}")
            _check_digest(slot.digest, "slot")
    return reported


def _checked_batch(batch: Batch, stream: Stream) -> Batch:
    _check_text(batch.boot, "boot", NAME_MAX)
    rows = batch.rows
    counts = {
        Stream.WINDOWS: len(batch.windows),
        Stream.EVENTS: len(batch.events),
        Stream.SAMPLES: len(batch.samples),
    }
    if not rows or counts[stream] != sum(counts.values()) or batch.is_ahead:
        raise ManifestError(
            f"a batch on {stream.value} that holds none of its rows, rows of another stream, or both in turn and ahead"
        )
    _check_loss(batch.loss)
    previous = -1
    for row in rows:
        _check_count(row.seq, "seq")
        if row.seq <= previous:
            raise ManifestError(f"rows out of order: seq {row.seq} after {previous}")
        previous = row.seq
        match row:
            case Window():
                _check_window(row)
            case Event():
                _check_event(row)
            case Sample():
                _check_sample(row)
    return batch


def _check_loss(loss: Loss) -> None:
    for name in ("produced", "acknowledged", "dropped", "sent"):
        _check_count(getattr(loss, name), name)
    for reason in DropReason:
        _check_count(loss.reasons.count(reason), reason.value)
    # Fewer is possible: a newer device may count a reason that is not known here.
    if loss.reasons.total > loss.dropped:
        raise ManifestError(
            f"{loss.reasons.total} rows dropped for a reason, more than {loss.dropped} in all"
        )


def _check_window(window: Window) -> None:
    _checked_model(window.release)
    _check_digest(window.digest, "bundle")
    for name in ("started_at_ms", "duration_ms", "memory_bytes"):
        _check_count(getattr(window, name), name)
    for name in telemetry.Counters.__struct_fields__:
        _check_count(getattr(window.counters, name), name)
    for name in telemetry.InputQuality.__struct_fields__:
        _check_count(getattr(window.quality, name), name)
    if len(window.latency) > LATENCY_BINS:
        raise ManifestError(f"a latency histogram of {len(window.latency)} bins, more than {LATENCY_BINS}")
    for count in window.latency:
        _check_count(count, "latency")
    if window.sketch is not None:
        _check_sketch(window.sketch)


def _check_sketch(sketch: Sketch) -> None:
    _check_digest(sketch.monitor, "monitor")
    _check_count(sketch.rows, "rows")
    if not len(sketch.counts) == len(sketch.sums) == len(sketch.squares):
        raise ManifestError("a sketch whose columns do not match")
    # By extremes, not one by one: a sketch has thousands of numbers, and this is the controller's hot path.
    for column in sketch.counts:
        for count in (min(column, default=0), max(column, default=0)):
            _check_count(count, "count")
    for number in (min(sketch.sums, default=0), max(sketch.sums, default=0)):
        if not -SUM_MAX <= number <= SUM_MAX:
            raise ManifestError(f"a sketch with the sum {str(number)[:40]}")
    if not 0 <= min(sketch.squares, default=0) <= max(sketch.squares, default=0) <= SUM_MAX:
        raise ManifestError("a sketch with a sum of squares that cannot be")


def _check_event(event: Event) -> None:
    _check_text(event.kind, "kind", NAME_MAX)
    _check_text(event.detail or "-", "detail", TEXT_MAX * 8)
    _check_count(event.at_ms, "at_ms")
    if event.release is not None:
        _checked_model(event.release)


def _check_sample(sample: Sample) -> None:
    _checked_model(sample.release)
    _check_digest(sample.digest, "bundle")
    _check_text(sample.request or "-", "request", NAME_MAX)
    _check_count(sample.at_ms, "at_ms")
    _check_count(sample.predicted or 0, "predicted")
    if sample.confidence is not None and not 0.0 <= sample.confidence <= 1.0:
        raise ManifestError(f"the confidence is {sample.confidence}")
    if not 0 < len(sample.inputs) <= SAMPLE_TENSORS_MAX:
        raise ManifestError(f"a sample of {len(sample.inputs)} inputs")
    for tensor in sample.inputs:
        _check_text(tensor.name, "input's name", NAME_MAX)
        try:
            tensor.unpack()
        except ManifestError as error:
            raise ManifestError(f"input {tensor.name[:NAME_MAX]}: {error.message}") from error


def _check_count(value: int, what: str) -> None:
    if not 0 <= value <= COUNT_MAX:
        raise ManifestError(f"{what} is {str(value)[:40]}")


def _check_digest(text: str, what: str) -> None:
    if not is_digest(text):
        raise ManifestError(f"the {what}'s digest is {text[:80]!r}")


def _checked_model(release: ReleaseId) -> ModelName:
    try:
        return model_of(release)
    except ConfigError as error:
        raise ManifestError(error.message[:200]) from error


def _check_text(text: str, what: str, length_max: int) -> None:
    # NUL is legal in JSON, but not in a PostgreSQL text.
    if not text or len(text) > length_max or "\x00" in text:
        raise ManifestError(f"{what} is {text[:40]!r}")
