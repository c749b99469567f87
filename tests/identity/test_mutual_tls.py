"""Both real brokers and the real HTTPS server under `edgeml fleet serve`: the certificate is the login."""

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time

import msgspec
import pytest

from agent.checkup import examine
from agent.config import load
from agent.enrolment import enrol
from edgeml import keypair, topics
from edgeml.errors import ConfigError
from edgeml.handshake import Fault, find_refusal
from edgeml.ids import DeviceId, ModelName, TenantId
from edgeml.mqtt import Login, PahoTransport
from edgeml.tls import TlsFiles, authority_context
from edgeml.topics import Leaf
from edgeml.transport import LinkUp, Message
from fleet import authority, devices, enroll, mosquitto
from fleet.serve import RESTARTS_APART_S, Running

from ..waiting import PATIENCE_S, wait_for

pytestmark = [
    pytest.mark.processes,
    pytest.mark.broker,
    # paho leaves a socket whose handshake was refused to the garbage collector.
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
    ),
]
TENANT = TenantId("main")


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
        process.wait(60)
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


def comes_up(transport, timeout_s=PATIENCE_S):
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if isinstance(transport.receive(0.1), LinkUp):
            return True
    return False


def next_message(transport, timeout_s=PATIENCE_S):
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
        assert comes_up(liar)
        assert next_message(liar, 0.5) is None
        comes_up(forger, 5)
        forger.publish(secret)
        time.sleep(0.5)
        with connected(cam_a, subscribe=(desired,)) as owner:
            assert comes_up(owner)
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
    files = TlsFiles(authority=config.tls.files.authority, identity=foreign)
    assert refusal(config, files) is seen(fleet, Fault.OTHER_AUTHORITY)
    with connected(config, tls=files) as transport:
        assert not comes_up(transport, 2.0)
    bare = authority_context(fleet.authority.pem)
    assert greet(fleet.config.tls.broker_port, bare) != b"\x20\x02\x00\x00"
    assert refusal(config) is None
    with connected(config) as transport:
        assert comes_up(transport)


def greet(port, context):
    """Send a login without a certificate; return what the broker says to it, nothing if it hangs up."""
    login = bytes.fromhex("101100044d5154540402003c000563616d2d63")
    raw = socket.create_connection(("127.0.0.1", port), 5)
    try:
        with context.wrap_socket(raw, server_hostname="127.0.0.1") as link:
            link.sendall(login)
            return link.recv(4)
    except (ssl.SSLError, ConnectionError) as error:
        assert isinstance(error, (ConnectionError, ssl.SSLEOFError)) or "CERTIFICATE_REQUIRED" in error.reason  # noqa: PT017
        return b""


def test_expired_certificate_does_not_connect(fleet, tmp_path):
    fleet.clock.advance(-200 * 86_400)
    old = fleet.admission.enrol(*request_of(fleet, tmp_path, "cam-old"))
    fleet.clock.advance(200 * 86_400)
    config = enrolled(fleet, tmp_path / "cam-e", "cam-e")
    identity = tmp_path / "old.pem"
    identity.write_bytes((tmp_path / "cam-old.key").read_bytes() + old.certificate.encode())
    identity.chmod(0o600)
    files = TlsFiles(authority=config.tls.files.authority, identity=identity)
    assert refusal(config, files) is seen(fleet, Fault.EXPIRED)
    with connected(config, tls=files) as transport:
        assert not comes_up(transport, 2.0)


def refusal(config, files=None):
    found = find_refusal((config.broker.host, config.broker.port), files or config.tls.files)
    return found.fault if found else None


def seen(fleet, fault):
    """What a device sees of it: only mosquitto says what was wrong."""
    return fault if fleet.config.broker.kind == "mosquitto" else Fault.HUNG_UP


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
        assert comes_up(transport)
        key = keypair.generate()
        serial = keypair.facts((tmp_path / "cam-n" / "identity.pem").read_bytes()).serial
        pem = fleet.admission.renew("cam-n", serial, keypair.request(key, "cam-n"), fleet.clock.now_ms())
        identity = tmp_path / "cam-n" / "identity.pem"
        identity.write_bytes(key + pem.encode())
        transport.reload_identity()
        assert comes_up(transport)
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
        wait_for(lambda: refusal(config) is seen(fleet, Fault.REVOKED), "the broker to say why")
        found = {one.name: one for one in examine(tmp_path / "cam-r" / "agent.toml", fleet.clock.now_ms())}
        assert seen(fleet, Fault.REVOKED).value in found["broker"].said
        assert "claim create --device cam-r" in found["broker"].hint
    finally:
        agent.terminate()
        agent.wait(60)


def test_running_agent_connects_with_the_identity_of_a_new_enrolment_by_itself(fleet, tmp_path):
    enrolled(fleet, tmp_path / "cam-w", "cam-w")
    log = tmp_path / "agent.log"
    with log.open("wb") as out:
        agent = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "edgeml",
                "-v",
                "agent",
                "run",
                "-c",
                str(tmp_path / "cam-w" / "agent.toml"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        wait_for(lambda: known(fleet, "cam-w").online, "the agent to be online")
        first = keypair.facts((tmp_path / "cam-w" / "identity.pem").read_bytes())
        enrolled(fleet, tmp_path / "cam-w", "cam-w")
        assert keypair.facts((tmp_path / "cam-w" / "identity.pem").read_bytes()).serial != first.serial
        # The certificate of before is revoked, and its connection was cut: a link after that is by the new one.
        wait_for(lambda: "link up" in log.read_text().partition("identity was replaced")[2], "the new link")
        wait_for(lambda: known(fleet, "cam-w").online, "the agent to be back")
        assert agent.poll() is None
    finally:
        agent.terminate()
        agent.wait(60)
    assert "Traceback" not in log.read_text(), log.read_text()


def is_refused(config):
    with connected(config) as transport:
        return not comes_up(transport, 4.0)


def known(fleet, device):
    with fleet.store.read() as connection:
        return devices.load(connection, DeviceId(device))


def test_many_removed_at_once_share_a_restart_and_none_of_them_gets_in(fleet, tmp_path, request):
    if "amqtt" in request.node.name and os.environ.get("EDGEML_SOAK") != "1":
        pytest.skip("most of a minute for the broker that is for trying out: make soak")
    names = [f"cam-m{number}" for number in range(4)]
    configs = [enrolled(fleet, tmp_path / name, name) for name in names]
    with connected(configs[-1]) as transport:
        assert comes_up(transport)
    first, log = broker_pid(fleet), fleet.home.directory.parent / "serve.log"
    restarts = log.read_text().count("logins were taken away")
    for name in names:
        enroll.remove(fleet.home, fleet.store, name, fleet.clock.now_ms())
    wait_for(lambda: broker_pid(fleet) != first, "the broker's restart")
    wait_for(lambda: all(map(is_refused, configs)), "all to be refused")
    time.sleep(RESTARTS_APART_S)
    # The first at once, unless a test before had one; all others together.
    assert 1 <= log.read_text().count("logins were taken away") - restarts <= 2


def broker_pid(fleet):
    return msgspec.json.decode((fleet.home.run / "serve.json").read_bytes(), type=Running).pids.get("broker")
