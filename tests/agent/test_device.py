"""Several models on one device: whose wish it is, whose action goes first, and how many there may be."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.device import Device
from agent.journal import Entry
from agent.machine import Action, Event
from agent.slots import promote
from agent.updater import Lane, Moment, Result
from edgeml import twin
from edgeml.errors import ManifestError
from edgeml.ids import DeploymentId, DeviceId, Digest, ModelName, ReleaseId, model_of
from edgeml.manifest import RuntimeFamily
from edgeml.trustfacts import SignedFacts
from edgeml.twin import MODELS_MAX, Desired, DeviceState, Outcome, Policy, Slot, Slots

A, B, C = ModelName("a"), ModelName("b"), ModelName("c")


class Disk:
    """A journal and slots in memory; what is kept is what would be read back after a restart."""

    def __init__(self):
        self.entries = {}
        self.held = {}

    @property
    def models(self):
        return tuple(sorted({*self.entries, *self.held}))

    def load(self, model):
        return self.entries.get(model, Entry())

    def write(self, model, entry):
        self.entries[model] = msgspec.json.decode(msgspec.json.encode(entry), type=Entry)

    def forget(self, model):
        del self.entries[model]

    def slots(self, model):
        return self.held.get(model, Slots())


def at(seconds):
    return Moment(int(seconds * 1000), float(seconds))


def desired(model, version, generation, **policy):
    return Desired(
        generation=generation, deployment=DeploymentId(f"{model}{generation}"), release=ReleaseId(f"{model}@{version}"),
        target=f"{model}/{version}/v.edgeml", digest=Digest(f"{hash((model, version)) % 16**60:064x}"), policy=Policy(**policy),
    )  # fmt: skip


def started(disk=None):
    disk = disk or Disk()
    device = Device(DeviceId("cam"), disk, disk)
    device.start(at(0))
    return device, disk


def say(device, wanted, seconds=0):
    device.on_desired(model_of(wanted.release), twin.encode(wanted), at(seconds))


def play(disk, perform):
    """Do every action well; keep slots as an installer would."""
    wanted = perform.entry.desired
    match perform.action:
        case Action.FETCH:
            counter = int(wanted.release.partition("@")[2])
            signed = SignedFacts(
                wanted.release, "v", counter, ("p",), RuntimeFamily.ONNX, 4096, Digest("0" * 64)
            )
            return Result(Event.FETCHED, facts=signed)
        case Action.COMMIT:
            slot = Slot(wanted.release, wanted.digest, wanted.target, 1)
            disk.held[perform.model] = promote(disk.slots(perform.model), slot)
            return Result(Event.COMMITTED)
        case action:
            events = {
                Action.VERIFY: Event.VERIFIED, Action.WAIT: Event.READY, Action.ACTIVATE: Event.ACTIVATED,
                Action.OBSERVE: Event.HEALTHY, Action.RESTORE: Event.ROLLED_BACK, Action.REPORT: Event.REPORTED,
            }  # fmt: skip
            return Result(events[action])


def settle(device, disk, began_s=0):
    for second in range(began_s, began_s + 500):
        for lane in Lane:
            perform = device.next(at(second), lane)
            if perform is not None:
                device.done(perform, play(disk, perform), at(second))
    assert all(device.entry(model).state is DeviceState.IDLE for model in device.models)


def test_a_fetch_of_one_model_does_not_hold_up_another():
    device, disk = started()
    say(device, desired(A, 1, 1))
    say(device, desired(B, 1, 1))
    first, second = (device.next(at(0), Lane.NETWORK) for _ in range(2))
    assert {first.model, second.model} == {A, B}
    assert device.next(at(0), Lane.NETWORK) is None
    device.done(second, play(disk, second), at(0))
    local = device.next(at(0), Lane.LOCAL)
    assert (local.model, local.action) == (second.model, Action.VERIFY)


def test_the_highest_priority_is_fetched_first_and_then_what_waited_longest():
    device, _ = started()
    say(device, desired(A, 1, 1), 0)
    say(device, desired(B, 1, 1, priority=5), 1)
    say(device, desired(C, 1, 1), 2)
    assert [device.next(at(9), Lane.NETWORK).model for _ in range(3)] == [B, A, C]


def test_a_model_gets_no_second_action_while_it_has_one_in_hand():
    device, disk = started()
    say(device, desired(A, 1, 1))
    fetch = device.next(at(0), Lane.NETWORK)
    say(device, desired(A, 2, 2))
    assert device.is_overtaken(fetch)
    assert device.next(at(0), Lane.LOCAL) is None
    device.done(fetch, play(disk, fetch), at(0))
    settle(device, disk)
    assert disk.slots(A).current.release == "a@2"


def test_generations_of_models_are_counted_apart():
    device, disk = started()
    say(device, desired(A, 1, 7))
    say(device, desired(B, 1, 1))
    settle(device, disk)
    assert [disk.slots(model).current.release for model in (A, B)] == ["a@1", "b@1"]
    assert {model: one.generation for model, one in device.reported(at(0)).items()} == {A: 7, B: 1}


def test_a_crash_of_one_model_takes_back_only_that_one():
    device, disk = started()
    for version in (1, 2):
        for model in (A, B):
            say(device, desired(model, version, version))
        settle(device, disk)
    device.crashed(A, "the worker died 3 times", at(0))
    perform = device.next(at(0), Lane.LOCAL)
    assert (perform.model, perform.action) == (A, Action.RESTORE)
    assert device.next(at(0), Lane.LOCAL) is None
    assert device.entry(B).state is DeviceState.IDLE


@pytest.mark.parametrize("payload", [b"{", b"[]", b'{"generation": "x"}', twin.encode(desired(B, 1, 1))])
def test_what_is_no_wish_about_this_model_is_refused_and_makes_no_model(payload):
    device, disk = started()
    with pytest.raises(ManifestError):
        device.on_desired(A, payload, at(0))
    assert (device.models, disk.entries) == ((), {})


def test_a_cleared_message_makes_no_model():
    device, disk = started()
    device.on_desired(A, b"", at(0))
    assert (device.models, disk.entries) == ((), {})


def test_a_model_too_many_is_turned_away_and_the_fleet_is_told():
    device, disk = started()
    for number in range(MODELS_MAX):
        say(device, desired(f"m{number}", 1, 1))
    settle(device, disk)
    device.take_reports(at(0))
    say(device, desired("late", 1, 3))
    reports = device.take_reports(at(0))
    assert set(reports) == {"late"}
    assert (reports["late"].outcome, reports["late"].generation) == (Outcome.REJECTED, 3)
    assert "16 models" in reports["late"].reason
    assert device.take_reports(at(0)) == {}
    assert device.reported(at(0))["late"].outcome is Outcome.REJECTED, "a new link is told again"
    assert "late" not in disk.entries


def test_a_flood_of_models_is_bounded():
    device, disk = started()
    for number in range(1000):
        say(device, desired(f"m{number}", 1, 1))
    assert len(disk.entries) == MODELS_MAX
    assert len(device.reported(at(0))) <= 2 * MODELS_MAX


def test_a_model_of_which_nothing_came_makes_room():
    device, disk = started()
    for number in range(MODELS_MAX):
        say(device, desired(f"m{number}", 1, 1))
    broken = next(iter(device.models))
    fetch = device.next(at(0), Lane.NETWORK)
    assert fetch.model == broken
    device.done(fetch, Result(Event.REFUSED, "not for this device"), at(0))
    settle(device, disk)
    say(device, desired("late", 1, 1))
    settle(device, disk)
    assert broken not in device.models
    assert disk.slots("late").current is not None


def test_only_what_is_in_hand_is_kept_besides_the_slots():
    device, disk = started()
    wanted = desired(A, 1, 1)
    say(device, wanted)
    assert device.wanted() == {wanted.digest}
    fetch = device.next(at(0), Lane.NETWORK)
    device.done(fetch, Result(Event.REFUSED, "not for this device"), at(0))
    settle(device, disk)
    assert device.wanted() == frozenset()


SCRIPT = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.sampled_from([A, B, C]), st.integers(1, 8)),
        st.tuples(st.just("begin"), st.sampled_from(list(Lane)), st.just(0)),
        st.tuples(st.just("finish"), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("restart"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=300)
@given(SCRIPT)
def test_any_order_of_wishes_actions_and_restarts_brings_each_model_to_its_newest(script):
    """Duplicated, reordered and replayed wishes about three models, with actions side by side, and restarts."""
    device, disk = started()
    in_hand = []
    for kind, what, value in script:
        match kind:
            case "say":
                say(device, desired(what, value % 4 + 1, value, trial_restarts_max=1000))
            case "begin":
                perform = device.next(at(1000), what)
                if perform is not None:
                    assert perform.model not in {one.model for one in in_hand}
                    in_hand.append(perform)
            case "finish" if what < len(in_hand):
                perform = in_hand.pop(what)
                device.done(perform, play(disk, perform), at(1000))
            case "restart":
                in_hand = []
                device, _ = started(disk)
    for perform in in_hand:
        device.done(perform, play(disk, perform), at(1000))
    for model in (A, B, C):
        say(device, desired(model, 1, 9, trial_restarts_max=1000))
    settle(device, disk, 1000)
    for model in (A, B, C):
        assert disk.slots(model).current.release == f"{model}@1"
