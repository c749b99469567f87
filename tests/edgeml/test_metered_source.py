"""A metered source over a real server: it counts, keeps a rate, and stops at the allowance with everything kept."""

import pytest

from edgeml.download import fetch
from edgeml.errors import PostponedError
from edgeml.meter import TELL_BYTES, Meter, Terms
from edgeml.metered_source import REQUEST_BYTES, MeteredSource
from edgeml.source import READ_BYTES, HttpSource

from .test_download import publish, server

__all__ = ["server"]

DATA = bytes(range(256)) * 4096


def test_everything_that_comes_is_counted_and_told(tmp_path, server):
    target = publish(server, DATA)
    told = []
    meter = Meter(Terms(), told.append)
    fetched = fetch(MeteredSource(HttpSource(server.url), meter), target, tmp_path)
    meter.settle()
    assert fetched.path.read_bytes() == DATA
    assert meter.taken_bytes == fetched.received_bytes + 2 * REQUEST_BYTES
    assert told == sorted(set(told))
    assert told[-1] == meter.taken_bytes
    assert all(
        after - before <= TELL_BYTES + READ_BYTES for before, after in zip([0, *told], told, strict=False)
    )


def test_a_fetch_stops_at_the_allowance_and_goes_on_where_it_stopped(tmp_path, server):
    target = publish(server, DATA)
    received, days = 0, 0
    while True:
        days += 1
        assert days < 20
        meter = Meter(Terms(allowance_bytes=200_000, wait_s=3600.0))
        stopped = None
        try:
            fetched = fetch(MeteredSource(HttpSource(server.url), meter), target, tmp_path)
        except PostponedError as error:
            stopped = error
        received += meter.taken_bytes
        if stopped is None:
            break
        assert (stopped.wait_s, "used up" in stopped.message) == (3600.0, True)
        assert meter.taken_bytes <= 200_000 + READ_BYTES + REQUEST_BYTES
    assert fetched.path.read_bytes() == DATA
    # Nothing but requests, and the list of chunks, was paid for twice.
    assert days == pytest.approx(len(DATA) / 200_000, abs=2)
    assert received <= len(DATA) + days * (2 * REQUEST_BYTES + 4096)


def test_nothing_is_asked_for_with_nothing_left(tmp_path, server):
    target = publish(server, DATA)
    with pytest.raises(PostponedError):
        fetch(MeteredSource(HttpSource(server.url), Meter(Terms(allowance_bytes=0))), target, tmp_path)
    assert server.requests == []


def test_a_rate_is_kept(tmp_path, server, monkeypatch):
    """By a clock that only pauses move, so nothing is timed."""
    now_s = [100.0]
    monkeypatch.setattr("edgeml.meter.time.monotonic", lambda: now_s[0])
    monkeypatch.setattr("edgeml.meter.time.sleep", lambda pause_s: now_s.__setitem__(0, now_s[0] + pause_s))
    target = publish(server, DATA)
    meter = Meter(Terms(bytes_per_s=50_000.0))
    fetch(MeteredSource(HttpSource(server.url), meter), target, tmp_path)
    assert now_s[0] - 100.0 == pytest.approx(meter.taken_bytes / 50_000.0)
    # What is counted without a pause is made up for by the next that is taken.
    meter.count(100_000)
    meter.take(0)
    assert now_s[0] - 100.0 == pytest.approx(meter.taken_bytes / 50_000.0)
