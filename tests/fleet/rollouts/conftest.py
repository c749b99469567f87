"""A fleet and its controller, without either: decisions are applied, and devices answer as told."""

from __future__ import annotations

import msgspec
import pytest

from edgeml.ids import DeploymentId, DeviceId, ReleaseId
from edgeml.telemetry import Counters
from edgeml.twin import Outcome
from fleet.advance import advance
from fleet.cohorts import members
from fleet.rollout import (
    Decision,
    DeviceFacts,
    Facts,
    Plan,
    Rollout,
    RolloutState,
    Trial,
    WavePhase,
)

OLD, NEW = ReleaseId("m@1"), ReleaseId("m@2")
START_MS = 1_790_000_000_000
replace = msgspec.structs.replace


class Field:
    """A fleet and its controller, without either: applies decisions and lets devices answer."""

    def __init__(self, count: int, *, first_ever: bool = False, **plan) -> None:
        self.plan = Plan(NEW, **({"soak_s": 100.0, "wait_max_s": 1000.0, "trials_min": 10} | plan))
        self.rollout = Rollout(id="r1", plan=self.plan, phase_since_ms=START_MS, created_at_ms=START_MS)
        self.now_ms = START_MS
        self.devices: dict[DeviceId, DeviceFacts] = {}
        self.trials: list[Trial] = []
        self.events: list[str] = []
        self.removed: tuple[DeviceId, ...] = ()
        for i in range(count):
            self.join(f"d{i}", None if first_ever else OLD)

    def join(self, name: str, current: ReleaseId | None = OLD, **facts) -> None:
        device = DeviceId(name)
        self.devices[device] = DeviceFacts(
            **(
                {"device": device, "online": True, "suitable": True, "current": current, "incumbent": current}
                | facts
            )
        )

    def change(self, name: str, **facts) -> None:
        self.devices[DeviceId(name)] = replace(self.devices[DeviceId(name)], **facts)

    @property
    def facts(self) -> Facts:
        return Facts(tuple(self.devices.values()), tuple(self.trials), self.removed)

    def decide(self, after_s: float = 1.0) -> Decision:
        """Let time pass, decide, and carry it out."""
        self.now_ms += round(after_s * 1000)
        decision = advance(self.rollout, self.facts, self.now_ms)
        self.rollout = decision.rollout
        if decision.event:
            self.events.append(decision.event)
        for one in decision.assignments:
            self.change(
                one.device,
                deployment=DeploymentId(f"{one.device}:{one.revert}:{one.retry}"),
                assigned_at_ms=self.now_ms,
                outcome=None,
                retries=one.retry,
                reverting=one.revert,
            )
        return decision

    def asked(self) -> list[DeviceFacts]:
        return [one for one in self.devices.values() if one.deployment and one.outcome is None]

    def answer(self, outcome: Outcome = Outcome.COMMITTED, only: str | None = None) -> None:
        """Let the devices that were asked decide."""
        for one in self.asked():
            if one.online and only in {None, one.device}:
                good = outcome in {Outcome.COMMITTED, Outcome.REVERTED, Outcome.ALREADY_INSTALLED}
                wanted = one.incumbent if one.reverting else NEW
                self.change(one.device, outcome=outcome, current=wanted if good else one.current)

    def serve(self, slice_: int, trials: int = 10, wrong: tuple[int, int] = (0, 0)) -> None:
        """Let every online device answer requests; `wrong` of them per arm (incumbent, candidate)."""
        for one in self.devices.values():
            if one.online and one.current is not None:
                candidate = one.current == NEW
                counters = Counters(inferences=trials, labelled=trials, wrong=wrong[candidate])
                self.trials.append(Trial(one.device, slice_, candidate, counters))

    def wave(self, number: int) -> list[DeviceId]:
        suitable = [
            one.device
            for one in self.devices.values()
            if (one.suitable or one.deployment) and not one.quarantined
        ]
        return [device for device, wave in members(suitable, "r1", self.plan.waves).items() if wave == number]

    def until(self, *states: RolloutState, ticks: int = 300, after_s: float = 20.0) -> None:
        for _ in range(ticks):
            if self.rollout.state in states:
                return
            self.decide(after_s)
        raise AssertionError(f"still {self.rollout.state} {self.rollout.phase}: {self.rollout.reason}")

    def request(self, state: RolloutState) -> Decision:
        self.rollout = replace(self.rollout, requested=state)
        return self.decide()


@pytest.fixture
def new_field():
    return Field


@pytest.fixture
def field_in_gate(new_field):
    def make(count: int = 20, **plan) -> Field:
        """A field whose first wave has decided and soaked, without inferences."""
        field = new_field(count, **plan)
        field.decide()
        field.answer()
        for _ in range(3):
            field.decide(101)
        assert field.rollout.phase is WavePhase.GATE
        return field

    return make


@pytest.fixture
def bad_field(new_field):
    def make(count: int = 53, waves: tuple[float, ...] = (0.1, 1.0)) -> Field:
        field = new_field(count, waves=waves, soak_s=1e5, wait_max_s=1e6)
        field.decide()
        field.answer()
        field.decide()
        return field

    return make


@pytest.fixture
def rolling_back(bad_field):
    def make(count: int = 53) -> Field:
        field = bad_field(count)
        field.rollout = replace(field.rollout, plan=replace(field.plan, wait_max_s=4000.0))
        for slice_ in range(12):
            field.serve(slice_, 20, wrong=(1, 10))
        field.decide()
        assert field.rollout.state is RolloutState.ROLLING_BACK
        return field

    return make
