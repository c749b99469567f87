"""The budget put together: from a hot processor to the variant that answers, the page of metrics and the file for people."""

import pytest

from agent.answering import Answering
from agent.budget import SUBSTITUTE_PAUSE_S, TELL_EVERY_S, Budget
from agent.config import AgentConfig, BudgetConfig
from agent.diagnosis import DWELL_S, Level
from agent.installer import DeviceInstaller, Tools
from agent.roster import Roster
from agent.sensors import Sensors
from agent.slots import SlotTable
from agent.standing import read
from agent.updater import Moment
from agent.windows import Windows
from edgeml.errors import PostponedError
from edgeml.ids import ModelName, ReleaseId
from edgeml.testing import FakeClock, sample_bundle
from edgeml.twin import Slot

pytestmark = pytest.mark.processes
A = ModelName("a")


class Heat(Sensors):
    """This machine's sensors, but for the temperature."""

    temperature_c = 50.0
    available_bytes = 8 << 30

    def cpu_temperature_c(self):
        return self.temperature_c

    def memory_available_bytes(self):
        return self.available_bytes

    def memory_pressure_percent(self):
        return None


class Rig:
    """A device without a network, in weather that a test makes and on a clock that it moves."""

    def __init__(self, storage, **limits):
        self.storage = storage
        self.clock = FakeClock()
        self.said = []
        config = AgentConfig(
            device="cam", profile="generic-x86-64", storage=str(storage), budget=BudgetConfig(**limits)
        )
        self.budget = Budget(config, self.clock)
        self.sensors = self.budget._sensors = Heat()
        self.roster = Roster(self.budget.supervisor)
        self.table = SlotTable(storage)
        self.table.store.mkdir(parents=True)
        self.answering = Answering(self.roster, Windows(60.0), self.clock, self.budget.turnstile)
        tools = Tools(
            self.budget.supervisor, self.roster, self.table, self.clock, self.answering.retire, self.answering.expect,
            self.answering.shadow, self.answering.totals, frozenset, self.budget.ledger, self.budget.timetable,
            self.budget.traffic,
        )  # fmt: skip
        self.installer = DeviceInstaller(config, tools)
        self.budget.govern(self.roster, self.table, lambda _model: 0, self.said.append)

    def commit(self, seed, version="1.0.0"):
        path = self.storage / "new.edgeml"
        digest = sample_bundle(path, version, seed=seed, model=A)
        path.rename(self.table.path(digest))
        slot = Slot(ReleaseId(f"{A}@{version}"), digest, "t", 1)
        self.installer.activate(slot)
        self.installer.commit(slot)
        return slot

    def turn(self, pause_s=1.0):
        """Do what the main loop does."""
        self.clock.advance(pause_s)
        now = Moment(self.clock.now_ms(), self.clock.monotonic_s())
        self.budget.turn(now, held_back=0)
        for model, slot in self.budget.substitutes(now):
            self.installer.substitute(model, slot)

    def answers(self, ask):
        return self.answering.infer(A, ask(), "r").digest

    def close(self):
        self.installer.close()
        self.roster.close()
        self.budget.supervisor.close()


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path, temperature_c=80.0)
    yield made
    made.close()


def test_in_heat_the_smaller_variant_answers_and_in_the_cold_the_larger_one_again(rig, ask):
    small = rig.commit(1)
    large = rig.commit(2)
    rig.budget.ledger._peaks.keep(large.digest, 90 << 20)
    rig.budget.ledger._peaks.keep(small.digest, 10 << 20)
    rig.turn()
    assert rig.answers(ask) == large.digest
    rig.sensors.temperature_c = 84.0
    rig.turn()
    assert rig.answers(ask) == small.digest
    assert rig.table.slots(A).current == large, "what is installed has not changed"
    assert [one.kind for one in rig.said] == ["fell_back"]
    rig.sensors.temperature_c = 40.0
    for _ in range(3):
        rig.turn(DWELL_S)
    rig.turn(SUBSTITUTE_PAUSE_S)
    assert rig.answers(ask) == large.digest


def test_short_of_memory_the_smaller_variant_stays_as_long_as_the_larger_one_would_not_fit(tmp_path, ask):
    rig = Rig(tmp_path, memory_bytes=1 << 30)
    try:
        small = rig.commit(1)
        large = rig.commit(2)
        rig.budget.ledger._peaks.keep(large.digest, 90 << 20)
        rig.budget.ledger._peaks.keep(small.digest, 10 << 20)
        rig.sensors.available_bytes = 40 << 20
        rig.turn()
        assert rig.answers(ask) == small.digest
        # It gave 80 MiB back: not enough for the larger one and what has to stay free.
        rig.sensors.available_bytes = 120 << 20
        for _ in range(10):
            rig.turn(DWELL_S)
        assert rig.answers(ask) == small.digest
        rig.sensors.available_bytes = 400 << 20
        for _ in range(4):
            rig.turn(DWELL_S)
        assert rig.answers(ask) == large.digest
    finally:
        rig.close()


def test_a_device_without_a_smaller_variant_slows_down(rig, ask):
    rig.commit(1)
    rig.sensors.temperature_c = 84.0
    rig.turn()
    [(key, count)] = rig.budget.facts().decisions.items()
    assert (key[1].value, key[2].value, count) == ("throttle", "temperature", 1)
    assert list(rig.budget.substitutes(Moment(0, 0.0))) == []


def test_a_new_release_is_not_tried_while_the_device_turns_requests_away(rig):
    rig.commit(1)
    rig.installer.permit()
    rig.sensors.temperature_c = 87.0
    rig.turn()
    with pytest.raises(PostponedError, match="turns requests away"):
        rig.installer.permit()


def test_people_and_prometheus_are_told_the_same(rig):
    rig.commit(1)
    rig.sensors.temperature_c = 81.0
    rig.turn()
    told, facts = read(rig.storage), rig.budget.facts()
    assert (told.level, facts.level) == ("throttle", Level.THROTTLE)
    assert told.reason == "81.0 °C, the limit is 80.0 °C"
    assert told.decisions == sum(facts.decisions.values()) == 1
    assert told.temperature_c == facts.temperature_c == 81.0
    assert told.used_bytes == facts.used_bytes > 10 << 20
    assert told.models[0].granted_bytes == facts.granted[A] > 0
    assert told.enforced in {"watched", "kernel"}
    # What serves is told at once,
    rig.roster.seat(A).swap(None).stop()
    rig.turn()
    assert read(rig.storage).models == ()
    # and the rest again after a while also if nothing is decided.
    at_ms = told.at_ms
    rig.turn(TELL_EVERY_S)
    assert read(rig.storage).at_ms > at_ms
