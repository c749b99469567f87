"""Several models on a device: each has its own generations, reports and rollouts, and none touches another's."""

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml.errors import ConfigError
from edgeml.ids import ModelName, ReleaseId
from edgeml.topics import Leaf
from edgeml.transport import Message
from edgeml.twin import MODELS_MAX, Desired, Outcome, Reported, Slot, Slots
from fleet import campaigns, devices, overview, schema, tables, twins
from fleet.devices import Device, Twin, TwinKey
from fleet.overview import Part
from fleet.rollout import RolloutState

OLD, NEW = ReleaseId("digits@1.0.0"), ReleaseId("digits@1.1.0")
ALARMS_OLD, ALARMS_NEW = ReleaseId("alarms@1.0.0"), ReleaseId("alarms@2.0.0")
DIGITS, ALARMS = ModelName("digits"), ModelName("alarms")
DEVICE = Device(
    device="cam-1", tenant="main", profile="p", online=True, session="s1", first_seen_ms=None, last_seen_ms=None,
    birth=None,
)  # fmt: skip


def come(world, *names):
    cams = world.enrol(*names)
    for cam in cams:
        cam.come()
        cam.report(OLD)
        cam.report(ALARMS_OLD, model=ALARMS)
    world.step()
    return cams


def wanted_of(release, generation=1):
    return Desired(
        generation=generation, deployment=f"d{generation}", release=release, target="t", digest="a" * 64
    )


def running(device):
    return {one.model: one.release for one in device.models}


def test_reports_of_two_models_are_kept_apart(world):
    (cam,) = come(world, "cam-1")
    cam.report(NEW, None, wanted_of(NEW, 9))
    cam.report(ALARMS_NEW, None, wanted_of(ALARMS_NEW, 2), model=ALARMS)
    world.step()
    device = world.device("cam-1")
    assert running(device) == {ALARMS: ALARMS_NEW, DIGITS: NEW}
    assert (device.model(DIGITS).generation, device.model(ALARMS).generation) == (9, 2)
    cam.report(OLD, None, wanted_of(OLD, 3))  # old for this model, though new for the other
    world.step()
    assert running(world.device("cam-1")) == {ALARMS: ALARMS_NEW, DIGITS: NEW}
    assert world.controller.refused["old report"] == 1


def test_memory_lost_under_a_new_session_is_believed_of_each_model_by_itself(world):
    (cam,) = come(world, "cam-1")
    cam.report(NEW, None, wanted_of(NEW, 5))
    cam.report(ALARMS_NEW, None, wanted_of(ALARMS_NEW, 5), model=ALARMS)
    world.step()
    cam.session = "after a new flash"
    cam.come()
    cam.report(ALARMS_OLD, model=ALARMS)
    world.step()
    assert running(world.device("cam-1")) == {ALARMS: ALARMS_OLD, DIGITS: NEW}
    cam.report(OLD)
    world.step()
    assert running(world.device("cam-1")) == {ALARMS: ALARMS_OLD, DIGITS: OLD}


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c"]),
            st.integers(0, 4),
            st.sampled_from(["d1", "d2", None]),
            st.sampled_from([None, Outcome.COMMITTED]),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_interleaved_reports_end_as_if_each_model_were_alone(said):
    """Whatever is said of other models in between, and whenever the session changes."""
    together = DEVICE
    alone = dict.fromkeys("abc", DEVICE)
    for index, (model, generation, deployment, outcome, new_session) in enumerate(said):
        if new_session:
            together = msgspec.structs.replace(together, session=f"s{index}")
            alone = {name: msgspec.structs.replace(one, session=f"s{index}") for name, one in alone.items()}
        slots = Slots(Slot(ReleaseId(f"{model}@{index}"), "a" * 64, "t", 1))
        reported = Reported(generation=generation, deployment=deployment, outcome=outcome, slots=slots)
        together = twins.on_report(together, ModelName(model), reported)
        alone[model] = twins.on_report(alone[model], ModelName(model), reported)
    for name, one in alone.items():
        assert together.model(ModelName(name)) == one.model(ModelName(name))


def test_rollout_does_not_touch_another_model(world):
    cams = come(world, "cam-1", "cam-2")
    rollout = world.start_rollout(release=ALARMS_NEW)
    world.step(times=3)
    assert [cam.desired() for cam in cams] == [None, None]
    assert {cam.desired(ALARMS).release for cam in cams} == {ALARMS_NEW}
    assert {row.incumbent for row in world.assignments(rollout).values()} == {ALARMS_OLD}
    campaigns.request(world.store, rollout, RolloutState.ABORTED)
    world.step(times=2)
    for cam in cams:
        back = cam.desired(ALARMS)
        assert (back.release, back.generation) == (ALARMS_OLD, 2)
        assert cam.desired() is None
        cam.report(ALARMS_OLD, Outcome.REVERTED, back, model=ALARMS)
    world.step(times=3)
    view = overview.rollout(world.store, rollout)
    assert view.rollout.state is RolloutState.ABORTED
    assert {one.release for one in view.devices} == {ALARMS_OLD}
    assert running(world.device("cam-1")) == {ALARMS: ALARMS_OLD, DIGITS: OLD}


def test_rollouts_of_two_models_run_and_end_side_by_side(world):
    cams = come(world, "cam-1", "cam-2")
    first = world.start_rollout()
    second = world.start_rollout(release=ALARMS_NEW, priority=5)
    with pytest.raises(ConfigError, match=second):
        world.start_rollout(release=ALARMS_OLD)
    world.step(times=3)
    for cam in cams:
        mine, other = cam.desired(), cam.desired(ALARMS)
        assert (mine.generation, other.generation) == (1, 1)
        assert (mine.policy.priority, other.policy.priority) == (0, 5)
        cam.report(NEW, Outcome.COMMITTED, mine)
        cam.report(ALARMS_OLD, Outcome.ROLLED_BACK, other, reason="too slow", model=ALARMS)
        cam.rows(1, release=NEW, at_ms=world.clock.now_ms())
        cam.rows(2, release=ALARMS_OLD, at_ms=world.clock.now_ms())
    world.step(times=12)
    done, held = overview.rollout(world.store, first), overview.rollout(world.store, second)
    assert (done.rollout.state, done.parts[Part.DONE.value]) == (RolloutState.COMPLETED, 2)
    assert (held.rollout.state, held.parts[Part.FAILED.value]) == (RolloutState.PAUSED, 2)
    assert overview.status(world.store, 0).unfinished_rollouts == (second,)
    assert overview.status(world.store, 0).releases == {NEW: 2, ALARMS_OLD: 2}


def test_outcome_said_on_the_topic_of_another_model_decides_nothing(world):
    (cam,) = come(world, "cam-1")
    rollout = world.start_rollout()
    world.step(times=3)
    wanted = cam.desired()
    cam.report(ALARMS_OLD, Outcome.FAILED, wanted, model=ALARMS)
    world.step()
    assert world.assignments(rollout)[cam.name].outcome is None


def test_report_with_a_release_of_another_model_is_refused(world):
    (cam,) = come(world, "cam-1")
    cam.report(ALARMS_NEW, None, wanted_of(ALARMS_NEW), model=DIGITS)
    world.step()
    assert world.controller.refused["malformed"] == 1
    assert running(world.device("cam-1")) == {ALARMS: ALARMS_OLD, DIGITS: OLD}


def test_only_the_model_that_is_not_answered_is_said_again(world):
    (cam,) = come(world, "cam-1")
    world.start_rollout()
    world.start_rollout(release=ALARMS_NEW)
    world.step(times=3)
    answered, silent = cam.desired(), cam.desired(ALARMS)
    cam.report(NEW, Outcome.COMMITTED, answered)
    world.step()
    cam.heard.clear()
    world.step(31.0, times=2)
    assert cam.desired() is None
    assert cam.desired(ALARMS) == silent


def test_device_cannot_fill_the_database_with_models(world):
    (cam,) = world.enrol("cam-1")
    cam.come()
    for index in range(MODELS_MAX + 5):
        cam.say(Leaf.REPORTED, Reported(generation=0), f"m{index}")
    world.step()
    assert world.count(schema.twins) == MODELS_MAX
    assert world.controller.refused["too many models"] == 5
    cam.say(Leaf.REPORTED, Reported(generation=1), "m0")
    world.step()
    assert world.device("cam-1").model("m0").generation == 1
    with world.store.write() as connection:
        devices.save_desired(connection, cam.name, wanted_of(NEW))
    cam.report(NEW, None, wanted_of(NEW))
    world.step()
    assert world.device("cam-1").model(DIGITS).release == NEW, "what the fleet wants has always room"


def test_only_what_has_changed_is_written(world):
    come(world, "cam-1", "cam-2")
    before = {name: world.device(name) for name in ("cam-1", "cam-2")}
    said = []

    def note(_connection, _cursor, statement, parameters, _context, many):
        if "twins" in statement:
            said.extend(parameters if many else [parameters])

    after = dict(before)
    after["cam-1"] = before["cam-1"].with_twin(Twin(ALARMS, Reported(generation=7), "s1"))
    with world.store.write() as connection:
        sa.event.listen(connection, "before_cursor_execute", note)
        devices.save(connection, before, after)
    assert len(said) == 1
    assert world.device("cam-1") == after["cam-1"]
    assert world.device("cam-2") == before["cam-2"]


@pytest.mark.parametrize("count", [1, 40])
def test_fleet_is_loaded_with_two_queries_however_large_it_is(world, count):
    come(world, *(f"cam-{index}" for index in range(count)))
    queries = []
    with world.store.read() as connection:
        sa.event.listen(connection, "before_cursor_execute", lambda *said: queries.append(said[2]))
        fleet = devices.load_all(connection)
    assert [running(one) for one in fleet] == [{ALARMS: ALARMS_OLD, DIGITS: OLD}] * count
    assert len(queries) == 2


def test_removed_device_takes_its_twins_with_it(world):
    (cam,) = come(world, "cam-1")
    with world.store.write() as connection:
        devices.save_desired(connection, cam.name, wanted_of(NEW))
        devices.save_desired(connection, cam.name, wanted_of(ALARMS_NEW))
        assert set(devices.load_desired(connection)) == {
            TwinKey("cam-1", DIGITS),
            TwinKey("cam-1", ALARMS),
        }
        devices.remove(connection, cam.name)
    assert (world.count(schema.twins), world.count(schema.desired)) == (0, 0)


def test_table_has_a_line_for_each_model_and_one_for_a_device_without_any(world):
    come(world, "cam-1")
    world.enrol("cam-2")
    with world.store.write() as connection:
        devices.save_desired(connection, "cam-1", wanted_of(ReleaseId("new@1")))
    view = overview.status(world.store, world.clock.now_ms())
    assert [[one.model for one in device.models] for device in view.devices] == [[ALARMS, DIGITS, "new"], []]
    table = tables.devices_table(view.devices, view.at_ms)
    cells = {column.header: list(column.cells) for column in table.columns}
    assert cells["DEVICE"] == ["cam-1"] * 3 + ["cam-2"]
    assert cells["MODEL"] == [ALARMS, DIGITS, "new", "-"]
    assert cells["RUNS"] == [ALARMS_OLD, OLD, "-", "-"]
    assert cells["WANTED"] == ["-", "-", "new@1 (not answered yet)", "-"]


def test_drift_looks_at_the_newest_release_of_each_model(world):
    (cam,) = come(world, "cam-1")
    world.enrol("cam-2")
    now_ms = world.clock.now_ms()
    for seq, release in enumerate((OLD, ALARMS_OLD, ALARMS_NEW, NEW, *[ALARMS_NEW] * 30), 1):
        cam.rows(seq, release=release, at_ms=now_ms + seq)
    world.step()
    rows = overview.drift(world.store, world.clock.now_ms())
    assert {(row.device, row.model, row.release) for row in rows} == {
        ("cam-1", DIGITS, NEW),
        ("cam-1", ALARMS, ALARMS_NEW),
        ("cam-2", None, None),
    }


def test_said_in_json_for_each_model(world):
    come(world, "cam-1")
    said = msgspec.json.decode(msgspec.json.encode(overview.status(world.store, 0)))
    assert [(one["model"], one["release"]) for one in said["devices"][0]["models"]] == [
        (ALARMS, ALARMS_OLD),
        (DIGITS, OLD),
    ]


def test_cleared_topic_of_a_model_says_nothing(world):
    (cam,) = come(world, "cam-1")
    cam.link.publish(Message(cam.topic(Leaf.REPORTED, ALARMS), b"", 1, retain=True))
    world.step()
    assert world.controller.refused.total() == 0
    assert running(world.device("cam-1")) == {ALARMS: ALARMS_OLD, DIGITS: OLD}
