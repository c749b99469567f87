"""Row 1 for telemetry: the process that keeps rows is killed at every change that SQLite makes to their files.

The buffer is the real one, in a process of its own. It keeps rows of two streams, hands over batches, hears that they are
stored, gives up rows when it is full, and syncs. What it was told and what it returned it notes outside its files, line
by line, before it goes on. The links between an agent and a fleet are not here: see row 22 and `tests/agent/test_uplink.py`.
"""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from agent.buffer import Buffer
from edgeml.telemetry import Stream

from .points import SHARED, SOAK, compile_points

pytestmark = [pytest.mark.processes, pytest.mark.timeout(3600 if SOAK else 600)]
ROOT = Path(__file__).parents[2]
TRIED = 24
NEVER = -1
KEEPER = """
import os, sys
from agent.buffer import Buffer, BufferLimits
from edgeml.telemetry import Counters, Event, Stream, Window
from edgeml.testing import FakeClock
from edgeml.twin import Ack

path, boot, notes = sys.argv[1], sys.argv[2], os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
clock = FakeClock()
buffer = Buffer(path, boot, BufferLimits(rows_max=120), clock)
last = dict.fromkeys(Stream, 0)

def note(what, stream, boot_, seq):
    os.write(notes, f"{what} {stream.value} {boot_} {seq}\\n".encode())

def hand_over(stream):
    batch = buffer.pending(stream, rows_max=40)
    if batch is None:
        return
    buffer.send(stream, batch)
    for row in batch.rows:
        note("stored", stream, batch.boot, row.seq)
    buffer.acknowledge(Ack(boot=batch.boot, stream=stream.value, seq=batch.rows[-1].seq))
    note("forgotten", stream, batch.boot, batch.rows[-1].seq)

for step in range(24):
    for number in range(9):
        last[Stream.EVENTS] = buffer.append(Event(0, "tick", clock.now_ms(), detail=f"row {step}.{number} " * 20))
    for _ in range(4):
        window = Window(0, "m@1.0.0", "0" * 64, clock.now_ms(), 60_000, Counters(10), (0, 10))
        last[Stream.WINDOWS] = buffer.append(window)
    clock.advance(11.0)
    buffer.tick()
    if step % 3 == 2:
        buffer.flush()
        for stream in Stream:
            note("flushed", stream, boot, last[stream])
    # For a while nobody takes anything, and rows are given up.
    if step % 4 == 3 and not 8 <= step < 18:
        hand_over(Stream.EVENTS)
        hand_over(Stream.WINDOWS)
buffer.close()
for stream in Stream:
    note("flushed", stream, boot, last[stream])
"""


class Note(msgspec.Struct, frozen=True):
    """One line that was written before the process ended."""

    what: str
    stream: Stream
    boot: str
    seq: int


class Keeper:
    """A directory with a buffer, kept by one process after the other."""

    def __init__(self, directory, library):
        self.directory, self.library = directory, library
        self.storage = directory / "state"
        self.storage.mkdir(parents=True)
        self.path = self.storage / "telemetry.db"
        self._notes = directory / "notes"

    def live(self, boot, kill_at=NEVER, torn=False):
        """One life; return the points that it had and whether it was killed."""
        shared, told = self.directory / f"shared-{boot}", self.directory / f"points-{boot}"
        shared.write_bytes(SHARED.pack(0, kill_at, int(torn), 0, 0, 0))
        hook = {
            "LD_PRELOAD": str(self.library), "EDGEML_POINTS": str(shared), "EDGEML_POINTS_ROOT": str(self.storage),
            "EDGEML_POINTS_LOG": str(told), "EDGEML_POINTS_TELEMETRY": "1", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        # A session of its own: with no agent named, the library ends the group of the process that reached the point.
        done = subprocess.run(
            [sys.executable, "-c", KEEPER, self.path, boot, self._notes], env={**os.environ, **hook}, cwd=ROOT,
            start_new_session=True, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode in {0, -9}, done.stderr
        return told.read_text().splitlines(), done.returncode != 0

    def notes(self):
        lines = self._notes.read_text().splitlines() if self._notes.exists() else []
        return [
            Note(what, Stream(stream), boot, int(seq)) for what, stream, boot, seq in map(str.split, lines)
        ]

    def held(self):
        """What the files hold, and their counts: found by a buffer of a later life on a copy."""
        looked = self.directory / "looked"
        shutil.rmtree(looked, ignore_errors=True)
        shutil.copytree(self.storage, looked)
        buffer = Buffer(looked / "telemetry.db", "looking")
        assert buffer.quarantined is None
        found, counts = {}, {}
        for stream in Stream:
            counts[stream] = buffer.loss(stream), buffer.held(stream)
            rows = []
            while batch := buffer.pending(stream, rows_max=1):
                rows += [(batch.boot, row.seq) for row in batch.rows]
                buffer.refuse(stream, batch.boot, batch.rows[-1].seq)
            found[stream] = rows
        buffer.close()
        return found, counts


def whole(keeper):
    """What must hold of the files, whenever the process ended."""
    found, counts = keeper.held()
    notes = keeper.notes()
    for stream in Stream:
        loss, held = counts[stream]
        rows = found[stream]
        assert loss.produced == loss.acknowledged + loss.dropped + held
        assert held == len(rows)
        boots = list(dict.fromkeys(boot for boot, _ in rows))
        for boot in boots:
            seqs = [seq for one, seq in rows if one == boot]
            assert seqs == list(range(seqs[0], seqs[-1] + 1)), "rows are missing in the middle"
        mine = [one for one in notes if one.stream is stream]
        forgotten = {(one.boot, one.seq) for one in mine if one.what == "forgotten"}
        for boot, upto in forgotten:
            assert not [seq for one, seq in rows if one == boot and seq <= upto], "what was stored is back"
        stored = {(one.boot, one.seq) for one in mine if one.what == "stored"}
        assert loss.acknowledged <= len(stored), "more was acknowledged than the fleet has"
        flushed = {}
        for one in mine:
            if one.what == "flushed":
                flushed[one.boot] = max(one.seq, flushed.get(one.boot, 0))
        # Each row that is known to be on disk waits, is stored, or was counted as given up.
        known = {(boot, seq) for boot, upto in flushed.items() for seq in range(1, upto + 1)}
        gone = known - set(rows) - stored
        assert len(gone) <= loss.dropped, f"{len(gone)} rows are gone, {loss.dropped} are counted"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compile_points(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def points(library, tmp_path_factory):
    """How many there are in a life that nobody disturbs."""
    keeper = Keeper(tmp_path_factory.mktemp("counted"), library)
    lines, killed = keeper.live("one")
    assert not killed
    whole(keeper)
    _found, counts = keeper.held()
    assert counts[Stream.WINDOWS][0].dropped, "nothing was given up: the limits are too wide for this test"
    assert counts[Stream.EVENTS][0].acknowledged
    return lines


@pytest.mark.parametrize("torn", [False, True], ids=["whole", "torn"])
def test_rows_killed_at_any_change_to_their_files_are_all_accounted_for(points, library, tmp_path, torn):
    chosen = [index for index, line in enumerate(points) if not torn or line.split()[1] == "write"]
    if not SOAK:
        chosen = chosen[:: max(1, len(chosen) // TRIED)]

    def attempt(index):
        keeper = Keeper(tmp_path / f"at-{index}", library)
        _, killed = keeper.live("one", index, torn)
        try:
            whole(keeper)
            # The next life goes on with what is there, and is not disturbed.
            assert keeper.live("two")[1] is False
            whole(keeper)
        except AssertionError as error:
            raise AssertionError(f"killed at {points[index]}: {error}") from error
        shutil.rmtree(keeper.directory)
        return killed

    with ThreadPoolExecutor(2) as pool:
        reached = sum(pool.map(attempt, chosen))
    print(f"{len(points)} points found, {len(chosen)} tried, {reached} lives killed there")
    assert len(points) > 50
    assert reached == len(chosen)
