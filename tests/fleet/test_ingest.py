"""What a device may say: well-formed, its own, and possible. Everything else is refused with one error type."""

import zlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml import telemetry, topics, twin
from edgeml.errors import ManifestError
from edgeml.ids import DeviceId, ModelName, ReleaseId, TenantId
from edgeml.sketch import Sketch
from edgeml.telemetry import Batch, Counters, Drops, Event, InputQuality, Loss, Stream, Window
from edgeml.topics import Leaf
from edgeml.transport import Message
from edgeml.twin import Birth, DeviceState, Outcome, Presence, Reported, Slot, Slots
from fleet import ingest
from fleet.ingest import BirthHeard, PresenceHeard, ReportHeard, RowsHeard

TENANT = TenantId("main")
CAM = DeviceId("cam-1")
DIGEST = "a" * 64
MODEL = ModelName("digits")
RELEASE = ReleaseId("digits@1.0.0")
NOW_MS = 1_800_000_000_000


def topic(leaf, stream=None):
    return topics.device_topic(TENANT, CAM, leaf, MODEL if leaf is Leaf.REPORTED else stream)


def read(leaf, payload, stream=None):
    return ingest.read(Message(topic(leaf, stream), payload), TENANT)


def window(seq=1, **changes):
    return msgspec.structs.replace(
        Window(seq, RELEASE, DIGEST, NOW_MS, 60_000, Counters(inferences=10)), **changes
    )


def read_batch(batch, stream=Stream.WINDOWS):
    return read(Leaf.TELEMETRY, telemetry.encode_batch(batch), stream)


def test_every_kind_of_message_is_read():
    presence = Presence(online=True, session="s1")
    birth = Birth(device=CAM, session="s1", profile="generic-x86-64", agent_version="0.1.0")
    slots = Slots(Slot(RELEASE, DIGEST, "digits/1.0.0/v.edgeml", 1))
    reported = Reported(
        generation=3, deployment="d", state=DeviceState.IDLE, slots=slots, outcome=Outcome.COMMITTED
    )
    batch = Batch("b1", (window(),), loss=Loss(produced=1))
    events = Batch("b1", events=(Event(1, "crash", NOW_MS, "", RELEASE),))
    assert read(Leaf.STATE, twin.encode(presence)) == PresenceHeard(CAM, presence)
    assert read(Leaf.BIRTH, twin.encode(birth)) == BirthHeard(CAM, birth)
    assert read(Leaf.REPORTED, twin.encode(reported)) == ReportHeard(CAM, MODEL, reported)
    assert read_batch(batch) == RowsHeard(CAM, Stream.WINDOWS, batch)
    assert read_batch(events, Stream.EVENTS) == RowsHeard(CAM, Stream.EVENTS, events)
    # Ahead of their turn they are the same rows, and that is known of them.
    assert read_batch(batch.ahead()) == RowsHeard(CAM, Stream.WINDOWS, batch, ahead=True)
    assert read_batch(events.ahead(), Stream.EVENTS) == RowsHeard(CAM, Stream.EVENTS, events, ahead=True)


@pytest.mark.parametrize(
    "wrong",
    [
        "em/v1/other/d/cam-1/state",
        "em/v1/main/d/cam-1/desired/digits",
        "em/v1/main/d/cam-1/reported",
        "em/v1/main/d/cam-1/reported/Digits",
        "em/v1/main/d/cam-1/ack",
        "em/v1/main/d/cam-1/tele",
        "em/v1/main/d/cam-1/tele/nonsense",
        "em/v1/main/d/../state",
        "em/v1/main/ctl/controller-1/state",
        "$SYS/broker",
        "",
    ],
)
def test_topic_that_no_device_of_the_tenant_publishes_to_is_refused(wrong):
    with pytest.raises(ManifestError):
        ingest.read(Message(wrong, twin.encode(Presence(online=True, session="s"))), TENANT)


def test_birth_of_another_device_is_refused():
    other = Birth(device=DeviceId("cam-2"), session="s1", profile="generic-x86-64", agent_version="0.1.0")
    with pytest.raises(ManifestError, match="cam-2"):
        read(Leaf.BIRTH, twin.encode(other))


BAD_BATCHES = {
    "no rows": Batch("b1"),
    "no boot": Batch("", (window(),)),
    "NUL in boot": Batch("b\x00", (window(),)),
    "long boot": Batch("b" * 200, (window(),)),
    "rows of both streams": Batch("b1", (window(),), (Event(2, "x", NOW_MS),)),
    "rows of the other stream": Batch("b1", events=(Event(2, "x", NOW_MS),)),
    "rows in turn and ahead": Batch("b1", (window(),), ahead_windows=(window(2),)),
    "rows ahead of both streams": Batch(
        "b1", ahead_windows=(window(),), ahead_events=(Event(2, "x", NOW_MS),)
    ),
    "rows ahead of the other stream": Batch("b1", ahead_events=(Event(2, "x", NOW_MS),)),
    "wrong rows ahead": Batch("b1", ahead_windows=(window(3), window(3))),
    "seq twice": Batch("b1", (window(3), window(3))),
    "seq falls": Batch("b1", (window(3), window(2))),
    "negative seq": Batch("b1", (window(-1),)),
    "huge seq": Batch("b1", (window(1 << 63),)),
    "negative count": Batch("b1", (window(counters=Counters(inferences=-1)),)),
    "huge count": Batch("b1", (window(counters=Counters(wrong=1 << 60)),)),
    "count beyond 64 bits": Batch("b1", (window(counters=Counters(wrong=1 << 63)),)),
    "negative time": Batch("b1", (window(started_at_ms=-1),)),
    "huge duration": Batch("b1", (window(duration_ms=1 << 62),)),
    "no release": Batch("b1", (window(release="nonsense"),)),
    "no digest": Batch("b1", (window(digest="../../x"),)),
    "long histogram": Batch("b1", (window(latency=(1,) * 81),)),
    "negative histogram": Batch("b1", (window(latency=(-1,)),)),
    "negative violations": Batch("b1", (window(quality=InputQuality(missing=-1)),)),
    "huge violations": Batch("b1", (window(quality=InputQuality(volume_high=1 << 60)),)),
    "negative loss": Batch("b1", (window(),), loss=Loss(dropped=-1)),
    "negative reason": Batch("b1", (window(),), loss=Loss(9, 0, 9, Drops(evicted=-1))),
    "huge reason": Batch("b1", (window(),), loss=Loss(9, 0, 9, Drops(refused=1 << 60))),
    "more reasons than drops": Batch("b1", (window(),), loss=Loss(9, 0, 2, Drops(evicted=1, too_long=2))),
    "sketch of nothing": Batch("b1", (window(sketch=Sketch("x", 1, ((1,),), (0,), (0,))),)),
    "uneven sketch": Batch("b1", (window(sketch=Sketch(DIGEST, 1, ((1,), (1,)), (0,), (0,))),)),
    "negative sketch": Batch("b1", (window(sketch=Sketch(DIGEST, 1, ((-1, 2),), (0,), (0,))),)),
    "huge sum": Batch("b1", (window(sketch=Sketch(DIGEST, 1, ((1,),), (1 << 63,), (0,))),)),
    "negative square": Batch("b1", (window(sketch=Sketch(DIGEST, 1, ((1,),), (0,), (-1,))),)),
}


@pytest.mark.parametrize("reasons", [Drops(), Drops(evicted=1), Drops(evicted=1, refused=2)], ids=str)
def test_reasons_may_be_all_some_or_none_of_what_was_dropped(reasons):
    batch = Batch("b1", (window(),), loss=Loss(9, 3, 3, reasons))
    assert read_batch(batch).batch.loss.reasons == reasons


@pytest.mark.parametrize("batch", BAD_BATCHES.values(), ids=BAD_BATCHES.keys())
def test_batch_that_cannot_be_true_is_refused(batch):
    with pytest.raises(ManifestError):
        read_batch(batch)


@pytest.mark.parametrize(
    ("leaf", "payload"),
    [
        (Leaf.STATE, b'{"online":true,"session":""}'),
        (Leaf.STATE, b'{"online":1,"session":"s"}'),
        (Leaf.STATE, b"[" * 1000),
        (Leaf.STATE, b'{"online":true,"session":"' + b"s" * 2000 + b'"}'),
        (Leaf.REPORTED, b'{"generation":-1}'),
        (Leaf.REPORTED, b'{"generation":123456789012345678901234567890}'),
        (Leaf.REPORTED, b'{"generation":1,"fetched_bytes":123456789012345678901234567890}'),
        (Leaf.REPORTED, b'{"generation":1,"state":"flying"}'),
        (Leaf.REPORTED, b'{"generation":1,"reason":"\\u0000"}'),
        (Leaf.REPORTED, b'{"generation":1,"slots":{"current":{"release":"x","digest":"y","target":"z","release_counter":1}}}'),
        (Leaf.REPORTED, b"x" * (8 << 10)),
        (Leaf.REPORTED, b"x" * ((8 << 10) + 1)),
        (Leaf.BIRTH, b"\xff\xfe"),
        (Leaf.BIRTH, b"null"),
    ],
)  # fmt: skip
def test_message_that_cannot_be_true_is_refused(leaf, payload):
    with pytest.raises(ManifestError):
        read(leaf, payload)


def test_batch_that_inflates_without_bound_is_refused():
    with pytest.raises(ManifestError):
        read(Leaf.TELEMETRY, zlib.compress(b" " * (64 << 20), 9), Stream.WINDOWS)


@given(st.sampled_from([Leaf.STATE, Leaf.BIRTH, Leaf.REPORTED]), st.binary(max_size=300))
@settings(max_examples=300)
def test_no_payload_raises_anything_else(leaf, payload):
    try:
        read(leaf, payload)
    except ManifestError as error:
        assert "\n" not in error.message  # noqa: PT017  # most payloads are refused, some are not


NUMBERS = st.one_of(st.integers(), st.floats(), st.text(max_size=5), st.none(), st.booleans())


@given(st.dictionaries(st.sampled_from(Window.__struct_fields__), NUMBERS), st.text(max_size=20))
@settings(max_examples=300)
def test_no_batch_raises_anything_else(changes, boot):
    row = msgspec.to_builtins(window()) | {
        key: value for key, value in changes.items() if value == value and abs(hash(value))
    }
    try:
        payload = zlib.compress(msgspec.json.encode({"boot": boot, "windows": [row]}))
        read(Leaf.TELEMETRY, payload, Stream.WINDOWS)
    except ManifestError as error:
        assert "\n" not in error.message  # noqa: PT017  # most payloads are refused, some are not


@pytest.mark.parametrize(
    ("off_ms", "believed"),
    [
        (0, True),
        (-ingest.CLOCK_SLACK_MS, True),
        (ingest.CLOCK_SLACK_MS, True),
        (-ingest.CLOCK_SLACK_MS - 1, False),
        (10**12, False),
    ],
)
def test_window_counts_when_it_began_unless_the_clock_cannot_be_right(off_ms, believed):
    row = window(started_at_ms=max(0, NOW_MS + off_ms))
    assert ingest.judged_at_ms(row, NOW_MS) == (row.started_at_ms if believed else NOW_MS)


def test_window_of_a_device_that_woke_up_in_1970_counts_when_it_came():
    assert ingest.judged_at_ms(window(started_at_ms=5), NOW_MS) == NOW_MS


@pytest.mark.parametrize("place", ["current", "previous", "factory"])
def test_slot_of_another_model_is_refused(place):
    def report(release):
        return twin.encode(Reported(generation=1, slots=Slots(**{place: Slot(release, DIGEST, "t", 1)})))

    assert read(Leaf.REPORTED, report("digits@9")).model == MODEL
    for release in ("alarms@1", "digits2@1", "digit@1"):
        with pytest.raises(ManifestError, match="on the topic of digits"):
            read(Leaf.REPORTED, report(release))
