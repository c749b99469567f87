"""What keeping telemetry costs: rows a second, bytes written and bytes on disk, beside a bare sqlite3 insert.

Run: python benchmarks/buffer.py [--json] [--rows 20000] [--days 31] [--directory DIR]

Both write the same rows, commit every so many of them, and use the same SQLite settings (WAL, synchronous=NORMAL). Bytes written
are those of /proc/self/io, which counts what the process handed to a disk: give a --directory that is on one (tmpfs counts
nothing). The bare peer has no counts, no limits and no acknowledgements: the difference is their price.

Bytes on disk are those of the file at the end, its own tables included, so they fall with the number of rows. The month
offline is lived by a clock that is told the time: two models close a window each minute, something happens every ten
minutes, and nobody acknowledges; resident memory is read once a day.
"""

# ruff: noqa: E402 - the directory of this file must not be looked into: its agent.py is no room
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import os
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from agent.buffer import COMMIT_ROWS, Buffer, BufferLimits
from edgeml.ids import Digest, ReleaseId
from edgeml.sketch import Sketch
from edgeml.telemetry import Counters, Event, Stream, Window, encode_batch, encode_row
from edgeml.testing import FakeClock
from edgeml.twin import Ack

DIGEST = Digest("ab" * 32)
VARIETY = 500
"""Rows of a kind that differ from one another, so that they compress as real ones do."""


def histogram(source: random.Random, total: int, bins: int) -> tuple[int, ...]:
    """Counts of `total` values around the middle bin."""
    counts = [0] * bins
    for _ in range(total):
        counts[min(bins - 1, max(0, round(source.gauss(bins / 2, bins / 8))))] += 1
    return tuple(counts)


def window(source: random.Random, number: int, columns: int) -> Window:
    """A minute with 60 inferences."""
    sketch = Sketch(
        DIGEST,
        60,
        tuple(histogram(source, 60, 18) for _ in range(columns)),
        tuple(round(source.gauss(0, 500_000)) for _ in range(columns)),
        tuple(round(source.gauss(4_000_000, 500_000)) for _ in range(columns)),
    )
    counters = Counters(inferences=60, low_confidence=source.randrange(5), slow=source.randrange(3))
    started_at_ms = 1_790_000_000_000 + number * 60_000 + source.randrange(50)
    latency = (0,) * 40 + histogram(source, 60, 10)
    release = ReleaseId("digits@1.0.0")
    return Window(
        0, release, DIGEST, started_at_ms, 60_000, counters, latency, sketch if columns else None, 50 << 20
    )


def event(source: random.Random, number: int) -> Event:
    """Something that happened."""
    return Event(
        0, "slow", 1_790_000_000_000 + number * 977, f"latency {source.uniform(10, 20):.3f} ms above 10 ms"
    )


SOURCE = random.Random(0)
ROWS: dict[str, Sequence[Window | Event]] = {
    "events": [event(SOURCE, number) for number in range(VARIETY)],
    "windows": [window(SOURCE, number, 0) for number in range(VARIETY)],
    "windows with a sketch of 8 columns": [window(SOURCE, number, 8) for number in range(VARIETY)],
}


@dataclass(frozen=True)
class Cost:
    """What one way of keeping rows came to."""

    rows: str
    how: str
    commit_rows: int
    rows_per_s: float
    cpu_us_per_row: float
    written_bytes_per_row: float
    disk_bytes_per_row: float


def written_bytes() -> int:
    """Bytes that this process has sent to a disk."""
    for line in Path("/proc/self/io").read_text().splitlines():
        name, _, value = line.partition(": ")
        if name == "write_bytes":
            return int(value)
    raise SystemExit("/proc/self/io has no write_bytes")


def disk_bytes_per_row(path: Path) -> float:
    """Size of the file once the log is folded into it, over the rows that are in it."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    tables = [
        name
        for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        if name.endswith("_blocks") or name == "rows"
    ]
    rows = sum(
        connection.execute(
            "SELECT " + ("count(*)" if name == "rows" else "sum(rows)") + " FROM " + name
        ).fetchone()[0]
        or 0
        for name in tables
    )
    connection.close()
    return float(path.stat().st_size / rows)


def measured(kind: str, how: str, commit_rows: int, count: int, path: Path, keep: Callable[[], None]) -> Cost:
    """Time `keep`, which keeps `count` rows in `path`, the oldest of which may be gone in the end."""
    before, started, cpu = written_bytes(), time.perf_counter(), time.process_time()
    keep()
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    return Cost(
        kind,
        how,
        commit_rows,
        round(count / seconds),
        round(cpu_s / count * 1e6, 1),
        round((written_bytes() - before) / count),
        round(disk_bytes_per_row(path)),
    )


def by_buffer(
    kind: str, count: int, commit_rows: int, directory: Path, limits: BufferLimits, how: str
) -> Cost:
    """Rows through the buffer."""
    path = directory / f"buffer-{time.monotonic_ns()}.db"
    rows = ROWS[kind]

    def keep() -> None:
        buffer = Buffer(path, "00000001-abcdef", limits)
        for number in range(1, count + 1):
            buffer.append(rows[number % VARIETY])
            if number % commit_rows == 0:
                buffer.flush()
        buffer.close()

    return measured(kind, how, commit_rows, count, path, keep)


def by_sqlite(kind: str, count: int, commit_rows: int, directory: Path) -> Cost:
    """The same bytes by bare inserts into one table."""
    path = directory / f"bare-{time.monotonic_ns()}.db"
    rows = ROWS[kind]

    def keep() -> None:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, boot TEXT, seq INTEGER, payload BLOB)")
        for number in range(1, count + 1):
            connection.execute(
                "INSERT INTO rows (boot, seq, payload) VALUES (?, ?, ?)",
                ("00000001-abcdef", number, encode_row(rows[number % VARIETY])),
            )
            if number % commit_rows == 0:
                connection.commit()
        connection.commit()
        connection.close()

    return measured(kind, "bare sqlite3", commit_rows, count, path, keep)


@dataclass(frozen=True)
class Sending:
    """What emptying a full buffer came to."""

    rows: str
    rows_per_s: float
    batch_rows: int
    wire_bytes_per_row: float


def sending(kind: str, count: int, directory: Path) -> Sending:
    """Read batch after batch, compress it, acknowledge it."""
    buffer = Buffer(directory / f"send-{time.monotonic_ns()}.db", "00000001-abcdef")
    for number in range(count):
        buffer.append(ROWS[kind][number % VARIETY])
    buffer.flush()
    stream = Stream.EVENTS if kind == "events" else Stream.WINDOWS
    wire = batches = 0
    started = time.perf_counter()
    while (batch := buffer.pending(stream)) is not None:
        wire += len(encode_batch(batch))
        batches += 1
        buffer.acknowledge(Ack(boot=batch.boot, stream=stream.value, seq=batch.rows[-1].seq))
    seconds = time.perf_counter() - started
    buffer.close()
    return Sending(kind, round(count / seconds), round(count / batches), round(wire / count, 1))


@dataclass(frozen=True)
class Month:
    """What a long time offline came to."""

    days: int
    rows: int
    held: int
    dropped: int
    seconds: float
    rss_after_a_day_kib: int
    rss_highest_kib: int
    rss_at_the_end_kib: int
    file_bytes: int
    written_bytes_per_row: float


def rss_kib() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def month(days: int, directory: Path) -> Month:
    """Live so many days without a fleet, by a clock that is told the time."""
    path, clock = directory / "month.db", FakeClock()
    buffer = Buffer(path, "00000001-abcdef", clock=clock)
    before, started, daily = written_bytes(), time.perf_counter(), []
    for minute in range(days * 24 * 60):
        for model in range(2):
            buffer.append(ROWS["windows"][(minute + model) % VARIETY])
        if minute % 10 == 0:
            buffer.append(ROWS["events"][minute % VARIETY])
        buffer.flush()
        clock.advance(60.0)
        buffer.tick()
        if minute % (24 * 60) == 24 * 60 - 1:
            daily.append(rss_kib())
    seconds = time.perf_counter() - started
    losses = [buffer.loss(stream) for stream in Stream]
    held = sum(map(buffer.held, Stream))
    buffer.close()
    rows = sum(loss.produced for loss in losses)
    return Month(
        days,
        rows,
        held,
        sum(loss.dropped for loss in losses),
        round(seconds, 1),
        daily[0],
        max(daily),
        daily[-1],
        path.stat().st_size,
        round((written_bytes() - before) / rows),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--rows", type=int, default=10_000, help="rows of each kind")
    parser.add_argument("--days", type=int, default=31, help="days offline; 0: none")
    parser.add_argument("--directory", help="where the files are made; a disk, not tmpfs")
    options = parser.parse_args()
    costs, sent = [], []
    with tempfile.TemporaryDirectory(dir=options.directory) as made:
        directory = Path(made)
        # First: what comes later leaves memory behind.
        offline = month(options.days, directory) if options.days else None
        for kind in ROWS:
            for commit_rows in (1, COMMIT_ROWS):
                count = options.rows if commit_rows > 1 else options.rows // 5
                costs.append(by_sqlite(kind, count, commit_rows, directory))
                costs.append(by_buffer(kind, count, commit_rows, directory, BufferLimits(), "buffer"))
            full = BufferLimits(rows_max=options.rows)
            costs.append(by_buffer(kind, 3 * options.rows, COMMIT_ROWS, directory, full, "buffer, full ring"))
            sent.append(sending(kind, options.rows // 5, directory))
    if options.json:
        json.dump(
            {
                "keeping": [asdict(one) for one in costs],
                "sending": [asdict(one) for one in sent],
                "offline": asdict(offline) if offline else None,
            },
            sys.stdout,
            indent=2,
        )
        print()
        return
    print(
        f"{'rows':36} {'how':18} {'commit':>6} {'rows/s':>9} {'CPU us':>7} {'B written':>10} {'B on disk':>10}"
    )
    for one in costs:
        print(
            f"{one.rows:36} {one.how:18} {one.commit_rows:6} {one.rows_per_s:9,.0f} {one.cpu_us_per_row:7.1f} "
            f"{one.written_bytes_per_row:10,.0f} {one.disk_bytes_per_row:10,.0f}"
        )
    print(f"\n{'emptying a buffer':36} {'rows/s':>9} {'rows a batch':>13} {'B on the wire':>14}")
    for each in sent:
        print(f"{each.rows:36} {each.rows_per_s:9,.0f} {each.batch_rows:13} {each.wire_bytes_per_row:14.1f}")
    if offline:
        print(
            f"\n{offline.days} days offline: {offline.rows} rows, {offline.held} held, {offline.dropped} dropped, in {offline.seconds} s"
        )
        print(
            f"  RSS {offline.rss_after_a_day_kib} KiB after a day, {offline.rss_highest_kib} at most, "
            f"{offline.rss_at_the_end_kib} at the end"
        )
        print(
            f"  {offline.file_bytes} bytes of file, {offline.file_bytes / offline.held:.1f} a row; "
            f"{offline.written_bytes_per_row} written a row, at two rows a commit"
        )


if __name__ == "__main__":
    main()
