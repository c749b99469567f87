"""The fleet's database: exactly once, durable, and of a known version."""

import threading
from typing import NamedTuple

import msgspec
import pytest
import sqlalchemy as sa

from edgeml.errors import ConfigError, StateError, StorageError
from edgeml.ids import DeviceId, ReleaseId
from edgeml.telemetry import NO_VIOLATIONS, Batch, Counters, Event, InputQuality, Loss, Stream, Window
from edgeml.twin import Outcome
from fleet import devices, rollout_store, schema, telemetry_store
from fleet.ingest import RowsHeard
from fleet.rollout import Decision, Metric, MetricEvidence, Plan, Rollout, RolloutState
from fleet.store import Store
from fleet.telemetry_store import SliceBook
from fleet.twins import Verdict

CAM = DeviceId("cam-1")
DIGEST = "a" * 64
RELEASE = ReleaseId("digits@1.0.0")
NOW_MS = 1_800_000_000_000


@pytest.fixture
def store(tmp_path):
    opened = Store(f"sqlite:///{tmp_path / 'fleet.db'}")
    yield opened
    opened.close()


def enrol(store, name=CAM, profile="generic-x86-64"):
    with store.write() as connection:
        devices.enrol(
            connection,
            devices.Enrolment(
                device=DeviceId(name),
                tenant="main",
                profile=profile,
                token_sha256="0" * 64,
                broker_hash="-",
                enrolled_at_ms=NOW_MS,
            ),
        )


def window(seq, release=RELEASE, at_ms=NOW_MS, **counters):
    return Window(seq, release, DIGEST, at_ms, 60_000, Counters(inferences=10, **counters))


def rows(*seqs, boot="b1", device=CAM, dropped=0):
    return RowsHeard(
        DeviceId(device), Stream.WINDOWS, Batch(boot, tuple(map(window, seqs)), loss=Loss(dropped=dropped))
    )


class Kept(NamedTuple):
    added: int
    seq: int


def store_one(connection, heard, now_ms=NOW_MS):
    """Store a batch: how many of its rows were new, and what is acknowledged."""
    stored = telemetry_store.store_rows(connection, [heard], now_ms)
    (seq,) = stored.highest.values()
    return Kept(stored.added, seq)


def stored_seqs(store):
    with store.read() as connection:
        return list(connection.scalars(sa.select(schema.windows.c.seq).order_by(schema.windows.c.id)))


def test_rows_that_are_sent_again_are_stored_once_and_acknowledged_again(store):
    with store.write() as connection:
        first = store_one(connection, rows(1, 2, 3), NOW_MS)
        again = store_one(connection, rows(2, 3, 4), NOW_MS)
        late = store_one(connection, rows(1, 2), NOW_MS)
    assert (first.added, again.added, late.added) == (3, 1, 0)
    assert (first.seq, again.seq, late.seq) == (3, 4, 4)
    assert stored_seqs(store) == [1, 2, 3, 4]


def test_batches_of_one_transaction_are_stored_together(store):
    enough = [rows(1, 2), rows(1, 2), rows(3), rows(2, 3), rows(7, boot="b2"), rows(1, device="cam-2")]
    with store.write() as connection:
        stored = telemetry_store.store_rows(connection, enough, NOW_MS)
    assert stored.added == 5
    assert {(key.device, key.boot): seq for key, seq in stored.highest.items()} == {
        ("cam-1", "b1"): 3,
        ("cam-1", "b2"): 7,
        ("cam-2", "b1"): 1,
    }


def test_same_seq_of_another_boot_or_device_is_another_row(store):
    with store.write() as connection:
        added = [
            store_one(connection, one).added for one in (rows(1), rows(1, boot="b2"), rows(1, device="cam-2"))
        ]
    assert added == [1, 1, 1]


def test_rows_after_a_gap_that_the_device_counted_are_acknowledged(store):
    with store.write() as connection:
        store_one(connection, rows(1, 2), NOW_MS)
        assert store_one(connection, rows(40, 41, dropped=37), NOW_MS).seq == 41
        assert telemetry_store.losses(connection)[CAM].dropped == 37


def test_events_are_stored_once(store):
    heard = RowsHeard(
        CAM, Stream.EVENTS, Batch("b1", events=(Event(5, "worker_crash", NOW_MS, "signal 11", RELEASE),))
    )
    with store.write() as connection:
        assert [store_one(connection, heard).added for _ in range(2)] == [1, 0]
        (event,) = telemetry_store.recent_events(connection, 0, 10)
    assert (event.device, event.event.kind, event.event.detail) == (CAM, "worker_crash", "signal 11")


def test_transaction_that_fails_stores_nothing(store):
    def cut():
        with store.write() as connection:
            store_one(connection, rows(1, 2), NOW_MS)
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        cut()
    assert stored_seqs(store) == []


def test_slice_book_adds_new_windows_to_what_it_knows(store):
    book = SliceBook(NOW_MS, 60_000)
    with store.write() as connection:
        store_one(connection, rows(1, 2), NOW_MS)
        assert book.update(connection)
        assert not book.update(connection)
        early = RowsHeard(CAM, Stream.WINDOWS, Batch("b0", (window(9, at_ms=NOW_MS - 1),)))
        store_one(connection, rows(2, 3), NOW_MS)
        store_one(connection, early)
        book.update(connection)
    (counted,) = book.counts()
    assert (counted.device, counted.release, counted.slice) == (CAM, RELEASE, NOW_MS // 60_000)
    assert counted.counters.inferences == 30


def test_old_telemetry_is_pruned_and_a_replay_of_its_batch_still_acknowledged(store):
    with store.write() as connection:
        store_one(connection, rows(1, 2), NOW_MS)
        store_one(connection, rows(3), NOW_MS + 1000)
        assert telemetry_store.prune(connection, NOW_MS + 500) == 2
        assert store_one(connection, rows(3), NOW_MS + 2000).seq == 3


def test_assignment_outcome_is_decided_once(store):
    enrol(store)
    rollout = Rollout(id="r1", plan=Plan(RELEASE), phase_since_ms=NOW_MS, created_at_ms=NOW_MS)
    row = rollout_store.AssignmentRow(
        device=CAM, deployment="r1:cam-1:1", rollout="r1", generation=1, release=RELEASE, digest=DIGEST,
        revert=False, retry=0, incumbent=None, assigned_at_ms=NOW_MS,
    )  # fmt: skip
    with store.write() as connection:
        rollout_store.save(connection, rollout)
        rollout_store.save_assignment(connection, row)
        rollout_store.decide(connection, row, Verdict(Outcome.ROLLED_BACK, "too slow"), NOW_MS + 1)
        rollout_store.decide(connection, row, Verdict(Outcome.COMMITTED, ""), NOW_MS + 2)
        assert rollout_store.undecided(connection, CAM, row.deployment) is None
        decided = rollout_store.load_assignments(connection, "r1")[CAM]
    assert (decided.outcome, decided.reason) == (Outcome.ROLLED_BACK, "too slow")


def test_evidence_without_bound_is_stored_as_a_number(store):
    rollout = Rollout(id="r1", plan=Plan(RELEASE), phase_since_ms=NOW_MS, created_at_ms=NOW_MS)
    evidence = (
        MetricEvidence(Metric.WRONG, float("inf"), 0.5, 0.1, 10, 10),
        MetricEvidence(Metric.SLOW, float("-inf"), 0, 0, 0, 0),
    )
    with store.write() as connection:
        rollout_store.save(connection, rollout)
        rollout_store.save_event(connection, Decision(rollout, event="stopped", evidence=evidence), NOW_MS)
        (event,) = rollout_store.load_events(connection, "r1")
    assert [one.log_e for one in event.evidence] == [rollout_store.LOG_E_LIMIT, -rollout_store.LOG_E_LIMIT]


def test_unfinished_rollouts_are_those_that_still_go_somewhere(store):
    with store.write() as connection:
        for index, state in enumerate(RolloutState):
            plan = Plan(RELEASE)
            rollout_store.save(
                connection,
                Rollout(id=f"r{index}", plan=plan, state=state, phase_since_ms=0, created_at_ms=index),
            )
        unfinished = {one.state for one in rollout_store.load_unfinished(connection)}
    assert unfinished == {RolloutState.RUNNING, RolloutState.PAUSED, RolloutState.ROLLING_BACK}


def test_commit_survives_a_process_that_never_closes_its_connection(store, tmp_path):
    with store.write() as connection:
        store_one(connection, rows(1), NOW_MS)
    other = Store(f"sqlite:///{tmp_path / 'fleet.db'}")
    assert stored_seqs(other) == [1]
    other.close()


def test_writers_wait_for_each_other_and_readers_do_not_wait(store):
    inside, leave = threading.Event(), threading.Event()

    def slow_writer():
        with store.write() as connection:
            store_one(connection, rows(1), NOW_MS)
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=slow_writer)
    thread.start()
    assert inside.wait(60)
    assert stored_seqs(store) == []
    threading.Timer(0.2, leave.set).start()
    with store.write() as connection:
        store_one(connection, rows(2), NOW_MS)
    thread.join()
    assert stored_seqs(store) == [1, 2]


def test_decisions_are_synced_to_the_disk(store):
    with store.read() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


@pytest.mark.parametrize("version", ["3", "99", "x"])
def test_database_of_a_newer_edgeml_is_refused(store, tmp_path, version):
    with store.write() as connection:
        connection.execute(schema.meta.update().values(value=version))
    with pytest.raises(StateError, match="schema"):
        Store(f"sqlite:///{tmp_path / 'fleet.db'}")


def test_database_from_before_a_device_had_several_models_is_refused(store, tmp_path):
    with store.write() as connection:
        connection.execute(schema.meta.update().values(value="1"))
    with pytest.raises(StateError, match="schema 1; this edgeml knows 2") as caught:
        Store(f"sqlite:///{tmp_path / 'fleet.db'}")
    assert "edgeml fleet init" in caught.value.hint


def test_database_that_is_none_is_refused(tmp_path):
    (tmp_path / "fleet.db").write_bytes(b"not a database" * 100)
    with pytest.raises((StateError, StorageError)):
        Store(f"sqlite:///{tmp_path / 'fleet.db'}")


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "sqlite+nonsense:///x"])
def test_unusable_url_is_the_users_to_fix(url):
    with pytest.raises(ConfigError):
        Store(url)


def test_removed_device_leaves_its_telemetry_behind(store):
    enrol(store)
    with store.write() as connection:
        store_one(connection, rows(1), NOW_MS)
        assert devices.remove(connection, CAM)
        assert not devices.remove(connection, CAM)
    assert stored_seqs(store) == [1]


def test_statements_compile_for_postgresql():
    from sqlalchemy.dialects import postgresql

    from fleet.store import _dialect

    class Fake:
        dialect = postgresql.dialect()

    statement = _dialect(Fake()).insert(schema.windows).on_conflict_do_nothing()
    assert "ON CONFLICT DO NOTHING" in str(statement.compile(dialect=postgresql.dialect()))
    for table in schema.metadata.sorted_tables:
        assert "CREATE TABLE" in str(sa.schema.CreateTable(table).compile(dialect=postgresql.dialect()))


def test_what_was_wrong_with_inputs_is_stored_with_its_window(store):
    enrol(store)
    quality = InputQuality(schema=1, out_of_range=7, refused=2, volume_low=1)
    batch = Batch("b1", (window(1), msgspec.structs.replace(window(2), quality=quality)))
    with store.write() as connection:
        telemetry_store.store_rows(connection, [RowsHeard(DeviceId(CAM), Stream.WINDOWS, batch)], NOW_MS)
    with store.read() as connection:
        found = telemetry_store.recent_windows(connection, DeviceId(CAM), RELEASE, 0, 10)
    assert [one.quality for one in found] == [NO_VIOLATIONS, quality]


def test_a_database_of_before_gets_the_column_and_the_tables_and_keeps_its_rows(tmp_path):
    url = f"sqlite:///{tmp_path / 'fleet.db'}"
    first = Store(url)
    enrol(first)
    with first.write() as connection:
        store_one(connection, rows(1))
        connection.exec_driver_sql("ALTER TABLE windows DROP COLUMN quality")
        for table in (schema.floods, schema.quarantines, schema.removals):
            table.drop(connection)
    first.close()
    for _ in range(2):
        again = Store(url)
        with again.write() as connection:
            store_one(connection, rows(2))
        with again.read() as connection:
            assert not devices.load(connection, CAM).quarantined
            found = telemetry_store.recent_windows(connection, DeviceId(CAM), RELEASE, 0, 10)
        assert [(one.seq, one.quality) for one in found] == [(1, NO_VIOLATIONS), (2, NO_VIOLATIONS)]
        again.close()
