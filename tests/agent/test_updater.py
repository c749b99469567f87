"""The device's decisions: what it makes of messages that come twice, late, out of order or in the middle of something."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.journal import Entry
from agent.machine import Action, Event
from agent.updater import PROGRESS_BYTES_MIN, Moment, Result, Updater
from edgeml import twin
from edgeml.ids import DeploymentId, DeviceId, Digest, ModelName, ReleaseId
from edgeml.manifest import RuntimeFamily
from edgeml.trustfacts import SignedFacts
from edgeml.twin import Desired, DeviceState, Outcome, Slot, Slots


class MemoryJournal:
    def __init__(self):
        self.entry = Entry()

    def load(self, _model):
        return self.entry

    def write(self, _model, entry):
        # What is kept is what would be read back after a restart.
        self.entry = msgspec.json.decode(msgspec.json.encode(entry), type=Entry)


class MemorySlots:
    def __init__(self, slots=None):
        self.held = slots or Slots()

    def slots(self, _model):
        return self.held


def at(seconds):
    return Moment(int(seconds * 1000), float(seconds))


def slot(version):
    return Slot(ReleaseId(f"m@{version}"), Digest(f"{version:064x}"), "t", version)


def desired(version, generation, **more):
    return Desired(
        generation=generation, deployment=DeploymentId(f"d{generation}"), release=ReleaseId(f"m@{version}"),
        target=f"m/{version}/v.edgeml", digest=Digest(f"{version:064x}"), **more,
    )  # fmt: skip


def facts(version):
    return SignedFacts(
        ReleaseId(f"m@{version}"), "v", version, ("p",), RuntimeFamily.ONNX, 4096, Digest("0" * 64)
    )


def started(slots=None):
    device = Updater(DeviceId("cam"), ModelName("m"), MemoryJournal(), MemorySlots(slots))
    device.start(at(0))
    return device


def performed(device, seconds, result):
    perform = device.next(at(seconds))
    assert perform is not None
    device.done(perform, result, at(seconds))


def test_an_old_generation_and_a_repetition_change_nothing():
    device = started()
    device.on_desired(desired(2, 5), at(0))
    entry = device.entry
    for generation in (5, 4, 0):
        device.on_desired(desired(9, generation), at(0))
    assert device.entry == entry


def test_what_already_runs_is_reported_as_installed_without_a_fetch():
    device = started(Slots(current=slot(2)))
    device.on_desired(desired(2, 1), at(0))
    perform = device.next(at(0))
    assert perform.action is Action.REPORT
    device.done(perform, Result(Event.REPORTED), at(0))
    assert device.reported(at(0)).outcome is Outcome.ALREADY_INSTALLED


def test_the_previous_slot_is_taken_back_without_a_fetch():
    device = started(Slots(current=slot(2), previous=slot(1)))
    device.on_desired(desired(1, 1), at(0))
    assert device.next(at(0)).action is Action.VERIFY


def test_an_expired_deployment_is_refused():
    device = started()
    device.on_desired(desired(2, 1, expires_at_ms=1), at(10))
    performed(device, 10, Result(Event.REPORTED))
    report = device.reported(at(10))
    assert (report.outcome, report.reason) == (Outcome.REJECTED, "the deployment has expired")


def test_refused_content_is_never_tried_again():
    device = started()
    device.on_desired(desired(2, 1), at(0))
    performed(device, 0, Result(Event.FETCHED, facts=facts(2)))
    performed(device, 0, Result(Event.VERIFIED))
    performed(device, 0, Result(Event.READY))
    performed(device, 0, Result(Event.REFUSED, "golden vectors differ", poisoned=True))
    performed(device, 0, Result(Event.ROLLED_BACK))
    performed(device, 0, Result(Event.REPORTED))
    device.on_desired(desired(2, 2), at(0))
    performed(device, 0, Result(Event.REPORTED))
    assert device.reported(at(0)).outcome is Outcome.REJECTED
    assert device.reported(at(0)).reason == "this content was refused before"


def test_a_fetch_that_fails_is_tried_again_later_and_later_and_then_given_up():
    device = started()
    device.on_desired(desired(2, 1, policy=twin.Policy(attempts_max=4)), at(0))
    waits, clock = [], 0.0
    while (perform := device.next(at(clock))) is not None and perform.action is Action.FETCH:
        device.done(perform, Result(Event.FAILED, "cut", fetched_bytes=10), at(clock))
        waits.append(device.pending.not_before_s - clock)
        clock = device.pending.not_before_s
    assert perform.action is Action.REPORT
    assert [0.5 <= wait <= ceiling for wait, ceiling in zip(waits[:3], (1, 2, 4), strict=True)] == [True] * 3
    report = device.reported(at(clock))
    assert (report.outcome, report.reason, report.fetched_bytes) == (Outcome.FAILED, "cut", 40)


def cut(brought_bytes, length_bytes=1_000_000, **more):
    return Result(Event.FAILED, "cut", fetched_bytes=brought_bytes, length_bytes=length_bytes, **more)


def fetched_until_given_up(device, result):
    """Perform fetches with this result; return when each began."""
    times, now = [], 0.0
    while device.pending is not None and device.pending.action is Action.FETCH:
        now = max(now, device.pending.not_before_s)
        times.append(now)
        assert len(times) < 10_000
        performed(device, now, result)
    return times


def test_a_fetch_that_was_cut_but_brought_something_does_not_count_as_an_attempt():
    device = started()
    device.on_desired(desired(1, 1, policy=twin.Policy(attempts_max=2)), at(0))
    now = 0.0
    for _ in range(9):
        now = device.pending.not_before_s
        performed(device, now, cut(100_000))
        assert 0 < device.pending.not_before_s - now <= 1, "it goes on soon, but not at once"
    assert device.entry.outcome is None
    assert device.entry.fetched_bytes == 900_000
    performed(device, now + 2, cut(0))
    assert device.entry.outcome is Outcome.FAILED


def test_attempts_that_bring_garbage_piece_by_piece_come_to_an_end():
    for brought in (1, 1000, PROGRESS_BYTES_MIN, 100_000, 3_000_000):
        device = started()
        device.on_desired(desired(1, 1, policy=twin.Policy(attempts_max=3)), at(0))
        times = fetched_until_given_up(device, cut(brought))
        assert device.entry.outcome is Outcome.FAILED
        assert len(times) <= 2_000_000 // PROGRESS_BYTES_MIN + 3
        assert device.entry.fetched_bytes <= 2_000_000 + 3 * brought


def test_what_is_wrong_on_the_disk_after_every_fetch_is_given_up():
    device = started()
    device.on_desired(desired(1, 1, policy=twin.Policy(attempts_max=3)), at(0))
    fetches = now = 0
    while device.pending.action is not Action.REPORT:
        assert fetches <= 3
        now = max(now, device.pending.not_before_s)
        if device.pending.action is Action.FETCH:
            fetches += 1
            performed(device, now, Result(Event.FETCHED, facts=facts(1)))
        else:
            performed(device, now, Result(Event.FAILED, "another digest"))
    assert device.entry.outcome is Outcome.FAILED
    assert fetches == 3


def test_a_server_that_asks_for_a_pause_gets_it_and_not_from_all_devices_at_once():
    waits = []
    for name in range(50):
        device = Updater(DeviceId(f"cam-{name}"), ModelName("m"), MemoryJournal(), MemorySlots())
        device.start(at(0))
        device.on_desired(desired(1, 1), at(0))
        performed(device, 0, cut(0, wait_s=120.0))
        waits.append(device.pending.not_before_s)
        device.on_desired(desired(2, 2), at(1))
        assert device.next(at(1)).action is Action.REPORT, "something else may be wanted meanwhile"
    assert min(waits) >= 120
    assert max(waits) <= 180
    assert max(waits) - min(waits) > 30


def test_a_newer_wish_during_a_fetch_supersedes_it_and_a_late_result_is_dropped():
    device = started()
    device.on_desired(desired(2, 1), at(0))
    late = device.next(at(0))
    device.on_desired(desired(3, 2), at(0))
    performed(device, 0, Result(Event.REPORTED))
    assert device.entry.desired.release == "m@3"
    device.done(late, Result(Event.FETCHED, facts=facts(2)), at(0))
    assert device.entry.state is DeviceState.FETCHING
    assert device.entry.desired.release == "m@3"


def test_a_newer_wish_during_activation_waits_for_the_trial_and_then_rolls_back():
    device = started(Slots(current=slot(1)))
    device.on_desired(desired(2, 1), at(0))
    performed(device, 0, Result(Event.FETCHED, facts=facts(2)))
    performed(device, 0, Result(Event.VERIFIED))
    performed(device, 0, Result(Event.READY))
    activation = device.next(at(0))
    device.on_desired(desired(3, 2), at(0))
    assert device.entry.state is DeviceState.ACTIVATING
    device.done(activation, Result(Event.ACTIVATED), at(0))
    assert device.next(at(0)).action is Action.RESTORE
    assert device.entry.reason == "the fleet wants something else"


def test_the_soak_delays_the_judgement_of_the_trial():
    device = started()
    device.on_desired(desired(2, 1, policy=twin.Policy(soak_s=30.0)), at(0))
    performed(device, 0, Result(Event.FETCHED, facts=facts(2)))
    performed(device, 0, Result(Event.VERIFIED))
    performed(device, 0, Result(Event.READY))
    performed(device, 1, Result(Event.ACTIVATED))
    assert device.next(at(20)) is None
    assert device.next(at(31)).action is Action.OBSERVE


class Fleet:
    """Plays every action well; keeps slots as an installer would."""

    def __init__(self):
        self.journal = MemoryJournal()
        self.slots = MemorySlots()
        self.restart()

    def restart(self):
        self.device = Updater(DeviceId("cam"), ModelName("m"), self.journal, self.slots)
        self.device.start(at(0))

    def settle(self, steps=1000):
        for _ in range(steps):
            if self.device.pending is None:
                return
            self.step()
        raise AssertionError("never at rest")

    def step(self):
        due = self.device.pending.not_before_s
        perform = self.device.next(at(due))
        self.device.done(perform, self.play(perform), at(due))

    def play(self, perform):
        wanted = perform.entry.desired
        match perform.action:
            case Action.FETCH:
                return Result(Event.FETCHED, facts=facts(int(wanted.release.partition("@")[2])))
            case Action.COMMIT:
                from agent.slots import promote

                new = Slot(wanted.release, wanted.digest, wanted.target, 1)
                self.slots.held = promote(self.slots.held, new)
                return Result(Event.COMMITTED)
            case Action.VERIFY:
                return Result(Event.VERIFIED)
            case Action.WAIT:
                return Result(Event.READY)
            case Action.ACTIVATE:
                return Result(Event.ACTIVATED)
            case Action.OBSERVE:
                return Result(Event.HEALTHY)
            case Action.RESTORE:
                return Result(Event.ROLLED_BACK)
            case _:
                return Result(Event.REPORTED)


wishes = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.integers(0, 7)),
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(wishes)
def test_any_order_of_messages_steps_and_restarts_converges_to_the_newest_wish(script):
    """Duplicates, reordering, replays and restarts in any mixture: the retained message decides in the end."""
    fleet = Fleet()
    patient = twin.Policy(trial_restarts_max=1000)
    said = [desired(generation % 4 + 1, generation, policy=patient) for generation in range(1, 9)]
    for kind, value in script:
        if kind == "say":
            fleet.device.on_desired(said[value], at(0))
        elif kind == "restart":
            fleet.restart()
        else:
            for _ in range(value):
                if fleet.device.pending is not None:
                    fleet.step()
    fleet.device.on_desired(said[-1], at(0))
    fleet.settle()
    assert fleet.slots.held.current.release == said[-1].release
    assert fleet.device.entry.state is DeviceState.IDLE
    assert fleet.device.entry.waiting is None
    assert fleet.device.entry.generation == 8


def test_what_is_postponed_is_done_again_later_and_is_no_failed_attempt():
    updater = started()
    updater.on_desired(desired(1, 1), at(0))
    updater.take_report(at(0))
    for step in range(20):
        performed(updater, 900 * step, Result(Event.POSTPONED, "the link is metered", wait_s=900.0))
        assert updater.next(at(900 * step + 899)) is None
        report = updater.take_report(at(900 * step))
        # Said once, not every quarter of an hour.
        assert (report is not None) == (step == 0)
    assert updater.entry.attempt == 0
    assert updater.reported(at(0)).reason == "the link is metered"
    performed(updater, 900 * 20, Result(Event.FETCHED, facts=facts(1)))
    assert updater.entry.state is DeviceState.VERIFYING


def test_something_newer_ends_the_wait():
    updater = started()
    updater.on_desired(desired(1, 1), at(0))
    performed(updater, 0, Result(Event.POSTPONED, "not now", wait_s=900.0))
    updater.on_desired(desired(2, 2), at(1))
    assert updater.entry.outcome is Outcome.SUPERSEDED or updater.entry.desired.release == "m@2"
    assert updater.next(at(1)) is not None


def test_a_staged_release_waits_for_its_hour():
    updater = started()
    updater.on_desired(desired(1, 1), at(0))
    performed(updater, 0, Result(Event.FETCHED, facts=facts(1)))
    performed(updater, 0, Result(Event.VERIFIED))
    performed(updater, 0, Result(Event.POSTPONED, "the apply window opens at 01:00", wait_s=60.0))
    assert updater.entry.state is DeviceState.STAGED
    assert updater.next(at(59)) is None
    performed(updater, 60, Result(Event.READY))
    assert updater.entry.state is DeviceState.ACTIVATING
