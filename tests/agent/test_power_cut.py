"""Power cuts at every point where the device touches its disk, on every path, with a real journal and real slots.

The installer here keeps real files and refuses to load what is not whole; `Power` cuts at the k-th point, for every k.
After each cut a new life starts on the same disk, as often as it takes. What must hold: the current slot always names
a whole bundle that was proven on trial, and the device always comes to rest on the old or the new release.
"""

import contextlib
import hashlib

import pytest

from agent.device import Device
from agent.executor import Delivery, Executor
from agent.journal import Journal
from agent.slots import SlotTable, demote, promote
from agent.updater import Lane, Moment
from edgeml import twin
from edgeml.errors import BackendError, DigestMismatchError, StateError
from edgeml.ids import DeploymentId, DeviceId, Digest, ModelName, ReleaseId, model_of
from edgeml.manifest import RuntimeFamily
from edgeml.trustfacts import SignedFacts, SignedTarget
from edgeml.twin import Desired, DeviceState, Outcome

PROFILE = "generic-x86-64"
M, KWS = ModelName("m"), ModelName("kws")
AT_REST = {DeviceState.IDLE, DeviceState.STRANDED}


def content(version, quality="good"):
    return f"{quality} model {version} ".encode() * 100


def digest(version, quality="good"):
    return Digest(hashlib.sha256(content(version, quality)).hexdigest())


def desired(version, generation, quality="good", model=M, **policy):
    return Desired(
        generation=generation,
        deployment=DeploymentId(f"d{generation}"),
        release=ReleaseId(f"{model}@{version}"),
        target=f"{model}/{version}/v.edgeml",
        digest=digest(version, quality),
        policy=twin.Policy(**policy),
    )


class PowerCut(BaseException):
    """The power goes. Not an Exception, so that no code under test can catch it."""


class Power:
    def __init__(self, cut_at=None):
        self.points = 0
        self.cut_at = cut_at

    def point(self):
        if self.points == self.cut_at:
            self.points += 1
            raise PowerCut
        self.points += 1


class CutJournal:
    """The real journal with a point before and after each write."""

    def __init__(self, journal, power):
        self._journal = journal
        self._power = power

    @property
    def models(self):
        return self._journal.models

    def load(self, model):
        return self._journal.load(model)

    def write(self, model, entry):
        self._power.point()
        self._journal.write(model, entry)
        self._power.point()

    def forget(self, model):
        self._power.point()
        self._journal.forget(model)
        self._power.point()


class DiskInstaller:
    """Fetches, checks and 'loads' files for real; a model whose text says 'bad' fails its golden vectors."""

    def __init__(self, table, power):
        self.table = table
        self.power = power
        self.serving = {}
        self.wanted = frozenset

    def slots(self, model):
        return self.table.slots(model)

    def fetch(self, wanted, _source):
        version = wanted.release.partition("@")[2]
        quality = "good" if wanted.digest == digest(version) else "bad"
        data = content(version, quality)
        path = self.table.path(wanted.digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(data[: len(data) // 2])
        self.power.point()
        part.write_bytes(data)
        self.power.point()
        part.replace(path)
        self.power.point()
        counter = int(version)
        facts = SignedFacts(wanted.release, "v", counter, (PROFILE,), RuntimeFamily.ONNX, 4096, digest("0"))
        return Delivery(SignedTarget(wanted.target, wanted.digest, len(data), facts), len(data))

    def verify(self, wanted):
        if not self.whole(wanted):
            raise DigestMismatchError("not what was signed")

    def whole(self, wanted):
        path = self.table.path(wanted)
        return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == wanted

    def permit(self):
        """Every hour is good here."""

    def activate(self, slot):
        self.verify(slot.digest)
        if self.table.path(slot.digest).read_bytes().startswith(b"bad"):
            raise BackendError("golden vectors differ")
        self.serving[model_of(slot.release)] = slot
        self.power.point()

    def observe(self, slot):
        assert self.serving[model_of(slot.release)] == slot

    def commit(self, slot):
        self.power.point()
        model = model_of(slot.release)
        self.table.write(model, promote(self.table.slots(model), slot))
        self.power.point()
        self.table.clean(self.wanted)
        self.power.point()

    def restore(self, model, condemned):
        slots = self.table.slots(model)
        if slots.current is None:
            self.serving.pop(model, None)
            return None
        while slots.current is not None:
            if slots.current.digest != condemned and self.whole(slots.current.digest):
                self.power.point()
                self.table.write(model, slots)
                self.serving[model] = slots.current
                self.power.point()
                return slots.current
            slots = demote(slots)
        raise StateError("no slot can be served")


class Life:
    """One life of the agent on a disk, from start to rest or to the next cut."""

    def __init__(self, directory, power):
        self.journal = Journal(directory / "journal.db")
        self.table = SlotTable(directory)
        self.installer = DiskInstaller(self.table, power)
        self.device = Device(DeviceId("cam"), CutJournal(self.journal, power), self.table)
        self.installer.wanted = self.device.wanted
        self.executor = Executor(self.installer, PROFILE)
        self.clock = 0.0

    def now(self):
        return Moment(1_000_000 + int(self.clock * 1000), self.clock)

    def live(self, wanted):
        try:
            for model in self.table.models:
                self.installer.restore(model, None)
            self.device.start(self.now())
            for one in wanted:
                self.wish(one)
                self.run()
        finally:
            self.journal.close()

    def wish(self, one):
        self.device.on_desired(model_of(one.release), twin.encode(one), self.now())

    def run(self):
        for _ in range(400):
            perform = self.device.next(self.now(), Lane.LOCAL) or self.device.next(self.now(), Lane.NETWORK)
            if perform is not None:
                self.device.done(perform, self.executor.perform(perform), self.now())
            elif all(self.device.entry(model).state in AT_REST for model in self.device.models):
                return
            else:
                self.clock += 1.0
        raise AssertionError("the device never comes to rest")


def assert_one_good_current(directory, allowed, model=M):
    table = SlotTable(directory)
    current = table.slots(model).current
    assert (current.release if current else None) in allowed
    if current is not None:
        assert hashlib.sha256(table.path(current.digest).read_bytes()).hexdigest() == current.digest
        assert table.path(current.digest).read_bytes().startswith(b"good")


SCENARIOS = {
    "first install": ((), (desired("1", 1),), ("m@1",), Outcome.COMMITTED),
    "bad first install": ((), (desired("1", 1, "bad"),), (None,), Outcome.ROLLED_BACK),
    "update": ((desired("1", 1),), (desired("2", 2),), ("m@2",), Outcome.COMMITTED),
    "bad update": ((desired("1", 1),), (desired("2", 2, "bad"),), ("m@1",), Outcome.ROLLED_BACK),
    "back to previous": ((desired("1", 1), desired("2", 2)), (desired("1", 3),), ("m@1",), Outcome.REVERTED),
    "same again": ((desired("1", 1),), (desired("1", 2),), ("m@1",), Outcome.ALREADY_INSTALLED),
    "two updates": ((desired("1", 1),), (desired("2", 2), desired("3", 3)), ("m@3",), Outcome.COMMITTED),
    "update, bad, update": (
        (desired("1", 1),),
        (desired("2", 2), desired("3", 3, "bad"), desired("4", 4)),
        ("m@4",),
        Outcome.COMMITTED,
    ),
}


def points_of(tmp_path, before, wanted):
    Life(tmp_path, Power()).live(before)
    power = Power()
    Life(tmp_path, power).live(wanted)
    return power.points


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_cut_at_any_point_ends_as_without_it(tmp_path, name):
    before, wanted, ends_on, outcome = SCENARIOS[name]
    points = points_of(tmp_path / "count", before, wanted)
    assert points > 0
    held = {None if not before else before[-1].release, *(one.release for one in wanted)}
    for cut in range(points):
        directory = tmp_path / f"cut-{cut}"
        Life(directory, Power()).live(before)
        with pytest.raises(PowerCut):
            Life(directory, Power(cut)).live(wanted)
        assert_one_good_current(directory, held)
        life = Life(directory, Power())
        life.live(())
        assert_one_good_current(directory, held)
        # The retained messages arrive again after every restart; only the last is still there.
        life = Life(directory, Power())
        life.live(wanted[-1:])
        report = life.device.reported(life.now())[M]
        assert_one_good_current(directory, ends_on)
        assert report.state is DeviceState.IDLE, f"cut {cut}"
        # A cut between the commit and the report may say it was there already; both are the truth.
        assert report.outcome in {outcome, Outcome.ALREADY_INSTALLED}, f"cut {cut}"


def test_cuts_at_every_pair_of_points_during_an_update(tmp_path):
    before, wanted, ends_on, _ = SCENARIOS["update"]
    points = points_of(tmp_path / "count", before, wanted)
    for first in range(0, points, 2):
        for second in range(0, points, 3):
            directory = tmp_path / f"cut-{first}-{second}"
            Life(directory, Power()).live(before)
            for cut in (first, second):
                with contextlib.suppress(PowerCut):
                    Life(directory, Power(cut)).live(wanted)
                assert_one_good_current(directory, {"m@1", "m@2"})
            Life(directory, Power()).live(wanted)
            assert_one_good_current(directory, ends_on)


def test_a_cut_at_any_point_while_two_models_are_updated_leaves_both_good(tmp_path):
    """Wishes for both come first, then everything goes on side by side."""
    before = (desired("1", 1), desired("11", 1, model=KWS))
    wanted = (desired("2", 2), desired("12", 2, "bad", model=KWS))

    def live(life, wishes):
        try:
            for model in life.table.models:
                life.installer.restore(model, None)
            life.device.start(life.now())
            for one in wishes:
                life.wish(one)
            life.run()
        finally:
            life.journal.close()

    power = Power()
    live(Life(tmp_path / "count", Power()), before)
    live(Life(tmp_path / "count", power), wanted)
    for cut in range(power.points):
        directory = tmp_path / f"cut-{cut}"
        live(Life(directory, Power()), before)
        with pytest.raises(PowerCut):
            live(Life(directory, Power(cut)), wanted)
        assert_one_good_current(directory, {"m@1", "m@2"})
        assert_one_good_current(directory, {"kws@11"}, KWS)
        live(Life(directory, Power()), wanted)
        assert_one_good_current(directory, {"m@2"})
        assert_one_good_current(directory, {"kws@11"}, KWS)


def test_restarts_without_end_during_a_trial_end_on_the_old_release(tmp_path):
    """A model that takes the whole agent down each time it is loaded."""
    Life(tmp_path, Power()).live((desired("1", 1),))

    class Killer(DiskInstaller):
        def activate(self, slot):
            raise PowerCut

    for _ in range(10):
        life = Life(tmp_path, Power())
        life.executor = Executor(Killer(life.table, Power()), PROFILE)
        try:
            life.live((desired("2", 2),))
            life.run()
        except PowerCut:
            continue
        break
    report = life.device.reported(life.now())[M]
    assert report.outcome is Outcome.ROLLED_BACK
    assert "restarted 3 times" in report.reason
    assert_one_good_current(tmp_path, {"m@1"})


def test_a_worker_that_crashes_after_commit_is_rolled_back_to_the_previous_slot(tmp_path):
    life = Life(tmp_path, Power())
    life.live((desired("1", 1), desired("2", 2)))
    life = Life(tmp_path, Power())
    life.device.start(life.now())
    life.device.crashed(M, "the worker died 3 times", life.now())
    life.run()
    assert_one_good_current(tmp_path, {"m@1"})
    assert life.device.reported(life.now())[M].outcome is Outcome.ROLLED_BACK
    life.journal.close()


def test_no_slot_left_is_said_plainly(tmp_path):
    life = Life(tmp_path, Power())
    life.live((desired("1", 1),))
    life.table.path(digest("1")).write_bytes(b"rot")
    life = Life(tmp_path, Power())
    life.device.start(life.now())
    life.device.crashed(M, "the current slot cannot be loaded", life.now())
    life.run()
    report = life.device.reported(life.now())[M]
    assert (report.state, report.outcome) == (DeviceState.STRANDED, Outcome.STRANDED)
    # A new deployment still rescues it.
    life.wish(desired("2", 2))
    life.run()
    assert_one_good_current(tmp_path, {"m@2"})
    life.journal.close()
