"""What a device says on every new link, and what it makes of what it hears."""

from agent.buffer import Buffer
from agent.device import Device
from agent.journal import Journal
from agent.link import Identity, Link
from agent.slots import SlotTable
from agent.updater import Moment
from agent.uplink import Uplink
from edgeml import twin
from edgeml.ids import DeploymentId, DeviceId, Digest, ReleaseId, TenantId
from edgeml.telemetry import Event, Stream, decode_batch
from edgeml.transport import LinkDown, LinkUp, Message
from edgeml.twin import Birth, Desired, DeviceState, Presence, Reported

NOW = Moment(1_000, 10.0)
BASE = "em/v1/acme/d/cam-1"


class Talk:
    def __init__(self, directory):
        self.journal = Journal(directory / "journal.db")
        self.device = Device(DeviceId("cam-1"), self.journal, SlotTable(directory))
        self.buffer = Buffer(directory / "telemetry.db", self.journal.boot)
        identity = Identity(TenantId("acme"), DeviceId("cam-1"), self.journal.boot)
        birth = Birth(device=DeviceId("cam-1"), session=self.journal.boot, profile="p", agent_version="1")
        self.link = Link(
            identity, self.device, Uplink(self.buffer, identity.tenant, identity.device), lambda _now: birth
        )
        self.device.start(NOW)

    def said(self):
        self.link.speak(NOW)
        found = list(self.link.outbox)
        self.link.outbox.clear()
        return found

    def close(self):
        self.buffer.close()
        self.journal.close()


def test_a_new_link_is_told_presence_inventory_state_and_what_waits(tmp_path):
    talk = Talk(tmp_path)
    talk.buffer.append(Event(seq=0, kind="started", at_ms=1))
    assert talk.said() == [], "nothing is said without a link"
    for _ in range(2):
        talk.link.hear(LinkUp(), NOW)
        messages = {message.topic: message for message in talk.said()}
        assert list(messages) == [f"{BASE}/state", f"{BASE}/birth", f"{BASE}/tele/events"]
        assert twin.decode(messages[f"{BASE}/state"].payload, Presence).online
        assert [messages[f"{BASE}/{leaf}"].retain for leaf in ("state", "birth")] == [True, False]
        assert decode_batch(messages[f"{BASE}/tele/events"].payload).events[0].kind == "started"
        talk.link.hear(LinkDown("cut"), NOW)
    talk.close()


def test_it_introduces_itself_again_only_over_a_link_that_is_up(tmp_path):
    talk = Talk(tmp_path)
    talk.link.introduce(NOW)
    assert talk.said() == []
    talk.link.hear(LinkUp(), NOW)
    talk.said()
    talk.link.introduce(NOW)
    assert [message.topic for message in talk.said()] == [f"{BASE}/birth"]
    talk.close()


def test_the_will_is_of_this_session_and_says_offline(tmp_path):
    talk = Talk(tmp_path)
    will = talk.link.will
    assert (will.topic, will.retain) == (f"{BASE}/state", True)
    assert twin.decode(will.payload, Presence) == Presence(online=False, session=talk.journal.boot)
    talk.close()


def wanted(model):
    return Desired(
        generation=1,
        deployment=DeploymentId("d"),
        release=ReleaseId(f"{model}@1"),
        target=f"{model}/1/v.edgeml",
        digest=Digest("a" * 64),
    )


def test_a_wish_is_heard_and_the_change_reported_once(tmp_path):
    talk = Talk(tmp_path)
    talk.link.hear(LinkUp(), NOW)
    talk.said()
    talk.link.hear(Message(f"{BASE}/desired/m", twin.encode(wanted("m"))), NOW)
    [report] = talk.said()
    assert (report.topic, report.retain) == (f"{BASE}/reported/m", True)
    assert twin.decode(report.payload, Reported).state is DeviceState.FETCHING
    assert talk.said() == []
    talk.close()


def test_a_new_link_is_told_what_is_true_of_each_model(tmp_path):
    talk = Talk(tmp_path)
    talk.link.hear(LinkUp(), NOW)
    for model in ("m", "kws"):
        talk.link.hear(Message(f"{BASE}/desired/{model}", twin.encode(wanted(model))), NOW)
    talk.said()
    talk.link.hear(LinkUp(), NOW)
    reports = [one.topic for one in talk.said() if "/reported/" in one.topic]
    assert reports == [f"{BASE}/reported/m", f"{BASE}/reported/kws"]
    talk.close()


def test_messages_of_others_too_long_or_senseless_change_nothing(tmp_path):
    talk = Talk(tmp_path)
    talk.link.hear(LinkUp(), NOW)
    talk.said()
    for topic, payload in (
        ("em/v1/acme/d/cam-2/desired/m", b"{}"),
        (f"{BASE}/desired/m", b"x" * 100_000),
        (f"{BASE}/desired/m", b"\xff\xfe"),
        (f"{BASE}/desired/m", b""),
        (f"{BASE}/desired", twin.encode(wanted("m"))),
        (f"{BASE}/desired/kws", twin.encode(wanted("m"))),
        (f"{BASE}/ack", b'{"boot": 1}'),
        ("nonsense", b""),
    ):
        talk.link.hear(Message(topic, payload), NOW)
    assert talk.device.models == ()
    assert talk.said() == []
    talk.close()


def test_an_acknowledgement_empties_the_buffer(tmp_path):
    talk = Talk(tmp_path)
    seq = talk.buffer.append(Event(seq=0, kind="started", at_ms=1))
    talk.link.hear(LinkUp(), NOW)
    talk.said()
    ack = twin.Ack(boot=talk.journal.boot, stream="events", seq=seq)
    talk.link.hear(Message(f"{BASE}/ack", twin.encode(ack)), NOW)
    assert talk.buffer.held(Stream.EVENTS) == 0
    talk.close()
