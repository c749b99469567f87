"""Row 28: the broker is away for a day. A whole agent and its worker, a real mosquitto, a real controller.

The day passes on a clock that the test sets, a minute between two turns of the agent's loop; after it a turn takes
two fifths of a second of that clock. Reconnects take real time, and are told to take little.
"""

import time

import pytest
import sqlalchemy as sa

from agent import service as agent_service
from agent.ahead import EVERY_S, ROWS_MAX
from agent.buffer import FLUSH_S, ROWS_PER_BATCH
from agent.pace import SAVED_MAX
from edgeml import mqtt
from edgeml.ids import ReleaseId
from edgeml.telemetry import Event, Stream, decode_batch
from edgeml.topics import Leaf
from fleet import schema

from .headquarters import Headquarters
from .invariants import check
from .life import TURN_S, Life, SetClock

MINUTE_S, MINUTES = 60.0, 24 * 60
EVENTS = 300
RATE = 5.0
TURNS_MAX = 4000
DEADLINE_S = 180
STREAMS = (Stream.WINDOWS, Stream.EVENTS)


def stored(store):
    """Rows in the fleet's database, by stream, and the requests that their windows count."""
    with store.read() as connection:
        counts = {
            stream: connection.scalar(sa.select(sa.func.count()).select_from(table))
            for stream, table in ((Stream.WINDOWS, schema.windows), (Stream.EVENTS, schema.events))
        }
        return counts, connection.scalar(sa.select(sa.func.sum(schema.windows.c.inferences)))


@pytest.fixture
def day(make_agent, mirror, broker, tmp_path, monkeypatch):
    monkeypatch.setattr(agent_service, "TICK_S", 0.002)
    for name in ("RECONNECT_FIRST_S", "RECONNECT_MAX_S"):
        monkeypatch.setattr(mqtt, name, mqtt.RECONNECT_MIN_S)
    agent = make_agent(tmp_path / "state")
    agent.settings.write_text(
        agent.settings.read_text().partition("[telemetry]")[0]
        + f"[telemetry]\nwindow_s = {MINUTE_S}\nbacklog_rows_per_s = {RATE}\n"
    )
    agent.join(broker, mirror)
    made = Life(agent, broker, Headquarters(tmp_path, broker.port, SetClock()))
    yield made
    made.close()


@pytest.mark.processes
def test_a_day_without_the_broker_is_a_day_of_inference_and_its_backlog_comes_slowly_and_last(day):
    buffer = day.buffer
    day.ask()
    day.until(lambda: day.up and day.headquarters.connected, "both links")
    day.ask()
    day.until(
        lambda: buffer.loss(Stream.WINDOWS).acknowledged, "a window to be stored", seconds=MINUTE_S / 10
    )
    before = buffer.loss(Stream.WINDOWS).produced

    day.broker.kill()
    day.until(lambda: not day.up, "the link to be down")
    for minute in range(MINUTES):
        day.ask()
        if minute * EVENTS // MINUTES != (minute + 1) * EVENTS // MINUTES:
            buffer.append(Event(0, "note", day.clock.now_ms(), str(minute), ReleaseId("sample@1.0.0")))
        day.turn(MINUTE_S)
    assert buffer.loss(Stream.WINDOWS).produced - before >= MINUTES - 1
    assert {stream: buffer.loss(stream).dropped for stream in STREAMS} == dict.fromkeys(STREAMS, 0)
    backlog = {stream: buffer.held(stream) for stream in STREAMS}
    assert backlog[Stream.EVENTS] >= EVENTS

    day.broker.begin()
    day.listen()
    day.until(lambda: day.up, "the link to be up again", seconds=0.0)
    back_s = day.clock.monotonic_s()
    newest = {stream: buffer.loss(stream).produced for stream in STREAMS}
    produced, asked_s, deadline = [], back_s, time.monotonic() + DEADLINE_S
    for _ in range(TURNS_MAX):
        if day.clock.monotonic_s() - asked_s >= MINUTE_S:
            # Life goes on meanwhile, a request a minute.
            day.ask()
            asked_s = day.clock.monotonic_s()
        day.turn(2 * TURN_S)
        if buffer.loss(Stream.WINDOWS).produced > newest[Stream.WINDOWS] + len(produced):
            produced.append((day.clock.monotonic_s(), buffer.loss(Stream.WINDOWS).produced))
        if not any(buffer.held(stream) for stream in STREAMS) or time.monotonic() > deadline:
            break
    drained_s = day.clock.monotonic_s()
    assert not any(buffer.held(stream) for stream in STREAMS)

    # Nothing is lost, and the counts add up, on both sides.
    counts, inferences = stored(day.headquarters.store)
    for stream in STREAMS:
        loss = buffer.loss(stream)
        assert loss.produced == loss.acknowledged == counts[stream]
        assert loss.dropped == 0
    assert 0 <= day.asked - inferences <= 2, "what the open window counts"

    # The newest state came first: what the device is, then its newest rows, then the rest.
    leaves = [address.leaf for _, address, _ in day.heard]
    assert leaves[:3] == [Leaf.STATE, Leaf.BIRTH, Leaf.REPORTED]
    rows = [(at_s, one.stream, decode_batch(payload)) for at_s, one, payload in day.heard[3:] if one.stream]
    firsts = rows[:2]
    assert all(batch.is_ahead for _, _, batch in firsts)
    for _, stream, batch in firsts:
        assert [row.seq for row in batch.in_turn().rows] == list(
            range(newest[stream] - ROWS_MAX + 1, newest[stream] + 1)
        )

    # The rest came at its pace.
    in_turn = set()
    for at_s, stream, batch in rows:
        in_turn |= {(stream, row.seq) for row in batch.rows}
        allowed = RATE * (at_s - back_s) + SAVED_MAX + len(produced) + ROWS_PER_BATCH
        # The last batch of each stream is no backlog.
        assert len(in_turn) <= allowed + len(STREAMS) * ROWS_PER_BATCH
    total = sum(backlog.values())
    assert drained_s - back_s >= (total - SAVED_MAX - 3 * ROWS_PER_BATCH) / RATE

    # What was new meanwhile was not held behind it.
    seen = {
        row.seq: at_s
        for at_s, stream, batch in reversed(rows)
        if stream is Stream.WINDOWS
        for row in batch.in_turn().rows
    }
    meanwhile = [one for one in produced if one[0] < drained_s - MINUTE_S]
    assert len(meanwhile) >= 2
    for at_s, seq in meanwhile:
        assert seen[seq] - at_s <= FLUSH_S + EVERY_S + 5.0
    day.close()
    check(day.agent.storage)
