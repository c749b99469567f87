"""The real controller on the real brokers: an empty broker is told again, a taken-away login ends."""

from pathlib import Path

import pytest

from edgeml import topics, twin
from edgeml.clock import SystemClock
from edgeml.ids import DeviceId, ModelName, TenantId
from edgeml.mqtt import Login, PahoTransport
from edgeml.topics import CONTROLLER_USER, Leaf
from edgeml.twin import Desired
from fleet import devices
from fleet.config import database_url
from fleet.devices import Enrolment
from fleet.service import Controller
from fleet.store import Store

from ..waiting import wait_for

pytestmark = pytest.mark.broker
TENANT = TenantId("acme")
CAM = DeviceId("cam-a")


class NothingPublished:
    directory = Path("no repository here")

    def variant_for(self, release, profile):
        return None


@pytest.fixture
def store(running):
    opened = Store(database_url(running.home, running.config))
    with opened.write() as connection:
        if devices.load(connection, CAM) is None:
            devices.enrol(
                connection,
                Enrolment(
                    device=CAM,
                    tenant=TENANT,
                    profile="generic-x86-64",
                    token_sha256="0" * 64,
                    broker_hash="-",
                    enrolled_at_ms=0,
                ),
            )
    yield opened
    opened.close()


@pytest.fixture
def controller(running, store):
    login = Login(
        host="127.0.0.1",
        port=running.port,
        username=CONTROLLER_USER,
        password=running.tokens[CONTROLLER_USER],
        client_id="controller",
    )
    transport = PahoTransport(login, subscriptions=topics.up_filters(TENANT))
    made = Controller(store, NothingPublished(), transport, SystemClock(), running.config)
    transport.start()
    yield made
    transport.close()


def step_until(controller, done):
    wait_for(done, meanwhile=lambda: controller.step(0.05))


def test_desired_is_there_again_after_the_broker_came_back_empty(running, store, controller):
    wanted = Desired(generation=1, deployment="d", release="digits@1.0.0", target="t", digest="a" * 64)
    with store.write() as connection:
        devices.save_desired(connection, CAM, wanted)
    topic = topics.device_topic(TENANT, CAM, Leaf.DESIRED, ModelName("digits"))
    heard = []

    def arrives(client):
        if (arrived := client.take(0.01)) is not None:
            heard.append(arrived)
        return bool(heard)

    first = running.client(CAM)
    first.subscribe(*topics.down_filters(TENANT, CAM))
    step_until(controller, lambda: arrives(first))
    assert heard.pop() == (topic, twin.encode(wanted))
    running.kill()
    running.start()
    second = running.client(CAM)
    second.subscribe(*topics.down_filters(TENANT, CAM))
    step_until(controller, lambda: arrives(second))
    assert heard.pop() == (topic, twin.encode(wanted))
    third = running.client(CAM)
    third.subscribe(*topics.down_filters(TENANT, CAM))
    assert third.take() == (topic, twin.encode(wanted)), "and it is retained"


def test_device_is_seen_and_its_rows_are_acknowledged_over_the_wire(running, store, controller):
    from edgeml import telemetry
    from edgeml.telemetry import Batch, Counters, Stream, Window

    def is_online():
        with store.read() as connection:
            return devices.load(connection, CAM).online

    state = topics.device_topic(TENANT, CAM, Leaf.STATE)
    gone = twin.encode(twin.Presence(online=False, session="s1"))
    cam = running.client(CAM, will=(state, gone))
    cam.subscribe(*topics.down_filters(TENANT, CAM))
    cam.publish(state, twin.encode(twin.Presence(online=True, session="s1")), retain=True)
    rows = tuple(
        Window(seq, "digits@1.0.0", "a" * 64, 0, 1000, Counters(inferences=1)) for seq in range(1, 101)
    )
    cam.publish(
        topics.device_topic(TENANT, CAM, Leaf.TELEMETRY, Stream.WINDOWS),
        telemetry.encode_batch(Batch("b1", rows)),
    )
    acks = []

    def acknowledged():
        if (arrived := cam.take(0.01)) is not None and arrived[0].endswith("/ack"):
            acks.append(twin.decode(arrived[1], twin.Ack))
        return bool(acks)

    step_until(controller, acknowledged)
    assert acks == [twin.Ack(boot="b1", stream="windows", seq=100)]
    assert is_online()
    cam.drop()
    step_until(controller, lambda: not is_online())
