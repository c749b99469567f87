"""Windows, batches and histograms."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml import telemetry
from edgeml.errors import ManifestError
from edgeml.ids import ReleaseId
from edgeml.sketch import Sketch
from edgeml.telemetry import (
    BATCH_BYTES_MAX,
    BATCH_RAW_BYTES_MAX,
    LATENCY_BINS,
    Batch,
    Counters,
    DropReason,
    Drops,
    Event,
    Loss,
    Window,
)

counts = st.integers(0, 1 << 40)
counters = st.builds(Counters, *[counts] * 6)
windows = st.builds(
    Window,
    seq=counts,
    release=st.just(ReleaseId("digits@1.0.0")),
    digest=st.just("a" * 64),
    started_at_ms=counts,
    duration_ms=counts,
    counters=counters,
    latency=st.lists(counts, max_size=LATENCY_BINS).map(tuple),
    sketch=st.none() | st.just(Sketch("b" * 64, 3, ((1, 2, 0), (3, 0, 0)), (-5, 7), (9, 0))),
    memory_bytes=counts,
)
events = st.builds(Event, seq=counts, kind=st.text(max_size=20), at_ms=counts, detail=st.text(max_size=50))
drops = st.builds(Drops, *[counts] * len(DropReason))
losses = st.builds(Loss, counts, counts, counts, drops)


@given(st.text(max_size=10), st.lists(windows, max_size=5).map(tuple), losses)
def test_batch_of_windows_survives_the_wire(boot, rows, loss):
    batch = Batch(boot, rows, loss=loss)
    assert telemetry.decode_batch(telemetry.encode_batch(batch)) == batch
    assert batch.rows == rows


@given(st.lists(events, min_size=1, max_size=5).map(tuple))
def test_batch_of_events_survives_the_wire(rows):
    batch = Batch("b", events=rows)
    assert telemetry.decode_batch(telemetry.encode_batch(batch)).rows == rows


def test_every_reason_has_its_count():
    assert [reason.value for reason in DropReason] == list(Drops.__struct_fields__)


@given(drops, st.sampled_from(DropReason), counts)
def test_adding_to_a_reason_changes_that_count_and_the_total(before, reason, rows):
    after = before.plus(reason, rows)
    assert after.total == before.total + rows
    assert {one for one in DropReason if after.count(one) != before.count(one)} <= {reason}
    assert after.count(reason) == before.count(reason) + rows


def test_batches_of_devices_that_count_no_reasons_or_others_are_read():
    def read(loss):
        return telemetry.decode_batch(zlib.compress(b'{"boot":"b","loss":%s}' % loss)).loss

    assert read(b'{"produced":3,"dropped":2}') == Loss(3, 0, 2)
    newer = read(b'{"produced":3,"dropped":2,"reasons":{"evicted":1,"struck_by_lightning":1}}')
    assert newer == Loss(3, 0, 2, Drops(evicted=1))
    # What was not dropped takes no room on the wire.
    assert b"reasons" not in zlib.decompress(telemetry.encode_batch(Batch("b", loss=Loss(3))))


@given(counters, counters, counters)
def test_counters_add_like_numbers(a, b, c):
    assert a.plus(b) == b.plus(a)
    assert a.plus(b).plus(c) == a.plus(b.plus(c))
    assert a.plus(Counters()) == a


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not zlib",
        zlib.compress(b""),
        zlib.compress(b"[]"),
        zlib.compress(b"{}"),
        zlib.compress(b'{"boot":1}'),
        zlib.compress(b'{"boot":"b","windows":[{}]}'),
        zlib.compress(b'{"boot":"b","windows":[1]}'),
        zlib.compress(b'{"boot":"\xff"}'),
        zlib.compress(b"[" * 100_000),
        zlib.compress(b'{"boot":"b"}')[:-3],
    ],
)
def test_what_is_no_batch_is_refused(data):
    with pytest.raises(ManifestError):
        telemetry.decode_batch(data)


def test_batch_is_bounded_on_both_sides_of_the_compression():
    with pytest.raises(ManifestError, match="more than"):
        telemetry.decode_batch(b"x" * (BATCH_BYTES_MAX + 1))
    bomb = zlib.compress(b" " * (BATCH_RAW_BYTES_MAX + 1), 9)
    assert len(bomb) < BATCH_BYTES_MAX
    with pytest.raises(ManifestError, match="inflates"):
        telemetry.decode_batch(bomb)


@given(st.floats(0.0, 1e12))
def test_latency_falls_into_the_bin_that_holds_it(latency_us):
    index = telemetry.latency_bin(latency_us)
    assert 0 <= index < LATENCY_BINS
    if 1.0 <= latency_us < 2.0 ** (LATENCY_BINS / 4):
        assert 2.0 ** (index / 4) * (1 - 1e-12) <= latency_us < 2.0 ** ((index + 1) / 4) * (1 + 1e-12)
