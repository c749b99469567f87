"""`edgeml agent buffer`: real files, a writer in another process, and everything that may be wrong with a file."""

import csv
import json
import os
import pty
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from agent.buffer import Buffer, BufferLimits
from agent.buffer_export import COLUMNS
from agent.config import LOCK
from edgeml.ids import Digest, ReleaseId
from edgeml.lock import Lock, is_held
from edgeml.sketch import Sketch
from edgeml.telemetry import Counters, Event, Stream, Window
from edgeml.twin import Ack

ROOT = Path(__file__).parents[2]
DIGEST = Digest("ab" * 32)
CONFIG = 'device = "cam-1"\nprofile = "generic-x86-64"\nstorage = "state"\n'
DAY_MS = 24 * 3600 * 1000


def window(at_ms=0, **more):
    return Window(
        seq=0, release=ReleaseId("m@1"), digest=DIGEST, started_at_ms=at_ms, duration_ms=1000,
        counters=Counters(inferences=5, slow=1), **more,
    )  # fmt: skip


def event(kind="note", at_ms=1, detail=""):
    return Event(seq=0, kind=kind, at_ms=at_ms, detail=detail)


def run(*arguments, config=None, **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    if config is not None:
        environment["EDGEML_AGENT"] = str(config)
    return subprocess.run(
        [sys.executable, "-m", "edgeml", "agent", "buffer", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=60, env=environment, cwd=ROOT, **more,
    )  # fmt: skip


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "telemetry.db"


@pytest.fixture
def filled(path):
    """Two lives: the first left windows 3 to 10 and two events, the second one window; one refused, two acknowledged."""
    buffer = Buffer(path, "b1")
    for index in range(10):
        buffer.append(window(index * DAY_MS))
    buffer.append(event("first", 5, 'a, "quoted"\nline and a snowman \N{SNOWMAN}'))
    buffer.append(event("second", 6))
    buffer.send(Stream.WINDOWS, buffer.pending(Stream.WINDOWS))
    buffer.acknowledge(Ack(boot="b1", stream="windows", seq=1))
    assert buffer.refuse(Stream.WINDOWS, "b1", 2)
    buffer.close()
    buffer = Buffer(path, "b2")
    buffer.append(window(99 * DAY_MS, sketch=Sketch(DIGEST, 1, ((1, 2),), (3,), (4,)), latency=(0, 7)))
    buffer.close()
    return path


def listed(config):
    done = run("ls", "--json", config=config)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_ls_accounts_for_every_row(filled, config):
    found = listed(config)
    assert (found["path"], found["agent_running"]) == (str(filled), False)
    assert found["file_bytes"] == filled.stat().st_size
    windows, events, samples = found["streams"]
    assert (samples["stream"], samples["produced"]) == ("samples", 0)
    assert {name: windows[name] for name in ("produced", "sent", "acknowledged", "dropped", "held", "reasons")} == {
        "produced": 11, "sent": 10, "acknowledged": 1, "dropped": 1, "held": 9,
        "reasons": {"refused": 1},
    }  # fmt: skip
    assert [
        (one["boot"], one["rows"], one["first_seq"], one["last_seq"], one["oldest_ms"], one["newest_ms"])
        for one in windows["boots"]
    ] == [("b1", 8, 3, 10, 2 * DAY_MS, 9 * DAY_MS), ("b2", 1, 1, 1, 99 * DAY_MS, 99 * DAY_MS)]
    assert [(one["boot"], one["rows"], one["oldest_ms"]) for one in events["boots"]] == [("b1", 2, 5)]
    assert all(one["payload_bytes"] > 0 for one in windows["boots"] + events["boots"])


def test_ls_says_the_same_to_a_person(filled, config):
    done = run("ls", "-c", config)
    lines = done.stdout.splitlines()
    assert lines[0] == f"{filled}: {filled.stat().st_size} bytes; the agent does not run"
    assert "windows: produced 11 = acknowledged 1 + dropped 1 (refused 1) + held 9; sent 10" in lines
    assert "events: produced 2 = acknowledged 0 + dropped 0 + held 2; sent 0" in lines
    [row] = [line for line in lines if line.startswith("  b2")]
    assert row.split()[:2] == ["b2", "1"]
    assert row.endswith("1970-04-10 00:00:00")


def test_export_of_json_lines_has_every_row_as_it_goes_over_the_wire(filled, config, tmp_path):
    to = tmp_path / "rows.jsonl"
    done = run("export", "--to", to, config=config)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"11 rows are in {to}\n", "")
    lines = [json.loads(line) for line in to.read_text().splitlines()]
    assert [(one["stream"], one["boot"], one["row"]["seq"]) for one in lines] == [
        *(("windows", "b1", seq) for seq in range(3, 11)), ("windows", "b2", 1),
        ("events", "b1", 1), ("events", "b1", 2),
    ]  # fmt: skip
    assert lines[8]["row"]["sketch"]["counts"] == [[1, 2]]
    assert lines[9]["row"]["detail"] == 'a, "quoted"\nline and a snowman \N{SNOWMAN}'


def test_export_of_csv_has_a_column_for_every_field(filled, config, tmp_path):
    to = tmp_path / "rows.csv"
    assert run("export", "--to", to, config=config).returncode == 0
    with to.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    assert set(COLUMNS) >= {*Window.__struct_fields__, *Event.__struct_fields__} - {"counters"}
    assert len(rows) == 11
    assert (rows[0]["seq"], rows[0]["inferences"], rows[0]["slow"], rows[0]["kind"]) == ("3", "5", "1", "")
    assert (rows[8]["boot"], rows[8]["latency"], rows[8]["started_at_ms"]) == (
        "b2",
        "[0,7]",
        str(99 * DAY_MS),
    )
    assert rows[9]["detail"] == 'a, "quoted"\nline and a snowman \N{SNOWMAN}'
    only = tmp_path / "events.csv"
    assert (
        run("export", "--to", only, "--stream", "events", config=config).stdout == f"2 rows are in {only}\n"
    )
    assert only.read_text().count("\nevents,") == 2
    assert "windows," not in only.read_text()


def test_rows_that_cannot_be_read_are_left_out_and_counted(filled, config, tmp_path):
    with sqlite3.connect(filled) as connection:
        connection.execute("UPDATE windows_blocks SET payload = x'ff00' WHERE boot = 'b1'")
        connection.execute("UPDATE windows_blocks SET payload = 'text' WHERE boot = 'b2'")
    connection.close()
    done = run("export", "--to", tmp_path / "rows.jsonl", config=config)
    assert done.returncode == 0
    assert done.stderr == "9 rows could not be read and were left out\n"
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2
    assert listed(config)["streams"][0]["boots"][0]["oldest_ms"] is None


def test_a_long_export_shows_its_progress_on_a_terminal_only(path, config, tmp_path):
    buffer = Buffer(path, "b1")
    for index in range(3000):
        buffer.append(event(at_ms=index))
    buffer.close()
    assert run("export", "--to", tmp_path / "rows.jsonl", config=config).stderr == ""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "edgeml", "agent", "buffer", "export", "-c", config, "--to", tmp_path / "r.csv"],
        stdout=subprocess.PIPE, stderr=theirs, check=False, timeout=60, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.stdout == f"3000 rows are in {tmp_path / 'r.csv'}\n".encode()
    assert "r.csv" in shown
    assert "100%" in shown


WRITER = """
import sys
from pathlib import Path
from agent.buffer import Buffer, BufferLimits
from agent.config import LOCK
from edgeml.lock import Lock
from edgeml.telemetry import Event, Stream
storage = Path(sys.argv[1])
lock = Lock(storage / LOCK, "taken", "")
buffer = Buffer(storage / "telemetry.db", "b9", BufferLimits(rows_max=2000))
buffer._connection.execute("PRAGMA busy_timeout = 100")
index = 0
while True:
    for _ in range(50):
        buffer.append(Event(seq=0, kind="tick", at_ms=index, detail="d" * 200))
        index += 1
    buffer.flush()
    print(index, flush=True)
    if index % 1000 == 0 and sys.stdin.readline().strip() == "stop":
        break
loss = buffer.loss(Stream.EVENTS)
buffer.close()
print("ended", loss.produced, loss.dropped, flush=True)
"""


@pytest.mark.processes
def test_ls_and_export_while_a_writer_fills_and_evicts_and_it_is_never_refused(path, config, tmp_path):
    path.parent.mkdir()
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, path.parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        # A thousand rows at each word, so that it writes as long as we read and no longer than that.
        said = ""
        for round_ in range(6):
            while not said.startswith(f"{1000 * (round_ + 1)}\n"):
                said = writer.stdout.readline()
                assert said, "the writer died"
            writer.stdin.write("go\n")
            writer.stdin.flush()
            found = listed(config)
            assert found["agent_running"]
            events = found["streams"][1]
            assert events["produced"] == events["acknowledged"] + events["dropped"] + events["held"]
            assert events["held"] == sum(boot["rows"] for boot in events["boots"]) <= 2000
            assert events["dropped"] == events["reasons"].get("evicted", 0)
            to = tmp_path / f"{round_}.jsonl"
            done = run("export", "--to", to, config=config)
            assert done.returncode == 0, done.stderr
            seqs = [json.loads(line)["row"]["seq"] for line in to.read_text().splitlines()]
            assert seqs == sorted(set(seqs))
        refused = run("vacuum", config=config)
        assert refused.returncode == 2
        assert "an agent runs on" in refused.stderr
        writer.stdin.write("stop\n")
        writer.stdin.close()
        rest = writer.stdout.read().split()
        assert writer.wait(60) == 0
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    assert "ended" in rest
    assert int(rest[-1]) > 0
    events = listed(config)["streams"][1]
    assert (events["produced"], events["dropped"]) == (int(rest[-2]), int(rest[-1]))


def test_vacuum_gives_pages_back_and_loses_no_row(path, config):
    buffer = Buffer(path, "b1")
    for index in range(3000):
        buffer.append(event(at_ms=index, detail=random.Random(index).randbytes(150).hex()))
    buffer.flush()
    buffer.acknowledge(Ack(boot="b1", stream="events", seq=2900))
    buffer.close()
    before = path.stat().st_size
    done = run("vacuum", "--json", config=config)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said == {"before_bytes": before, "after_bytes": path.stat().st_size}
    assert said["after_bytes"] < before / 5
    assert (
        run("vacuum", config=config).stdout
        == f"{said['after_bytes']} bytes before, {said['after_bytes']} after\n"
    )
    assert not is_held(path.parent / LOCK)
    again = Buffer(path, "b2", BufferLimits())
    assert again.held(Stream.EVENTS) == 100
    assert again.loss(Stream.EVENTS).acknowledged == 2900
    batch = again.pending(Stream.EVENTS)
    assert [row.seq for row in batch.rows] == list(range(2901, 3001))
    assert again.acknowledge(Ack(boot="b1", stream="events", seq=2950)) == 50
    again.close()


def test_vacuum_waits_for_no_agent(filled, config):
    lock = Lock(filled.parent / LOCK, "taken", "")
    before = filled.read_bytes()
    done = run("vacuum", config=config)
    lock.release()
    assert (done.returncode, done.stdout) == (2, "")
    assert "stop it first" in done.stderr
    assert filled.read_bytes() == before


def spoil(path):
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))


BAD = {
    "no database": (lambda path: path.write_bytes(b"no database at all " * 300), 5, "cannot be read"),
    "damaged": (spoil, 5, "cannot be read"),
    "another database": (lambda path: (path.unlink(), statement(path, "CREATE TABLE t (x)")), 5, "holds no telemetry"),
    "empty": (lambda path: path.write_bytes(b""), 5, "holds no telemetry"),
    "newer": (lambda path: statement(path, "PRAGMA user_version = 99"), 3, "version 99"),
    "gone": (lambda path: path.unlink(), 2, "no telemetry at"),
}  # fmt: skip
COMMANDS = (["ls"], ["export", "--to", "out.jsonl"], ["vacuum"])


def statement(path, text):
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(text)
    connection.close()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_file_is_one_line_and_an_exit_code_and_is_left_as_it_is(filled, config, tmp_path, bad, command):
    harm, code, words = BAD[bad]
    harm(filled)
    before = filled.read_bytes() if filled.exists() else None
    where = [str(tmp_path / one) if one == "out.jsonl" else one for one in command]
    done = run(*where, config=config)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert (filled.read_bytes() if filled.exists() else None) == before
    assert not (tmp_path / "out.jsonl").exists()
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["rows.xml", "rows", ".jsonl"])
def test_a_name_that_says_no_format_is_the_users_to_fix(filled, config, tmp_path, name):
    done = run("export", "--to", tmp_path / name, config=config)
    assert done.returncode == 2
    assert ".jsonl nor .csv" in done.stderr
    assert not (tmp_path / name).exists()


def test_a_directory_that_cannot_be_written_is_a_storage_error(filled, config):
    done = run("export", "--to", "/proc/rows.jsonl", config=config)
    assert done.returncode == 5
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_without_the_library_it_says_how_to_get_it(filled, config, tmp_path, command):
    code = "import sys; sys.modules['sqlite_utils'] = None; from edgeml.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "agent", "buffer", *command, "-c", config], capture_output=True, text=True, check=False,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "needs sqlite-utils" in done.stderr
    assert "edgeml-fleet[tools]" in done.stderr
