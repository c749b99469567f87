"""The controller on a loopback broker: stores before it acknowledges, believes what it should, and may die at any instant."""

import msgspec
import pytest
import sqlalchemy as sa

from edgeml import telemetry, topics, twin
from edgeml.errors import StateError, StorageError
from edgeml.ids import DeviceId, ReleaseId, TenantId
from edgeml.manifest import RuntimeFamily
from edgeml.telemetry import Batch, Counters, Loss, Stream, Window
from edgeml.testing import FakeClock, LoopbackBroker, Weather
from edgeml.topics import CONTROLLER_USER, Leaf
from edgeml.transport import Message
from edgeml.trustfacts import SignedFacts, SignedTarget
from edgeml.twin import Ack, Birth, Desired, DeviceState, Outcome, Presence, Reported, Slot, Slots
from fleet import campaigns, devices, overview, rollout_store, schema
from fleet.config import FleetConfig, LoopSettings
from fleet.devices import Enrolment
from fleet.overview import Part
from fleet.rollout import Plan, RolloutState
from fleet.service import Controller
from fleet.store import Store

TENANT = TenantId("main")
OLD, NEW = ReleaseId("digits@1.0.0"), ReleaseId("digits@1.1.0")
DIGESTS = {OLD: "a" * 64, NEW: "b" * 64}
PROFILE = "generic-x86-64"


class Published:
    """What is signed: both releases, for one profile."""

    def releases(self):
        return [self.variant_for(OLD, PROFILE), self.variant_for(NEW, PROFILE)]

    def variant_for(self, release, profile):
        if release not in DIGESTS or profile != PROFILE:
            return None
        facts = SignedFacts(release, "v", 1, (PROFILE,), RuntimeFamily.ONNX, 1 << 18, "c" * 64)
        return SignedTarget(f"digits/{release.partition('@')[2]}/v.edgeml", DIGESTS[release], 1000, facts)


class Cam:
    """What a device says; what it hears is kept."""

    def __init__(self, world, name, session="s1"):
        self.name, self.session, self.tenant = DeviceId(name), session, TENANT
        will = Message(
            self.topic(Leaf.STATE), twin.encode(Presence(online=False, session=session)), retain=True
        )
        self.link = world.broker.connect(name, topics.down_filters(TENANT, self.name), will)
        self.heard = []

    def topic(self, leaf, stream=None):
        return topics.device_topic(self.tenant, self.name, leaf, stream)

    def come(self):
        self.link.start()
        self.presence(online=True)
        self.say(
            Leaf.BIRTH, Birth(device=self.name, session=self.session, profile=PROFILE, agent_version="test")
        )

    def presence(self, *, online, session=None):
        self.say(Leaf.STATE, Presence(online=online, session=session or self.session))

    def report(self, release=OLD, outcome=None, desired=None, digest=None, reason=""):
        slots = Slots(Slot(release, digest or DIGESTS[release], "t", 1)) if release else Slots()
        generation, deployment = (desired.generation, desired.deployment) if desired else (0, None)
        self.say(
            Leaf.REPORTED,
            Reported(
                generation=generation,
                deployment=deployment,
                state=DeviceState.IDLE,
                slots=slots,
                outcome=outcome,
                reason=reason,
            ),
        )

    def say(self, leaf, message):
        rule = topics.RULES[leaf]
        self.link.publish(Message(self.topic(leaf), twin.encode(message), rule.qos, rule.retain))

    def rows(self, *seqs, boot="b1", release=OLD, at_ms=0, **counters):
        made = tuple(
            Window(seq, release, DIGESTS[release], at_ms, 1000, Counters(inferences=50, **counters))
            for seq in seqs
        )
        self.raw(telemetry.encode_batch(Batch(boot, made, loss=Loss(produced=len(seqs)))))

    def raw(self, payload, leaf=Leaf.TELEMETRY, stream=Stream.WINDOWS):
        self.link.publish(Message(self.topic(leaf, stream if leaf is Leaf.TELEMETRY else None), payload))

    def listen(self):
        while (arrival := self.link.receive(0)) is not None:
            if isinstance(arrival, Message):
                self.heard.append(arrival)
        return self.heard

    def desired(self):
        found = [
            msgspec.json.decode(one.payload, type=Desired)
            for one in self.listen()
            if one.topic.endswith("/desired")
        ]
        return found[-1] if found else None

    def acks(self):
        return [
            msgspec.json.decode(one.payload, type=Ack).seq
            for one in self.listen()
            if one.topic.endswith("/ack")
        ]


class World:
    def __init__(self, directory, weather=None):
        self.url = f"sqlite:///{directory / 'fleet.db'}"
        self.store = Store(self.url)
        self.clock = FakeClock()
        self.broker = LoopbackBroker(TENANT, weather)
        self.config = FleetConfig(tenant=TENANT, controller_loop=LoopSettings(slice_s=10.0, republish_s=30.0))
        self.cams = {}
        self.controller = None
        self.start()

    def start(self):
        self.link = self.broker.connect(CONTROLLER_USER, topics.up_filters(TENANT))
        self.controller = Controller(self.store, Published(), self.link, self.clock, self.config)
        self.link.start()

    def kill_controller(self):
        self.link.cut()
        self.start()

    def enrol(self, *names, profile=PROFILE):
        with self.store.write() as connection:
            for name in names:
                devices.enrol(
                    connection,
                    Enrolment(
                        device=DeviceId(name),
                        tenant=TENANT,
                        profile=profile,
                        token_sha256="0" * 64,
                        broker_hash="-",
                        enrolled_at_ms=0,
                    ),
                )
                self.cams[name] = Cam(self, name)
        return [self.cams[name] for name in names]

    def step(self, seconds=1.0, times=1):
        for _ in range(times):
            self.clock.advance(seconds)
            self.controller.step(0)

    def start_rollout(self, waves=(1.0,), release=NEW, **more):
        plan = Plan(release, waves=waves, soak_s=5.0, trials_min=1, **more)
        return campaigns.start(self.store, Published(), plan, self.clock.now_ms()).id

    def device(self, name):
        with self.store.read() as connection:
            return devices.load(connection, DeviceId(name))

    def count(self, table=schema.windows):
        with self.store.read() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(table))

    def assignments(self, rollout):
        with self.store.read() as connection:
            return rollout_store.load_assignments(connection, rollout)


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.store.close()


def test_rows_are_acknowledged_only_after_they_are_stored(world):
    (cam,) = world.enrol("cam-1")
    cam.come()
    cam.rows(1, 2, 3)
    assert cam.acks() == []
    world.step()
    assert world.count() == 3
    assert cam.acks() == [3]


def test_database_that_fails_leaves_rows_unacknowledged(world, monkeypatch):
    (cam,) = world.enrol("cam-1")
    cam.come()
    world.step()
    cam.rows(1, 2)

    def fails(*_arguments):
        raise sa.exc.OperationalError("INSERT", {}, Exception("disk I/O error"))

    with monkeypatch.context() as patch:
        patch.setattr("fleet.telemetry_store.insert_new", fails)
        with pytest.raises(StorageError, match="disk I/O error"):
            world.step()
    assert cam.acks() == []
    world.kill_controller()
    cam.rows(1, 2)
    world.step()
    assert (world.count(), cam.acks()) == (2, [2])


def test_replayed_rows_are_stored_once_and_acknowledged_every_time(world):
    (cam,) = world.enrol("cam-1")
    cam.come()
    for _ in range(3):
        cam.rows(1, 2, 3)
        world.step()
    assert world.count() == 3
    assert cam.acks() == [3, 3, 3]


@pytest.mark.parametrize("seed", range(5))
def test_duplicates_and_reordering_change_nothing_in_the_end(tmp_path, seed):
    world = World(tmp_path, Weather(duplicated=0.4, reordered=0.6, seed=seed))
    cams = world.enrol("cam-1", "cam-2", "cam-3")
    for cam in cams:
        cam.come()
    for first in range(1, 30, 3):
        for cam in cams:
            cam.rows(first, first + 1, first + 2)
        if first % 4 == 0:
            world.step()
    world.step(times=3)
    assert world.count() == 3 * 30
    assert all(max(cam.acks()) == 30 for cam in cams)
    world.store.close()


def test_poison_is_counted_and_stops_nothing(world, caplog):
    (cam,) = world.enrol("cam-1")
    cam.come()
    for payload in (b"x", b"\xff" * 100, b"{}", b"null"):
        for leaf in (Leaf.TELEMETRY, Leaf.STATE, Leaf.BIRTH, Leaf.REPORTED):
            cam.raw(payload, leaf)
    cam.rows(1)
    world.step()
    assert world.controller.refused["malformed"] >= 15
    assert cam.acks() == [1]
    assert len([one for one in caplog.records if "cam-1" in one.message and "malformed" in one.message]) == 1
    world.step(61.0)
    cam.raw(b"x")
    world.step()
    assert len([one for one in caplog.records if "cam-1" in one.message and "malformed" in one.message]) == 2


def test_birth_that_names_another_device_is_refused(world):
    cam, other = world.enrol("cam-1", "cam-2")
    cam.link.start()
    cam.say(Leaf.BIRTH, Birth(device=other.name, session="x", profile=PROFILE, agent_version="test"))
    world.step()
    assert world.controller.refused["malformed"] == 1
    assert world.device("cam-1").birth is None
    assert world.device("cam-2").birth is None


def test_device_that_is_not_enrolled_is_counted_and_ignored(world):
    stranger = Cam(world, "stranger")
    stranger.come()
    stranger.rows(1)
    world.step()
    assert world.controller.refused["unknown device"] == 3
    assert (world.count(), stranger.acks()) == (0, [])


def test_message_of_another_tenant_is_refused(world):
    (cam,) = world.enrol("cam-1")
    world.link.put(Message("em/v1/other/d/cam-1/state", twin.encode(Presence(online=True, session="s"))))
    world.step()
    assert not world.device("cam-1").online
    assert world.controller.refused["malformed"] == 1


def test_cleared_retained_message_says_nothing(world):
    world.enrol("cam-1")
    world.link.put(Message("em/v1/main/d/cam-1/state", b""))
    world.step()
    assert world.controller.refused.total() == 0


def test_device_comes_and_goes_with_its_will(world):
    (cam,) = world.enrol("cam-1")
    cam.come()
    world.step()
    assert world.device("cam-1").online
    cam.link.cut()
    world.step()
    assert not world.device("cam-1").online


def test_late_will_of_an_old_session_does_not_end_a_new_life(world):
    (cam,) = world.enrol("cam-1")
    cam.come()
    world.step()
    cam.session = "s2"
    cam.come()
    cam.presence(online=False, session="s1")
    world.step()
    assert world.device("cam-1").online
    cam.presence(online=False, session="s2")
    world.step()
    assert not world.device("cam-1").online


def test_life_and_death_that_the_controller_slept_through_is_believed(world):
    (cam,) = world.enrol("cam-1")
    cam.come()
    world.step()
    world.link.cut()
    cam.link.cut()
    cam.session = "s2"
    cam.link.heal()
    cam.presence(online=True)
    cam.presence(online=False)
    world.clock.advance(60)
    world.start()
    world.step()
    assert not world.device("cam-1").online


def test_report_of_an_older_generation_does_not_undo_a_newer_one(world):
    (cam,) = world.enrol("cam-1")
    cam.come()
    world.step()
    old = Desired(generation=3, deployment="d3", release=OLD, target="t", digest=DIGESTS[OLD])
    new = Desired(generation=4, deployment="d4", release=NEW, target="t", digest=DIGESTS[NEW])
    cam.report(NEW, Outcome.COMMITTED, new)
    cam.report(OLD, Outcome.COMMITTED, old)
    world.step()
    assert world.device("cam-1").release == NEW
    assert world.controller.refused["old report"] == 1
    cam.session = "after a new flash"
    cam.come()
    cam.report(OLD)
    world.step()
    assert world.device("cam-1").release == OLD


def roll_out_to(world, *cams):
    for cam in cams:
        cam.come()
        cam.report(OLD)
    world.step()
    rollout = world.start_rollout()
    world.step(times=3)
    return rollout


def test_rollout_asks_devices_and_hears_how_it_ended(world):
    cams = world.enrol("cam-1", "cam-2")
    rollout = roll_out_to(world, *cams)
    wanted = [cam.desired() for cam in cams]
    assert [one.release for one in wanted] == [NEW, NEW]
    assert [one.digest for one in wanted] == [DIGESTS[NEW]] * 2
    assert len({one.deployment for one in wanted}) == 2
    for cam, one in zip(cams, wanted, strict=True):
        cam.report(NEW, Outcome.COMMITTED, one)
        cam.rows(1, release=NEW, at_ms=world.clock.now_ms())
    world.step(times=12)
    view = overview.rollout(world.store, rollout)
    assert view.rollout.state is RolloutState.COMPLETED
    assert view.parts[Part.DONE.value] == 2
    assert {row.incumbent for row in world.assignments(rollout).values()} == {OLD}
    assert view.events
    assert view.evidence


def test_trials_of_both_arms_reach_the_decision(world):
    cams = world.enrol(*(f"cam-{index}" for index in range(6)))
    for cam in cams:
        cam.come()
        cam.report(OLD)
    world.step()
    rollout = world.start_rollout(waves=(0.3, 1.0))
    world.step(times=3)
    asked = [cam for cam in cams if cam.desired()]
    assert 0 < len(asked) < 6
    for cam in asked:
        cam.report(NEW, Outcome.COMMITTED, cam.desired())
    for seq in range(1, 5):
        for cam in cams:
            cam.rows(seq, release=NEW if cam in asked else OLD, at_ms=world.clock.now_ms())
        world.step()
    evidence = {one.metric.value: one for one in overview.rollout(world.store, rollout).evidence}
    assert evidence["slow"].candidate_trials == len(asked) * 4 * 50
    assert evidence["slow"].incumbent_trials == (6 - len(asked)) * 4 * 50


def test_device_that_claims_success_with_other_bytes_is_not_believed(world):
    (cam,) = world.enrol("cam-1")
    rollout = roll_out_to(world, cam)
    cam.report(OLD, Outcome.COMMITTED, cam.desired())
    world.step()
    row = world.assignments(rollout)[cam.name]
    assert row.outcome is Outcome.FAILED
    assert "other content" in row.reason


def test_first_outcome_counts(world):
    (cam,) = world.enrol("cam-1")
    rollout = roll_out_to(world, cam)
    wanted = cam.desired()
    cam.report(OLD, Outcome.ROLLED_BACK, wanted, reason="golden vectors differ")
    cam.report(NEW, Outcome.COMMITTED, wanted)
    world.step()
    row = world.assignments(rollout)[cam.name]
    assert (row.outcome, row.reason) == (Outcome.ROLLED_BACK, "golden vectors differ")


def test_outcome_of_a_deployment_nobody_asked_for_changes_nothing(world):
    (cam,) = world.enrol("cam-1")
    rollout = roll_out_to(world, cam)
    cam.report(NEW, Outcome.COMMITTED, replaced(cam.desired(), deployment="nonsense"))
    world.step()
    assert world.assignments(rollout)[cam.name].outcome is None


def replaced(desired, **changes):
    return msgspec.structs.replace(desired, **changes)


def test_broker_that_comes_back_empty_is_told_everything_again(world):
    cams = world.enrol("cam-1", "cam-2")
    roll_out_to(world, *cams)
    wanted = [cam.desired() for cam in cams]
    world.broker.restart_empty()
    assert not world.broker.retained
    world.link.heal()
    world.step()
    for cam in cams:
        cam.heard.clear()
        cam.link.heal()
    assert [cam.desired() for cam in cams] == wanted
    assert topics.controller_topic(TENANT, world.config.controller) in world.broker.retained


def test_online_device_that_does_not_answer_is_asked_again(world):
    (cam,) = world.enrol("cam-1")
    roll_out_to(world, cam)
    first = cam.desired()
    cam.heard.clear()
    world.step(31.0, times=2)
    assert cam.desired() == first
    cam.report(NEW, Outcome.COMMITTED, first)
    world.step(times=2)
    cam.heard.clear()
    world.step(31.0, times=2)
    assert cam.desired() is None


def test_device_that_is_ahead_of_the_database_gets_a_higher_generation(world):
    (cam,) = world.enrol("cam-1")
    cam.come()
    cam.report(
        OLD, None, Desired(generation=41, deployment="x", release=OLD, target="t", digest=DIGESTS[OLD])
    )
    world.step()
    world.start_rollout()
    world.step(times=3)
    assert cam.desired().generation == 42


def test_device_without_a_suitable_variant_is_left_out(world):
    (fit,) = world.enrol("cam-1")
    (unfit,) = world.enrol("cam-2", profile="stm32h7")
    roll_out_to(world, fit, unfit)
    assert fit.desired() is not None
    assert unfit.desired() is None


def test_pause_that_is_asked_for_while_the_controller_is_down_is_carried_out(world):
    (cam,) = world.enrol("cam-1")
    rollout = roll_out_to(world, cam)
    world.link.cut()
    campaigns.request(world.store, rollout, RolloutState.PAUSED)
    world.start()
    world.step(times=2)
    assert overview.rollout(world.store, rollout).rollout.state is RolloutState.PAUSED
    campaigns.request(world.store, rollout, RolloutState.RUNNING)
    world.step(times=2)
    assert overview.rollout(world.store, rollout).rollout.state is RolloutState.RUNNING


def test_request_that_comes_between_reading_and_deciding_is_not_lost(world, monkeypatch):
    (cam,) = world.enrol("cam-1")
    cam.come()
    cam.report(OLD)
    world.step()
    rollout = world.start_rollout()
    from fleet import service

    real = service.advance

    def and_the_operator_pauses(*arguments):
        monkeypatch.setattr(service, "advance", real)
        campaigns.request(world.store, rollout, RolloutState.PAUSED)
        return real(*arguments)

    monkeypatch.setattr(service, "advance", and_the_operator_pauses)
    world.step(times=3)
    assert overview.rollout(world.store, rollout).rollout.state is RolloutState.PAUSED
    assert cam.desired() is None


class Killed(Exception):
    """The controller died here."""


CUTS = ["fleet.rollout_store.save", "fleet.rollout_store.save_event", "fleet.devices.save_desired", "fleet.rollout_store.save_assignment",
        "fleet.devices.mark_published", "fleet.devices.save", "fleet.rollout_store.decide"]  # fmt: skip


@pytest.mark.parametrize("where", CUTS)
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_controller_that_dies_anywhere_goes_on_where_it_was(world, monkeypatch, where, nth):
    """Every write is cut at its n-th call; then a new controller with the same database finishes the rollout."""
    cams = world.enrol("cam-1", "cam-2", "cam-3")
    for cam in cams:
        cam.come()
        cam.report(OLD)
    world.step()
    rollout = world.start_rollout(waves=(0.4, 1.0))
    module, _, name = where.rpartition(".")
    import importlib

    real = getattr(importlib.import_module(module), name)
    calls = 0

    def cut(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == nth:
            raise Killed
        return real(*arguments, **keywords)

    monkeypatch.setattr(where, cut)
    answered = set()
    for seq in range(1, 40):
        try:
            world.step()
        except Killed:
            world.kill_controller()
        for cam in cams:
            wanted = cam.desired()
            running = wanted.release if wanted else OLD
            if wanted and wanted.deployment not in answered:
                answered.add(wanted.deployment)
                cam.report(NEW, Outcome.COMMITTED, wanted)
            cam.rows(seq, release=running, at_ms=world.clock.now_ms())
    assert overview.rollout(world.store, rollout).rollout.state is RolloutState.COMPLETED
    assert calls >= nth, "the cut was made"
    assert len(answered) == 3, "nobody was asked twice"
    assert len(world.assignments(rollout)) == 3


def test_newer_database_stops_the_controller_before_it_says_anything(tmp_path):
    world = World(tmp_path)
    with world.store.write() as connection:
        connection.execute(schema.meta.update().values(value="99"))
    world.store.close()
    with pytest.raises(StateError):
        Store(world.url)


def test_heartbeat_says_what_was_refused(world):
    (cam,) = world.enrol("cam-1")
    cam.come()
    cam.raw(b"x")
    world.step()
    world.step(11.0)
    view = overview.status(world.store, world.clock.now_ms())
    assert view.controller.connected
    assert view.controller.refused == {"malformed": 1}


def test_second_rollout_at_the_same_time_is_refused(world):
    from edgeml.errors import ConfigError

    first = world.start_rollout()
    with pytest.raises(ConfigError, match=first):
        world.start_rollout()
    with pytest.raises(ConfigError, match="not published") as caught:
        world.start_rollout(release=ReleaseId("digits@9.9.9"))
    assert OLD in caught.value.hint


def test_telemetry_is_kept_as_long_as_the_settings_say(world):
    world.config = msgspec.structs.replace(
        world.config, controller_loop=replace_keep(world.config.controller_loop)
    )
    world.kill_controller()
    (cam,) = world.enrol("cam-1")
    cam.come()
    cam.rows(1, 2)
    world.step()
    world.step(3 * 86_400.0)
    assert world.count() == 0


def replace_keep(loop):
    return msgspec.structs.replace(loop, keep_days=2.0)
