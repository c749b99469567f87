"""Row 9: 1 kB/s, three of ten pieces lost, half a second of round trip; the fetch and MQTT share it.

Scaled: the catalogue says 2 kB/s, 2 s and means bundles of megabytes and a keepalive of 30 s. Here a bundle of 8 kB takes
two keepalives (of 6 s), as one of 120 kB would, and a keepalive is twelve round trips and not fifteen, which is harder.
"""

import gc
import socket
import time

import pytest

from edgeml.mqtt import Login, PahoTransport
from edgeml.transport import LinkUp, Message
from edgeml.twin import Outcome

from ..waiting import wait_for
from .invariants import check
from .link import Line

KEEPALIVE_S = 6


@pytest.fixture
def line(mirror, broker):
    made = Line([mirror.server_address[1], broker.port], bytes_s=1000, rtt_s=0.5, lost=0.3)
    yield made
    made.close()


@pytest.fixture
def transport(line, broker):
    login = Login(
        host="127.0.0.1",
        port=line.ports[broker.port],
        username="cam-1",
        password="secret",
        client_id="cam-1",
        keepalive_s=KEEPALIVE_S,
    )
    made = PahoTransport(login, subscriptions=("t",))
    made.start()
    yield made
    made.close()


@pytest.mark.processes
def test_a_download_over_a_thin_link_finishes_and_leaves_mqtt_its_share(
    make_unit, unit, mirror, broker, line, transport, signer, versions
):
    assert isinstance(transport.receive(20), LinkUp)
    wanted = signer.release(versions[2], 2)
    unit.close()
    slow = make_unit(url=f"http://127.0.0.1:{line.ports[mirror.server_address[1]]}")
    began_s = time.monotonic()
    assert slow.install(wanted).outcome is Outcome.COMMITTED
    assert time.monotonic() - began_s > 1.5 * KEEPALIVE_S, "a client that is silent for so long is dropped"
    assert line.passed_bytes > len(versions[2])
    assert transport.connected
    broker.client.publish("t", b"still there?", 1).wait_for_publish(5)
    arrived = transport.receive(10)
    assert isinstance(arrived, Message), arrived
    assert arrived.payload == b"still there?"
    assert "exceeded timeout" not in broker.log.read_text()
    check(slow.storage)


def test_a_line_that_is_closed_leaves_no_task_behind(caplog):
    with socket.create_server(("127.0.0.1", 0)) as far:
        for hang_up in (False, True):
            line = Line([far.getsockname()[1]], bytes_s=100_000, rtt_s=5.0, lost=0.0)
            near = socket.create_connection(("127.0.0.1", line.ports[far.getsockname()[1]]))
            there, _ = far.accept()
            # More than it holds on the way, in both directions.
            near.sendall(b"a" * 20_000)
            there.sendall(b"b" * 20_000)
            wait_for(lambda line=line: line.passed_bytes >= 2000, "the first bytes")
            if hang_up:
                there.close()
            line.close()
            near.close()
            there.close()
            gc.collect()
    assert [one.message for one in caplog.records if one.name == "asyncio"] == []
