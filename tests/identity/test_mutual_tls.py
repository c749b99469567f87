"""Both real brokers and the real HTTPS server under `edgeml fleet serve`: the certificate is the login."""

import contextlib
import os
import signal
import ssl
import subprocess
import sys
import time

import pytest

from agent.config import load
from agent.enrolment import enrol
from edgeml import keypair, topics
from edgeml.errors import ConfigError
from edgeml.ids import DeviceId, ModelName, TenantId
from edgeml.mqtt import Login, PahoTransport
from edgeml.tls import TlsFiles, authority_context
from edgeml.topics import Leaf
from edgeml.transport import LinkUp, Message
from fleet import authority, devices, enroll, mosquitto

pytestmark = [pytest.mark.processes, pytest.mark.broker]
TENANT = TenantId("main")


def wait_for(condition, what, timeout_s=25):
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout_s} s for {what}")


@pytest.fixture(scope="module", params=["mosquitto", "amqtt"])
def fleet(request, tmp_path_factory, make_fleet):
    if request.param == "mosquitto" and mosquitto.find() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("mosquitto must be installed where CI=true")
        pytest.skip("mosquitto is not installed")
    directory = tmp_path_factory.mktemp(request.param)
    made = make_fleet(directory, request.param)
    log = directory / "serve.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "edgeml", "-v", "fleet", "serve", "--dir", str(made.home.directory)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        wait_for(lambda: "ready" in log.read_text() or process.poll() is not None, "serve to be ready")
        assert process.poll() is None, log.read_text()
        yield made
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        made.store.close()
    assert "Traceback" not in log.read_text(), log.read_text()


def enrolled(fleet, directory, device):
    wish = fleet.wish(directory, fleet.invitation(device), device=device)
    return load(enrol(wish, lambda _line: None, 0).settings_path)


@contextlib.contextmanager
def connected(config, *, username="", tls=None, subscribe=()):
    login = Login(
        host=config.broker.host,
        port=config.broker.port,
        username=username or config.device,
        password="nonsense" if username else "",
        client_id=config.device,
        tls=tls or config.tls.files,
    )
    transport = PahoTransport(login, subscriptions=subscribe)
    transport.start()
    try:
        yield transport
    finally:
        transport.close()


def comes_up(transport, timeout_s):
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if isinstance(transport.receive(0.1), LinkUp):
            return True
    return False


def next_message(transport, timeout_s=5.0):
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        arrival = transport.receive(0.1)
        if isinstance(arrival, Message):
            return arrival
    return None


def test_certificate_is_the_login_and_access_goes_by_its_name(fleet, tmp_path):
    cam_a, cam_b = (enrolled(fleet, tmp_path / name, name) for name in ("cam-a", "cam-b"))
    desired = topics.device_topic(TENANT, DeviceId("cam-a"), Leaf.DESIRED, ModelName("digits"))
    secret = Message(desired, b"secret", 1, retain=True)
    with (
        # What the client calls itself counts for nothing.
        connected(cam_b, username="cam-a", subscribe=(desired,)) as liar,
        connected(cam_b, username="controller") as forger,
    ):
        assert comes_up(liar, 10)
        assert next_message(liar, 0.5) is None
        comes_up(forger, 5)
        forger.publish(secret)
        time.sleep(0.5)
        with connected(cam_a, subscribe=(desired,)) as owner:
            assert comes_up(owner, 10)
            assert next_message(owner, 1.0) is None


def test_nobody_connects_without_a_certificate_of_this_fleet(fleet, tmp_path):
    config = enrolled(fleet, tmp_path / "cam-c", "cam-c")
    other = authority.ensure(tmp_path / "other", fleet.clock.now_ms())
    key = keypair.generate()
    csr = keypair.read_request(keypair.request(key, "cam-c"))
    pem = authority.issue_device(other, csr, "cam-c", fleet.clock.now_ms(), 3_600_000)
    foreign = tmp_path / "foreign.pem"
    foreign.write_bytes(key + pem.encode())
    foreign.chmod(0o600)
    with connected(config, tls=TlsFiles(authority=config.tls.files.authority, identity=foreign)) as transport:
        assert not comes_up(transport, 2.0)
    bare = authority_context(fleet.authority.pem)
    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
        greet(fleet.config.tls.broker_port, bare)
    with connected(config) as transport:
        assert comes_up(transport, 10)


def greet(port, context):
    """Send a login without a certificate; fails unless the broker welcomes it."""
    import socket

    login = bytes.fromhex("101100044d51545404020 03c000563616d2d63".replace(" ", ""))
    with context.wrap_socket(
        socket.create_connection(("127.0.0.1", port), 5), server_hostname="127.0.0.1"
    ) as link:
        link.sendall(login)
        assert link.recv(4) == b"\x20\x02\x00\x00"


def test_expired_certificate_does_not_connect(fleet, tmp_path):
    fleet.clock.advance(-200 * 86_400)
    old = fleet.admission.enrol(*request_of(fleet, tmp_path, "cam-old"))
    fleet.clock.advance(200 * 86_400)
    config = enrolled(fleet, tmp_path / "cam-e", "cam-e")
    identity = tmp_path / "old.pem"
    identity.write_bytes((tmp_path / "cam-old.key").read_bytes() + old.certificate.encode())
    identity.chmod(0o600)
    with connected(
        config, tls=TlsFiles(authority=config.tls.files.authority, identity=identity)
    ) as transport:
        assert not comes_up(transport, 2.0)


def request_of(fleet, directory, device):
    from edgeml.identity import EnrolRequest

    key = keypair.generate()
    (directory / f"{device}.key").write_bytes(key)
    claim = fleet.invitation(device).token
    asked = EnrolRequest(device=device, csr=keypair.request(key, device), claim=claim)
    return asked, "127.0.0.1", fleet.clock.now_ms()


def test_new_identity_is_used_after_a_reload(fleet, tmp_path):
    config = enrolled(fleet, tmp_path / "cam-n", "cam-n")
    with connected(config) as transport:
        assert comes_up(transport, 10)
        key = keypair.generate()
        serial = keypair.facts((tmp_path / "cam-n" / "identity.pem").read_bytes()).serial
        pem = fleet.admission.renew("cam-n", serial, keypair.request(key, "cam-n"), fleet.clock.now_ms())
        identity = tmp_path / "cam-n" / "identity.pem"
        identity.write_bytes(key + pem.encode())
        transport.reload_identity()
        assert comes_up(transport, 10)
        identity.chmod(0o644)
        with pytest.raises(ConfigError, match="read by others"):
            transport.reload_identity()
        assert transport.connected


def test_agent_is_seen_and_a_removed_one_is_shut_out_at_once(fleet, tmp_path):
    config = enrolled(fleet, tmp_path / "cam-r", "cam-r")
    agent = subprocess.Popen(
        [sys.executable, "-m", "edgeml", "agent", "run", "-c", str(tmp_path / "cam-r" / "agent.toml")],
        stdin=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: known(fleet, "cam-r").online, "the agent to be online")
        enroll.remove(fleet.home, fleet.store, "cam-r", fleet.clock.now_ms())
        # A connection of the moment before is ended by the broker's restart.
        wait_for(lambda: is_refused(config), "the broker to refuse it")
    finally:
        agent.terminate()
        agent.wait(15)


def is_refused(config):
    with connected(config) as transport:
        return not comes_up(transport, 4.0)


def known(fleet, device):
    with fleet.store.read() as connection:
        return devices.load(connection, DeviceId(device))
