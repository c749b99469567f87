"""A device whose processes are real: children fetch, workers serve. Only its clock and its loop are the test's."""

import msgspec

from agent.config import AgentConfig, BlobsConfig, BrokerConfig, UpdateConfig
from agent.device import Device
from agent.executor import Executor
from agent.installer import DeviceInstaller, Tools
from agent.journal import Journal
from agent.ledger import Ledger
from agent.machine import Event
from agent.peaks import Peaks
from agent.roster import Roster
from agent.sensors import Sensors
from agent.slots import SlotTable
from agent.timetable import Timetable
from agent.traffic import Traffic
from agent.updater import Lane, Moment
from edgeml import twin
from edgeml.clock import SystemClock
from edgeml.ids import DeviceId, ModelName, model_of
from edgeml.twin import DeviceState, Policy

PROFILE = "generic-x86-64"
TURNS_MAX = 400
AT_REST = {DeviceState.IDLE, DeviceState.STRANDED}


class ShiftedClock(SystemClock):
    """The machine's clock, and how far a test has set it."""

    shift_ms = 0

    def now_ms(self):
        return super().now_ms() + self.shift_ms


class Unit:
    """One device. `settle` performs whatever is due, without waiting for back-offs: their time is skipped."""

    def __init__(self, storage, url, anchor, supervisor, name="cam-1"):
        self.storage = storage
        (storage / "trust").mkdir(parents=True, exist_ok=True)
        (storage / "trust/root.json").write_bytes(anchor)
        token = storage / "token"
        token.write_text("secret")
        token.chmod(0o600)
        self.config = AgentConfig(
            device=name, profile=PROFILE, storage=str(storage), blobs=BlobsConfig(url),
            broker=BrokerConfig("127.0.0.1", 1, str(token)),
        )  # fmt: skip
        self.clock = ShiftedClock()
        self.journal = Journal(storage / "journal.db")
        self.table = SlotTable(storage)
        self.roster = Roster(supervisor)
        self.device = Device(DeviceId(name), self.journal, self.table)
        tools = Tools(
            supervisor, self.roster, self.table, self.clock, lambda _worker: None, lambda _worker: None,
            lambda _model, _shadow: None, dict, self.device.wanted,
            Ledger(None, Peaks(storage), Sensors(), supervisor.shared_bytes),
            Timetable(UpdateConfig(), self.clock), Traffic(storage, None, self.clock),
        )  # fmt: skip
        self.installer = DeviceInstaller(self.config, tools)
        self.executor = Executor(self.installer, PROFILE)
        self.now_s = 1000.0
        self.waits = []
        """Seconds of back-off before each fetch."""
        self.results = []
        for model in self.table.models:
            self.installer.restore(model, None)
        self.device.start(self.now())

    def now(self):
        return Moment(self.clock.now_ms(), self.now_s)

    def want(self, desired):
        self.device.on_desired(model_of(desired.release), twin.encode(desired), self.now())

    def step(self):
        """Perform the next action, after its back-off; None if there is none."""
        updaters = [one for one in self.device._updaters.values() if one.pending is not None]
        if not updaters:
            return None
        pending = min((one.pending for one in updaters), key=lambda one: one.not_before_s)
        if pending.lane is Lane.NETWORK:
            self.waits.append(max(0.0, pending.not_before_s - self.now_s))
        self.now_s = max(self.now_s, pending.not_before_s)
        perform = self.device.next(self.now(), pending.lane)
        result = self.executor.perform(perform)
        self.results.append(result)
        self.device.done(perform, result, self.now())
        return result

    def settle(self, model="sample"):
        """Work until everything is at rest; return the model's entry."""
        for _ in range(TURNS_MAX):
            if self.step() is None:
                entry = self.entry(model)
                assert entry.state in AT_REST
                return entry
        raise AssertionError(f"no rest after {TURNS_MAX} actions: {self.entry(model)}")

    def suffer(self, mirror, desired, habits):
        """Have one attempt to fetch under each habit of the server; none may be more than a failed attempt."""
        serves = self.serves()
        self.want(msgspec.structs.replace(desired, policy=Policy(attempts_max=len(habits) + 5)))
        results = []
        for habit in habits:
            mirror.habit = habit
            results.append(self.step())
            assert results[-1].event is Event.FAILED, (habit, results[-1])
            assert self.serves() == serves
            assert not self.table.path(desired.digest).exists()
        mirror.habit = lambda _asked, _reply: None
        return results

    def install(self, desired):
        self.want(desired)
        return self.settle(model_of(desired.release))

    def entry(self, model="sample"):
        return self.device.entry(ModelName(model))

    def serves(self, model="sample"):
        """The release that serves now."""
        worker = self.roster.seat(ModelName(model)).active
        return None if worker is None or not worker.alive else worker.manifest.release

    def close(self):
        self.roster.close()
        self.journal.close()
