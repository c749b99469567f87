"""What a kill and a power cut take at most, measured: by the figures that are stated in docs/telemetry.md."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.buffer import COMMIT_ROWS, FLUSH_S, LOSS_ROWS_MAX, SYNC_S, Buffer, BufferLimits
from edgeml.telemetry import Event, Stream
from edgeml.testing import FakeClock

ROOT = Path(__file__).parents[2]
EVENTS = Stream.EVENTS
LIMITS = BufferLimits(rows_max=1_000_000)

WRITER = """
import sys, time
from pathlib import Path
from agent.buffer import Buffer
from edgeml.telemetry import Event
buffer = Buffer(Path(sys.argv[1]), "b1")
pause_s = float(sys.argv[2])
number = 0
while True:
    number += 1
    buffer.append(Event(seq=0, kind="tick", at_ms=time.time_ns() // 1_000_000))
    buffer.tick()
    print(number, time.monotonic(), flush=True)
    if pause_s:
        time.sleep(pause_s)
"""


def test_the_documents_state_these_figures():
    text = (ROOT / "docs" / "telemetry.md").read_text()
    for figure in (
        f"{COMMIT_ROWS} rows",
        f"{FLUSH_S:g} s",
        f"{SYNC_S + FLUSH_S:g} s",
        f"{LOSS_ROWS_MAX} rows",
    ):
        assert figure in text, figure


@pytest.mark.processes
@pytest.mark.parametrize("pause_s", [0.0, 0.3], ids=["fast", "slow"])
def test_kill_9_takes_no_more_rows_and_none_older_than_is_stated(tmp_path, pause_s):
    path = tmp_path / "telemetry.db"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(pause_s)], stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    first = process.stdout.readline()
    assert first, "the writer died"
    # Long enough that the slow one must have flushed by the clock: it has far fewer than COMMIT_ROWS rows.
    time.sleep(1.0 if not pause_s else FLUSH_S + 2)
    process.send_signal(signal.SIGKILL)
    killed_s = time.monotonic()
    said = [first, *process.stdout.readlines()]
    process.wait(60)
    process.stdout.close()
    appended = {int(line.split()[0]): float(line.split()[1]) for line in said if line.endswith("\n")}
    buffer = Buffer(path, "b2")
    assert buffer.quarantined is None
    kept = buffer.held(EVENTS)
    lost = [number for number in appended if number > kept]
    assert len(lost) <= COMMIT_ROWS
    # A tick comes with each row here: that is how much later than FLUSH_S a flush may be.
    assert all(killed_s - appended[number] <= FLUSH_S + pause_s + 1.0 for number in lost)
    assert kept > 0
    buffer.close()


def main_file_alone(path, to):
    """What is left if nothing that waits for a sync survives: the log is gone."""
    shutil.copy(path, to)
    buffer = Buffer(to, "after", LIMITS)
    assert buffer.quarantined is None
    kept = buffer.held(EVENTS)
    loss = buffer.loss(EVENTS)
    assert loss.produced == loss.acknowledged + loss.dropped + kept
    buffer.close()
    return kept


@pytest.mark.parametrize("rows_per_s", [0.1, 1, 7, 200])
def test_a_power_cut_takes_no_more_rows_and_none_older_than_is_stated(tmp_path, rows_per_s):
    path, clock = tmp_path / "telemetry.db", FakeClock()
    buffer = Buffer(path, "b1", LIMITS, clock)
    appended_s, worst_rows, worst_s, owed = [], 0, 0.0, 0.0
    for second in range(400):
        owed += rows_per_s
        while owed >= 1:
            buffer.append(Event(seq=0, kind="tick", at_ms=clock.now_ms(), detail=f"row {len(appended_s)}"))
            appended_s.append(clock.monotonic_s())
            owed -= 1
        buffer.tick()
        if second % 13 == 12:
            kept = main_file_alone(path, tmp_path / f"cut-{second}.db")
            lost = appended_s[kept:]
            worst_rows = max(worst_rows, len(lost))
            worst_s = max(worst_s, clock.monotonic_s() - lost[0] if lost else 0.0)
        clock.advance(1.0)
    buffer.close()
    assert 0 < worst_rows <= LOSS_ROWS_MAX
    # Ticks are a second apart here.
    assert 0 < worst_s <= SYNC_S + FLUSH_S + 2.0


def test_many_commits_of_few_rows_are_synced_by_the_size_of_the_log(tmp_path):
    path = tmp_path / "telemetry.db"
    buffer = Buffer(path, "b1")
    worst = 0
    for number in range(1, 4001):
        buffer.append(Event(seq=0, kind="tick", at_ms=number, detail=f"row {number}"))
        if number % 500 == 499:
            worst = max(worst, number - main_file_alone(path, tmp_path / f"cut-{number}.db"))
    buffer.close()
    assert 0 < worst <= LOSS_ROWS_MAX
