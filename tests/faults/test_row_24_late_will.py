"""Row 24: a last will that comes late, when the device is back in a new life. A whole agent, a real controller, two real
mosquittos of which one is a bridge to the other, as at the edge of a site.

The first life is at the bridge when its line falls silent, which nobody notices. The device starts anew and reaches the
fleet's own broker. When the bridge at last gives the old connection up, it says that the device is gone, and the fleet's
broker retains that: the newest word is the oldest news.
"""

import contextlib

import pytest

from agent import service as agent_service
from edgeml import mqtt, topics, twin
from edgeml.ids import DeviceId, ReleaseId
from edgeml.topics import Leaf
from edgeml.twin import Presence
from fleet import devices, overview
from fleet.rollout import Plan, RolloutState

from ..waiting import wait_for
from .broker import Broker
from .headquarters import TENANT, Headquarters
from .invariants import check
from .life import Life, SetClock
from .link import Line

OLD, NEW = "sample@1.0.0", ReleaseId("sample@2.0.0")
STATE = topics.device_topic(TENANT, DeviceId("cam-1"), Leaf.STATE)
BIRTH = topics.device_topic(TENANT, DeviceId("cam-1"), Leaf.BIRTH)

pytestmark = pytest.mark.processes


def line_to(broker):
    return contextlib.closing(Line([broker.port], bytes_s=1e7, rtt_s=0.0, lost=0.0))


class TwoWays(Life):
    """A device that first reaches the fleet over a bridge, then by itself."""

    def __init__(self, agent, lines, bridge, broker, headquarters):
        self.lines, self.bridge = lines, bridge
        super().__init__(agent, broker, headquarters)

    @property
    def session(self):
        return self.service._journal.boot

    @property
    def known(self):
        """What the fleet knows of it."""
        with self.headquarters.store.read() as connection:
            return devices.load_all(connection)[0]

    def live(self, release=OLD):
        self.ask(release)
        self.note()
        self.turn(0.3)
        self.check_kept()

    def hear(self, condition, what):
        """Let only the fleet hear: the device's own loop stands still, so that it says nothing that would make up for it."""
        wait_for(condition, what, meanwhile=self.headquarters.step)

    def presences(self):
        """What the fleet's broker was told of it being there, in order."""
        return [twin.decode(payload, Presence) for _, one, payload in self.heard if one.leaf is Leaf.STATE]


@pytest.fixture
def life(make_agent, tmp_path, versions, monkeypatch):
    monkeypatch.setattr(agent_service, "TICK_S", 0.01)
    for name in ("RECONNECT_MIN_S", "RECONNECT_FIRST_S", "RECONNECT_MAX_S"):
        monkeypatch.setattr(mqtt, name, 0.2)
    for place in ("bridge", "fleets"):
        (tmp_path / place).mkdir()
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(contextlib.closing(Broker(tmp_path / "fleets")))
        settings = (
            "connection up", f"address 127.0.0.1:{broker.port}", "cleansession true", "restart_timeout 1",
            "notifications false", "topic em/v1/# both 1",
        )  # fmt: skip
        bridge = stack.enter_context(contextlib.closing(Broker(tmp_path / "bridge", *settings)))
        lines = {
            name: stack.enter_context(line_to(far))
            for name, far in (("bridge", bridge), ("fleets", broker), ("controllers", broker))
        }
        headquarters = Headquarters(tmp_path, lines["controllers"].ports[broker.port], SetClock())
        for number in (1, 2):
            (tmp_path / f"{number}.edgeml").write_bytes(versions[number])
            headquarters.publish(tmp_path / f"{number}.edgeml")
        agent = make_agent(tmp_path / "state")
        agent.join(bridge, headquarters)
        agent.dial(lines["bridge"].ports[bridge.port])
        made = stack.enter_context(contextlib.closing(TwoWays(agent, lines, bridge, broker, headquarters)))
        yield made


@pytest.fixture
def first(life):
    """The life that comes over the bridge, and that the fleet knows; its line has fallen silent."""
    life.until(lambda: life.up and life.headquarters.connected, "both links", seconds=0.0)
    life.until(lambda: overview.status(life.headquarters.store, 0).releases, "the report, over the bridge")
    for _ in range(5):
        life.live()
    assert life.known.session == life.session
    life.lines["bridge"].hush()
    life.listen()
    return life.session


def begin_anew(life, port):
    """Start the agent again, with another way to a broker; return its new session."""
    life.agent.dial(port)
    life.restart()
    life.until(lambda: life.known.session == life.session, "the new life")
    life.live()
    return life.session


def test_a_broker_that_sees_the_device_come_back_says_first_that_the_old_life_is_over(life, first):
    """It is the same client to it, so that it throws the old connection out: the will is in its turn."""
    second = begin_anew(life, life.bridge.port)
    life.lines["bridge"].cut()
    assert second != first
    assert [(one.online, one.session) for one in life.presences()] == [(False, first), (True, second)]
    for _ in range(5):
        life.live()
        assert life.known.online
    life.account()
    life.close()
    check(life.agent.storage)


def test_the_late_will_of_an_old_life_does_not_end_a_new_one(life, first):
    second = begin_anew(life, life.lines["fleets"].ports[life.broker.port])
    assert [(one.online, one.session) for one in life.presences()] == [(True, second)]

    # The bridge notices that the first life is over.
    life.lines["bridge"].cut()
    life.hear(lambda: len(life.presences()) > 1, "the will")
    will = Presence(online=False, session=first)
    assert life.presences()[1:] == [will]
    assert twin.decode(life.broker.retained()[STATE], Presence) == will
    # The controller has heard it, too: after it, this on the same way.
    refused = life.headquarters.controller.refused
    assert not refused["malformed"]
    life.broker.client.publish(BIRTH, b"not a birth", 1)
    life.hear(lambda: refused["malformed"], "what came after the will")
    assert (life.known.online, life.known.session) == (True, second)
    life.live()

    # It is there for a rollout, too.
    rollout = life.headquarters.start(Plan(release=NEW, waves=(1.0,), soak_s=0.0, trials_min=1))
    life.until(lambda: life.entry().outcome is not None, "the deployment", seconds=1.0)
    life.ask(NEW)
    life.until(
        lambda: overview.rollout(life.headquarters.store, rollout).rollout.state is RolloutState.COMPLETED,
        "the rollout to be completed",
        seconds=1.0,
    )

    # A controller that comes to the broker now hears the old will, and then that the device speaks.
    life.lines["controllers"].cut()
    life.until(lambda: not life.headquarters.connected, "the controller to be cut off", seconds=0.0)
    life.lines["controllers"].mend()
    life.hear(lambda: not life.known.online, "the old will")
    life.live(NEW)
    life.until(lambda: life.known.online, "the device to be heard")

    # Its own will does end it.
    life.lines["fleets"].cut()
    life.until(lambda: not life.up and not life.known.online, "the new life's will", seconds=0.0)
    assert life.presences()[-1] == Presence(online=False, session=second)
    life.live(NEW)
    life.lines["fleets"].mend()
    life.until(lambda: life.up and life.known.online, "the device to be back", seconds=0.0)
    life.account()
    life.close()
    assert check(life.agent.storage).slots("sample").current.release == NEW
