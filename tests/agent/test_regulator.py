"""The regulator over real workers: a leak is caught at the budget, heat is felt by requests, and everything is said."""

import os

import msgspec
import pytest

from agent.announcer import REPEAT_S, Announcer
from agent.cgroup import Gone
from agent.diagnosis import DWELL_S, Ailment, Cause, Level, Limits
from agent.forkserver import ForkServer
from agent.governor import Decision, Kind, Measure, Treatment
from agent.ledger import Ledger
from agent.peaks import Peaks
from agent.regulator import EVERY_S, Ports, Regulator
from agent.sensors import Sensors
from agent.serving import NoModelError, Serving
from agent.standing import ModelStanding, Standing, read, write
from agent.supervisor import Supervisor, installed_preload
from agent.turnstile import ShedError, Turnstile
from edgeml.ids import ModelName
from edgeml.testing import sample_bundle

from ..waiting import wait_for

MIB = 1 << 20
A, B = ModelName("a"), ModelName("b")
LEAKY = """
from agent import worker

held = []
predicted = worker.LoadedModel._predicted


def leak(self, inputs, outputs):
    if self.manifest.version == "6.6.6":
        held.append(b"x" * (8 << 20))
    return predicted(self, inputs, outputs)


worker.LoadedModel._predicted = leak
"""


class Heat(Sensors):
    """This machine's sensors, in weather that a test makes."""

    def __init__(self):
        super().__init__()
        self.temperature_c = None
        self.available_bytes = 8 << 30

    def cpu_temperature_c(self):
        return self.temperature_c

    def memory_available_bytes(self):
        return self.available_bytes

    def memory_pressure_percent(self):
        return 0.0


class Scene:
    """Two models served by real workers, and a regulator whose clock the test moves."""

    def __init__(self, supervisor, storage, limits):
        self.sensors = Heat()
        self.ledger = Ledger(limits.memory_bytes, Peaks(storage), self.sensors, supervisor.shared_bytes)
        self.turnstile = Turnstile()
        self.seats = {A: Serving(supervisor), B: Serving(supervisor)}
        self.said = []
        self.gone = ()
        self.now_s = 0.0
        ports = Ports(
            seats=lambda: self.seats,
            shared_bytes=supervisor.shared_bytes,
            priority=lambda model: 1 if model == B else 0,
            has_smaller=lambda model: model == A,
            back_bytes=lambda _model: 0,
            say=self.said.append,
            swept=lambda: self.gone,
        )
        self.regulator = Regulator(limits, self.sensors, self.ledger, self.turnstile, ports)

    def turn(self, pause_s=EVERY_S):
        self.now_s += pause_s
        return self.regulator.turn(self.now_s, int(self.now_s * 1000))

    def ask(self, model, tensors):
        with self.turnstile.passing(model):
            return self.seats[model].infer(tensors)

    def close(self):
        for seat in self.seats.values():
            seat.close()


@pytest.fixture
def leaky(tmp_path, monkeypatch):
    """A supervisor whose workers of version 6.6.6 leak 8 MiB with every request."""
    (tmp_path / "leaky.py").write_text(LEAKY)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    server = ForkServer((*installed_preload(), "leaky"))
    made = Supervisor(server)
    made.start()
    yield made
    made.close()
    server.close()


@pytest.mark.processes
def test_a_leaking_worker_is_killed_at_the_budget_and_both_models_answer_on(
    leaky, sample, limits, ask, tmp_path
):
    bad = tmp_path / "bad.edgeml"
    digest = sample_bundle(bad, "6.6.6")
    greedy, honest = leaky.load(bad, digest, limits), leaky.load(*sample, limits)
    budget = leaky.shared_bytes() + 100 * MIB
    scene = Scene(leaky, tmp_path, Limits(memory_bytes=budget))
    scene.seats[A].swap(greedy)
    scene.seats[B].swap(honest)
    scene.ledger.grant(A, 30 * MIB)
    scene.ledger.grant(B, 30 * MIB)
    requests = 0
    while greedy.alive:
        scene.ask(A, ask())
        requests += 1
        scene.turn()
        assert requests < 30, "100 MiB are gone, 8 at a time, and nobody minds"
    # Not before the budget, and not one request after the next look.
    assert 5 <= requests <= 13
    assert honest.alive
    scene.ask(B, ask())
    wait_for(lambda: scene.seats[A].active is not greedy)
    assert scene.ask(A, ask()).digest == digest
    assert (scene.seats[A].crashes, scene.seats[B].crashes) == (1, 0)
    assert scene.regulator.counts[(A, Kind.RESTART, Cause.MEMORY)] == 1
    [event] = [one for one in scene.said if one.kind == "worker_over_memory"]
    assert event.release == "sample@6.6.6"
    assert "a its worker was killed and starts anew: workers use" in event.detail
    scene.close()


@pytest.fixture
def scene(supervisor, sample, limits, tmp_path):
    made = Scene(supervisor, tmp_path, Limits(temperature_c=80.0))
    for model in (A, B):
        made.seats[model].swap(supervisor.load(*sample, limits))
        made.ledger.grant(model, 50 * MIB)
    yield made
    made.close()


@pytest.mark.processes
def test_heat_turns_requests_of_the_lesser_model_away_and_cold_lets_them_in_again(scene, ask):
    scene.sensors.temperature_c = 60.0
    assert not scene.turn()
    scene.ask(A, ask())
    scene.sensors.temperature_c = 86.5
    assert scene.turn()
    assert not scene.regulator.may_try
    with pytest.raises(ShedError):
        scene.ask(A, ask())
    scene.ask(B, ask())
    assert scene.turnstile.turned_away == {A: 1}
    assert scene.regulator.wants_smaller == {A}
    scene.sensors.temperature_c = 40.0
    for _ in range(4):
        scene.turn(DWELL_S)
    assert scene.regulator.ailment.level is Level.CALM
    scene.ask(A, ask())
    assert scene.regulator.wants_smaller == frozenset()
    assert [one.kind for one in scene.said] == ["shed", "throttled", "resumed", "resumed"]
    assert scene.said[0].detail == "a turns requests away: 86.5 °C, the limit is 80.0 °C"


@pytest.mark.processes
def test_a_device_short_of_memory_gives_a_worker_up_and_takes_it_back(scene, ask):
    worker = scene.seats[A].active
    scene.sensors.available_bytes = 10 * MIB
    scene.turn()
    wait_for(lambda: not worker.alive)
    with pytest.raises(ShedError):
        scene.ask(B, ask())
    with pytest.raises(NoModelError, match=r"the device has 10\.0 MiB left"):
        scene.seats[A].infer(ask())
    scene.turn()
    assert scene.seats[B].active.alive, "the most valuable one stays"
    scene.sensors.available_bytes = 8 << 30
    for _ in range(6):
        scene.turn(DWELL_S)
    wait_for(lambda: scene.seats[A].active.alive)
    scene.ask(A, ask())
    assert (scene.seats[A].crashes, scene.seats[A].unstable) == (0, False)


@pytest.mark.processes
def test_a_seat_that_is_given_a_new_worker_while_its_model_is_evicted_is_emptied_again(
    scene, supervisor, sample, limits
):
    scene.sensors.available_bytes = 10 * MIB
    scene.turn()
    fresh = supervisor.load(*sample, limits)
    scene.seats[A].swap(fresh).stop()
    scene.turn()
    wait_for(lambda: not fresh.alive)


@pytest.mark.processes
def test_it_looks_once_a_second_and_not_more_often(scene):
    looks = []
    scene.sensors.memory_available_bytes = lambda: looks.append(1) or (8 << 30)
    for _ in range(10):
        scene.turn(EVERY_S / 5)
    assert len(looks) == 2


@pytest.mark.processes
def test_what_the_kernel_killed_is_counted_and_said(scene):
    scene.gone = (Gone(A, 1, 50 * MIB), Gone(B, 0, 10 * MIB))
    assert scene.turn()
    assert scene.regulator.counts == {(A, Kind.RESTART, Cause.MEMORY): 1}
    assert [one.kind for one in scene.said] == ["worker_over_memory"]


@pytest.mark.processes
def test_the_standing_says_what_each_model_uses(scene, tmp_path):
    scene.sensors.temperature_c = 81.0
    scene.turn()
    found = scene.regulator.models()
    assert [(one.model, one.measure, one.duty) for one in found] == [
        ("a", "throttle", 0.5),
        ("b", "throttle", 0.5),
    ]
    assert all(0 < one.memory_bytes < 100 * MIB and one.granted_bytes == 50 * MIB for one in found)
    standing = Standing(
        "throttle", "81.0 °C, the limit is 80.0 °C", "watched", 60 * MIB, 100 * MIB, 81.0, MIB, None, 2, 0,
        (ModelStanding("a", "throttle", 0.5, 10 * MIB, 50 * MIB, 0.25),),
    )  # fmt: skip
    write(tmp_path, standing)
    assert read(tmp_path) == standing
    assert standing.lines() == [
        "budget    throttle (81.0 °C, the limit is 80.0 °C), watched, 2 decisions",
        "memory    60.0 of 100.0 MiB",
        "network   1.0 MiB today",
        "heat      81.0 °C",
        "  a: throttle 50 %, 10.0 of 50.0 MiB, 0.25 cores",
    ]
    waiting = msgspec.structs.replace(standing, network_budget_bytes=2 * MIB, held_back_rows=341)
    assert waiting.lines()[2] == "network   1.0 of 2.0 MiB today, 341 rows of telemetry wait for it"


def test_a_standing_that_is_damaged_or_not_there_is_none(tmp_path):
    assert read(tmp_path) is None
    (tmp_path / "standing.json").write_bytes(msgspec.json.encode(["?"]))
    assert read(tmp_path) is None
    write(tmp_path / "nowhere", Standing("calm", "", "watched", 0, None, None, 0, None, 0, 0))


def test_the_same_is_said_once_in_a_while_and_counted_always():
    announcer = Announcer()
    ailment = Ailment(Level.THROTTLE, Cause.CPU, 1.5, 1.0)
    decision = Decision(Kind.THROTTLE, A, Treatment(Measure.THROTTLE, 0.5), ailment)
    said = [announcer.hear(decision, None, float(second), second) for second in range(10)]
    assert said[0].detail == "a works 50 % of the time: workers use 1.50 cores of a budget of 1.00"
    assert said[1:] == [None] * 9
    assert announcer.hear(decision, None, REPEAT_S, 0).detail.endswith(
        "; 9 times more since it was last said"
    )
    assert announcer.counts == {(A, Kind.THROTTLE, Cause.CPU): 11}
