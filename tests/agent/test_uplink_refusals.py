"""Batches that the fleet will never store: the bad rows are found and dropped, the good ones arrive."""

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.buffer import Buffer
from agent.uplink import Uplink
from edgeml import twin
from edgeml.ids import DeviceId, TenantId, digest_of
from edgeml.telemetry import Drops, Event, Loss, Stream, decode_batch


def refusal(payload, stream=Stream.EVENTS):
    return twin.encode(twin.Ack(boot="", stream=stream.value, seq=-1, refused=digest_of(payload)))


@pytest.fixture
def buffer():
    made = Buffer(":memory:", "b1")
    yield made
    made.close()


@pytest.fixture
def uplink(buffer):
    return Uplink(buffer, TenantId("acme"), DeviceId("cam-1"))


def fill(buffer, count, bad=()):
    for seq in range(1, count + 1):
        buffer.append(Event(seq=0, kind="bad" if seq in bad else "good", at_ms=seq))


def converse(uplink, now_s=0.0):
    """Play a fleet that refuses every batch with a bad row; return the seqs it stored and how many batches it saw."""
    stored, batches = [], 0
    while messages := uplink.due(now_s, link_up=True):
        for message in messages:
            batch = decode_batch(message.payload)
            if batch.is_ahead:
                continue
            batches += 1
            if any(row.kind == "bad" for row in batch.rows):
                uplink.on_ack(refusal(message.payload), now_s)
                continue
            stored += [row.seq for row in batch.rows]
            answer = twin.Ack(boot=batch.boot, stream=Stream.EVENTS.value, seq=batch.rows[-1].seq)
            uplink.on_ack(twin.encode(answer), now_s)
    return stored, batches


def test_one_bad_row_is_dropped_and_the_others_arrive(buffer, uplink, caplog):
    fill(buffer, 250, bad={70})
    with caplog.at_level(logging.WARNING):
        stored, batches = converse(uplink)
    assert stored == [seq for seq in range(1, 251) if seq != 70]
    assert buffer.loss(Stream.EVENTS) == Loss(250, 249, 1, Drops(refused=1), sent=250)
    assert batches < 30
    assert [one.message for one in caplog.records] == [
        "the fleet refused row 70 of boot b1 in events; it is dropped"
    ]


@given(count=st.integers(1, 150), data=st.data())
@settings(max_examples=40)
def test_exactly_the_bad_rows_are_dropped_whichever_they_are(count, data):
    bad = data.draw(st.sets(st.integers(1, count)))
    buffer = Buffer(":memory:", "b1")
    fill(buffer, count, bad)
    stored, _ = converse(Uplink(buffer, TenantId("acme"), DeviceId("cam-1")))
    assert stored == [seq for seq in range(1, count + 1) if seq not in bad]
    assert buffer.loss(Stream.EVENTS) == Loss(count, len(stored), len(bad), Drops(refused=len(bad)), count)
    buffer.close()


def test_a_refusal_that_is_late_or_of_another_stream_changes_nothing(buffer, uplink):
    fill(buffer, 1)
    [first] = uplink.due(0.0, link_up=True)
    uplink.on_ack(refusal(b"something else"), 1.0)
    uplink.on_ack(refusal(first.payload, Stream.WINDOWS), 1.0)
    assert uplink.due(1.0, link_up=True) == []
    answer = twin.Ack(boot="b1", stream=Stream.EVENTS.value, seq=1)
    uplink.on_ack(twin.encode(answer), 2.0)
    uplink.on_ack(refusal(first.payload), 3.0)
    assert buffer.loss(Stream.EVENTS) == Loss(1, 1, 0, sent=1)


def test_a_row_that_was_evicted_meanwhile_is_not_mistaken_for_the_next(buffer, uplink):
    fill(buffer, 1)
    [sent] = uplink.due(0.0, link_up=True)
    buffer.refuse(Stream.EVENTS, "b1", 1)
    buffer.append(Event(seq=0, kind="good", at_ms=2))
    buffer.flush()
    uplink.on_ack(refusal(sent.payload), 1.0)
    assert buffer.loss(Stream.EVENTS) == Loss(2, 0, 1, Drops(refused=1), sent=1)
    assert buffer.held(Stream.EVENTS) == 1
