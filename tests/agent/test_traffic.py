"""The account of the network: never below what was used, over restarts, power cuts and days; and the room in the store."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.allowance import DAY_S
from agent.ration import Purpose, message_bytes
from agent.storeroom import check_room, stored_bytes
from agent.traffic import AHEAD_BYTES_MAX, FILE, WRITES_A_DAY, Traffic
from edgeml import atomic
from edgeml.errors import BudgetError
from edgeml.ids import Digest
from edgeml.manifest import RuntimeFamily
from edgeml.telemetry import Stream
from edgeml.testing import FakeClock
from edgeml.trustfacts import SignedFacts, SignedTarget

MIB = 1 << 20
ROOT = Path(__file__).parents[2]


def test_what_was_used_survives_a_restart_exactly_if_it_was_settled(tmp_path):
    clock = FakeClock()
    traffic = Traffic(tmp_path, 10 * MIB, clock)
    traffic.add(3 * MIB)
    traffic.add(5)
    traffic.settle()
    again = Traffic(tmp_path, 10 * MIB, clock)
    assert (again.spent_bytes, again.left_bytes) == (3 * MIB + 5, 7 * MIB - 5)


def test_a_kill_costs_a_part_of_the_day_and_never_gives_one(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from agent.traffic import Traffic
from edgeml.clock import SystemClock
traffic = Traffic(Path({str(tmp_path)!r}), 1 << 30, SystemClock())
for _ in range(100):
    traffic.add(50_000)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == -9
    spent = Traffic(tmp_path, 1 << 30, FakeClock(0)).spent_bytes
    assert 5_000_000 <= spent <= 5_000_000 + AHEAD_BYTES_MAX


def test_kills_cost_a_small_budget_as_small_a_part_of_the_day(tmp_path):
    for _ in range(10):
        Traffic(tmp_path, MIB, FakeClock()).add(100)
    assert Traffic(tmp_path, MIB, FakeClock()).spent_bytes <= 10 * (100 + MIB // WRITES_A_DAY)


def test_a_day_of_small_messages_is_a_bounded_number_of_writes(tmp_path, monkeypatch):
    writes, real = [], atomic.write_bytes
    monkeypatch.setattr(atomic, "write_bytes", lambda *given: (writes.append(given), real(*given)))
    traffic = Traffic(tmp_path, MIB, FakeClock())
    for _ in range(10_000):
        traffic.redeem(104, outstanding=False)
    assert traffic.spent_bytes == 1_040_000
    assert len(writes) <= WRITES_A_DAY + 1


def test_what_is_on_its_way_is_set_aside_until_it_is_counted(tmp_path):
    traffic = Traffic(tmp_path, MIB, FakeClock())
    room = traffic.room_bytes(Purpose.WINDOWS)
    assert traffic.take(Stream.WINDOWS, 10_000)
    cost = message_bytes(10_000)
    assert traffic.room_bytes(Purpose.WINDOWS) == room - cost
    assert traffic.spent_bytes == 0
    traffic.redeem(cost - 1000, outstanding=True)
    assert traffic.room_bytes(Purpose.WINDOWS) == room - cost
    traffic.redeem(0, outstanding=False)
    assert traffic.room_bytes(Purpose.WINDOWS) == room - cost + 1000
    traffic.add(traffic.room_bytes(Purpose.WINDOWS) - 1000)
    assert not traffic.take(Stream.WINDOWS, 1000)
    assert traffic.take(Stream.EVENTS, 1000), "events may take what windows must leave"


def test_without_a_budget_everything_may_be_sent(tmp_path):
    traffic = Traffic(tmp_path, None, FakeClock())
    assert traffic.take(Stream.SAMPLES, 1 << 40)
    assert (traffic.day, traffic.room_bytes(Purpose.LINK), traffic.longest_bytes(Stream.EVENTS)) == (
        None,
    ) * 3


def test_a_new_day_begins_at_nothing_and_the_wait_leads_there(tmp_path):
    clock = FakeClock()
    traffic = Traffic(tmp_path, MIB, clock)
    traffic.add(2 * MIB)
    assert traffic.left_bytes == 0
    clock.advance(traffic.wait_s)
    assert (traffic.left_bytes, traffic.spent_bytes) == (MIB, 0)
    traffic.add(1)
    assert traffic.wait_s == pytest.approx(DAY_S)


def test_without_a_budget_it_is_counted_and_nothing_is_written(tmp_path):
    traffic = Traffic(tmp_path, None, FakeClock())
    traffic.add(5 * MIB)
    traffic.settle()
    assert (traffic.spent_bytes, traffic.left_bytes) == (5 * MIB, None)
    assert not (tmp_path / FILE).exists()


def test_a_damaged_account_is_said_and_starts_at_nothing(tmp_path, caplog):
    (tmp_path / FILE).write_bytes(b"\xff{")
    assert Traffic(tmp_path, MIB, FakeClock()).left_bytes == MIB
    assert "cannot be read" in caplog.text


@given(st.lists(st.integers(0, 3 * MIB), max_size=20))
def test_the_disk_never_says_less_than_was_used(tmp_path_factory, counts):
    folder = tmp_path_factory.mktemp("traffic")
    clock = FakeClock()
    traffic = Traffic(folder, 1 << 40, clock)
    used = 0
    for count in counts:
        traffic.add(count)
        used += count
        assert used <= Traffic(folder, 1 << 40, clock).spent_bytes <= used + AHEAD_BYTES_MAX


def target(length, digest="ab" * 32):
    facts = SignedFacts("m@1", "v", 1, ("p",), RuntimeFamily.ONNX, 4096, Digest("0" * 64))
    return SignedTarget("m/1/v.edgeml", Digest(digest), length, facts)


def test_all_that_is_stored_counts_but_what_there_is_of_the_bundle_itself(tmp_path):
    store = tmp_path / "store"
    check_room(store, target(100), 100)
    store.mkdir()
    (store / f"{'cd' * 32}.edgeml").write_bytes(bytes(60))
    (store / f"{'ef' * 32}.delta").write_bytes(bytes(10))
    (store / f"{'ab' * 32}.part").write_bytes(bytes(25))
    assert stored_bytes(store) == 95
    check_room(store, target(30), 100)
    with pytest.raises(BudgetError) as caught:
        check_room(store, target(31), 100)
    error = caught.value
    assert error.message == "m/1/v.edgeml has 31 bytes, this device may store 100 in all and has 70 already"
    assert (error.budget, error.observed, error.unit) == (30, 31, "bytes")
