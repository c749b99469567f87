"""The inbox of a running device: what was flashed is begun, one release of a model at a time, and cleared when it has ended."""

import pytest

from agent.device import Device
from agent.flash import DESIRED, INBOX
from agent.inbox import ABANDONED_S, EVERY_S, Inbox
from agent.journal import Journal
from agent.machine import Event
from agent.slots import SlotTable
from agent.updater import Lane, Moment, Result
from edgeml import twin
from edgeml.ids import DeploymentId, DeviceId, Digest, ModelName, ReleaseId, model_of
from edgeml.twin import Desired, DeviceState

A, B = ModelName("a"), ModelName("b")


def wanted(release, digit):
    return Desired(
        generation=0, deployment=DeploymentId(f"flash-{digit}"), release=ReleaseId(release), target="t", digest=Digest(digit * 64)
    )  # fmt: skip


class Card:
    """A device's storage, and the device that finds things on it."""

    def __init__(self, directory):
        self.directory = directory
        self.journal = Journal(directory / "journal.db")
        self.device = Device(DeviceId("cam"), self.journal, SlotTable(directory))
        self.device.start(self.now)
        self.inbox = Inbox(directory, self.device)
        self.seconds = 0.0

    @property
    def now(self):
        return Moment(1000, getattr(self, "seconds", 0.0))

    def put(self, desired):
        path = self.directory / INBOX / desired.digest[:16] / DESIRED
        path.parent.mkdir(parents=True)
        path.write_bytes(twin.encode(desired))
        return path

    def look(self):
        self.seconds += EVERY_S
        self.inbox.look(self.now)

    def refuse(self, model):
        """End the deployment in hand."""
        perform = self.device.next(self.now, Lane.NETWORK)
        assert perform.model == model
        self.device.done(perform, Result(Event.REFUSED, "no"), self.now)
        report = self.device.next(self.now, Lane.LOCAL)
        self.device.done(report, Result(Event.REPORTED), self.now)


@pytest.fixture
def card(tmp_path):
    made = Card(tmp_path)
    yield made
    made.journal.close()


def test_releases_of_two_models_are_begun_at_once_and_cleared_when_each_has_ended(card):
    paths = {model_of(one.release): card.put(one) for one in (wanted("a@1", "a"), wanted("b@1", "b"))}
    card.look()
    assert {card.device.entry(model).state for model in (A, B)} == {DeviceState.FETCHING}
    card.refuse(A)
    card.look()
    assert not paths[A].parent.exists()
    assert paths[B].exists()
    card.refuse(B)
    card.look()
    assert not paths[B].parent.exists()


def test_two_releases_of_one_model_are_tried_one_after_the_other(card):
    first, second = (card.put(wanted(f"a@{digit}", digit)) for digit in ("1", "2"))
    card.look()
    assert card.device.entry(A).desired.release == "a@1"
    card.look()
    assert card.device.entry(A).desired.release == "a@1"
    card.refuse(A)
    card.look()
    assert not first.exists()
    assert card.device.entry(A).desired.release == "a@2"
    card.refuse(A)
    card.look()
    assert not second.exists()


def test_what_the_fleet_wants_later_counts_and_the_flashed_one_is_cleared(card):
    path = card.put(wanted("a@1", "1"))
    card.look()
    fleet = Desired(
        generation=1, deployment=DeploymentId("d"), release=ReleaseId("a@2"), target="t", digest=Digest("2" * 64)
    )  # fmt: skip
    card.device.on_desired(A, twin.encode(fleet), card.now)
    perform = card.device.next(card.now, Lane.LOCAL)
    card.device.done(perform, Result(Event.REPORTED), card.now)
    card.look()
    assert not path.exists()
    assert card.device.entry(A).desired == fleet


def test_one_that_ended_in_an_earlier_life_is_only_cleared(card, tmp_path):
    path = card.put(wanted("a@1", "1"))
    card.look()
    card.refuse(A)
    card.journal.close()
    again = Card(tmp_path)
    again.look()
    assert again.device.entry(A).state is DeviceState.IDLE
    again.look()
    assert not path.exists()
    again.journal.close()


@pytest.mark.parametrize(("old", "new"), ["12", "21"])
def test_one_that_ended_in_an_earlier_life_never_comes_back_after_a_newer_one(card, tmp_path, old, new):
    """The agent was killed between the end of one release and its clearing, and another was flashed meanwhile."""
    path = card.put(wanted(f"a@{old}", old))
    card.look()
    card.refuse(A)
    card.journal.close()
    newer = card.put(wanted(f"a@{new}", new))
    again = Card(tmp_path)
    again.look()
    assert not path.exists()
    again.look()
    assert again.device.entry(A).desired.release == f"a@{new}"
    again.refuse(A)
    for _ in range(3):
        again.look()
    assert again.device.entry(A).desired.release == f"a@{new}"
    assert not newer.exists()
    again.journal.close()


@pytest.mark.parametrize("content", [b"", b"{", b'{"generation": 1}', twin.encode(wanted("nonsense", "1"))])
def test_what_cannot_be_read_is_named_and_left_alone(card, caplog, content):
    path = card.put(wanted("a@1", "1"))
    path.write_bytes(content)
    card.look()
    assert str(path) in caplog.text
    assert path.exists()
    assert card.device.models == ()


def test_one_that_cannot_be_read_does_not_hold_up_the_others_and_is_named_once(card, caplog):
    bad = card.put(wanted("a@1", "0"))
    bad.write_bytes(b"{")
    card.put(wanted("b@1", "f"))
    for _ in range(3):
        card.look()
    assert card.device.entry(B).state is DeviceState.FETCHING
    assert caplog.text.count(str(bad)) == 1


def test_what_nobody_finishes_is_cleared_away_but_not_while_it_grows(card):
    orphan = card.directory / INBOX / ("e" * 16) / "repository" / "blobs"
    growing = card.directory / INBOX / ("d" * 16)
    for path in (orphan, growing):
        path.mkdir(parents=True)
    waits = card.put(wanted("a@1", "1"))
    for number in range(13):
        (growing / str(number)).touch()
        card.look()
        card.seconds += ABANDONED_S / 10
    assert not orphan.parents[1].exists()
    assert growing.exists()
    assert waits.exists()
