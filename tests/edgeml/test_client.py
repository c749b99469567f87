"""Both clients against peers that say exactly what a test wants, over TCP and unix sockets: framing, deadlines, errors."""

import asyncio
import contextlib
import datetime as dt
import socket
import ssl
import threading
import time

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from edgeml.async_client import AsyncClient
from edgeml.client import AgentUrl, Client
from edgeml.errors import BackendError, ConfigError, LinkDownError, ManifestError, StalledError, TransferError

READY = b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"ready":true}'
HEAD = (
    b'{"model_name":"m","model_version":"1","id":"i","parameters":{"latency_us":2.5},"outputs":'
    b'[{"name":"y","datatype":"FP32","shape":[%s],"parameters":{"binary_data_size":%s}}]}'
)


class Threaded:
    """The asynchronous client, driven as the other one is."""

    def __init__(self, url, **options):
        self.loop = asyncio.new_event_loop()
        self.inner = AsyncClient(url, **options)

    def __getattr__(self, name):
        return lambda *given, **named: self.loop.run_until_complete(
            getattr(self.inner, name)(*given, **named)
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
        self.loop.close()


@pytest.fixture(params=[Client, Threaded], ids=["sync", "async"])
def kind(request):
    return request.param


class Peer:
    """Accepts connections one after another; on each it answers as often as its script has answers, then hangs up."""

    def __init__(self, listener, scripts, pause_s=0.0):
        self.listener = listener
        self.scripts = scripts
        self.pause_s = pause_s
        self.requests = []
        self.leave = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        for script in self.scripts:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(10)
                self.answer(connection, script)

    def answer(self, connection, script):
        for answer in script:
            request = b""
            while b"\r\n\r\n" not in request:
                part = connection.recv(10_000)
                if not part:
                    return
                request += part
            self.requests.append(request)
            step = 1 if self.pause_s else max(len(answer), 1)
            for at in range(0, len(answer), step):
                connection.sendall(answer[at : at + step])
                if self.leave.wait(self.pause_s):
                    return

    def close(self):
        self.leave.set()
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture
def peer():
    made = []

    def start(*scripts, pause_s=0.0):
        listener = socket.create_server(("127.0.0.1", 0))
        made.append(Peer(listener, scripts, pause_s))
        return made[-1], f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for one in made:
        one.close()


def reply(head, data=b"", *, stated=None):
    length = len(head) if stated is None else stated
    fields = b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n" % (
        length,
        len(head) + len(data),
    )
    return b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n" + head + data


@pytest.mark.parametrize(
    "answer",
    [
        READY,
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n{"ready\r\n7;a=b\r\n":true}\r\n0\r\nT: x\r\n\r\n',
        b'HTTP/1.0 200 OK\r\n\r\n{"ready":true}',
        b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 14\r\n\r\n{"ready":true}',
    ],
    ids=["length", "chunks", "until the end", "close"],
)
def test_however_an_answer_is_framed_it_is_read(peer, kind, answer):
    _, url = peer([answer], [READY])
    with kind(url) as client:
        assert client.ready()
        assert client.ready()


def test_one_connection_carries_many_requests_with_the_path_before_them(peer, kind):
    peer_, url = peer([READY] * 3)
    with kind(url + "/behind/") as client:
        assert all(client.ready() for _ in range(3))
    assert [one.split()[1] for one in peer_.requests] == [b"/behind/v2/health/ready"] * 3


def test_a_kept_connection_that_ended_is_replaced(peer, kind):
    _, url = peer([READY], [READY])
    with kind(url) as client:
        assert client.ready()
        time.sleep(0.05)
        assert client.ready()


def test_feedback_is_never_sent_twice(peer, kind):
    peer_, url = peer([READY, b""], [READY])
    with kind(url) as client:
        assert client.ready()
        with pytest.raises(LinkDownError):
            client.feedback("m", "i", 1)
    assert len(peer_.requests) == 2


def test_a_question_is_asked_again_when_a_kept_connection_breaks_under_it(peer, kind):
    peer_, url = peer([READY, b""], [READY])
    with kind(url) as client:
        assert client.ready()
        assert client.ready()
    assert len(peer_.requests) == 3


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, ConfigError), (401, ConfigError), (404, ConfigError), (413, ConfigError), (415, ConfigError),
     (429, TransferError), (500, BackendError), (502, TransferError), (503, TransferError), (504, TransferError)],
)  # fmt: skip
def test_a_status_becomes_what_the_caller_should_do(peer, kind, status, error):
    _, url = peer([b'HTTP/1.1 %d X\r\nContent-Length: 19\r\n\r\n{"error":"because"}' % status])
    with kind(url) as client, pytest.raises(error, match="because"):
        client.infer("m", {"x": np.zeros(1, np.float32)})


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (reply(HEAD % (b"2", b"8"), bytes(7)), ManifestError),
        (reply(HEAD % (b"3", b"8"), bytes(8)), ManifestError),
        (reply(HEAD % (b"2", b"-8"), bytes(8)), ManifestError),
        (reply(HEAD % (b"2", b"7"), bytes(8)), ManifestError),
        (reply(HEAD % (b"-1,-1", b"8"), bytes(8)), ManifestError),
        (reply((HEAD % (b"2", b"8")).replace(b"FP32", b"FP8"), bytes(8)), ManifestError),
        (reply(HEAD % (b"2", b"8"), bytes(8), stated=9999), ManifestError),
        (reply(HEAD % (b"2", b"8"), bytes(8), stated=5), ManifestError),
        (reply(b'{"model_name":"m","parameters":{"latency_us":1},"outputs":[]}'), ManifestError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + bytes(65), (ManifestError, LinkDownError)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 65\r\n\r\n" + bytes(9), LinkDownError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", LinkDownError),
        (b"SSH-2.0-OpenSSH\r\n\r\n", LinkDownError),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, LinkDownError),
        (b"", LinkDownError),
    ],
)
def test_an_answer_that_is_none_is_refused(peer, kind, answer, error):
    _, url = peer([answer])
    with kind(url) as client, pytest.raises(error) as caught:
        client.infer("m", {"x": np.zeros(1, np.float32)})
    assert "\n" not in caught.value.message


def test_an_answer_is_read_into_arrays_that_cannot_be_changed(peer, kind):
    values = np.array([1.5, -0.0], "<f4")
    _, url = peer([reply(HEAD % (b"1,2", b"8"), values.tobytes())], [reply(HEAD % (b"0,2", b"0"))])
    with kind(url) as client:
        answer = client.infer("m", {"x": np.zeros(1, np.float32)})
        assert answer.outputs["y"].tolist() == [[1.5, -0.0]]
        assert not answer.outputs["y"].flags.writeable
        assert client.infer("m", {"x": np.zeros(1, np.float32)}).outputs["y"].shape == (0, 2)


@pytest.mark.parametrize("pause_s", [0.0, 0.05], ids=["silence", "a byte now and then"])
def test_a_deadline_covers_the_whole_answer(peer, kind, pause_s):
    script = [READY] if pause_s else [b"HTTP/1.1 200 OK\r\n"]
    peer_, url = peer(script, pause_s=pause_s or 10.0)
    started_s = time.monotonic()
    with kind(url, timeout_s=0.3) as client, pytest.raises(StalledError, match=r"within 0\.3 s"):
        client.ready()
    peer_.leave.set()
    assert 0.25 < time.monotonic() - started_s < 2.0


def test_what_is_left_of_a_late_answer_is_not_the_next_ones(peer, kind):
    late = b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\n{}"
    _, url = peer([late], [READY], pause_s=0.02)
    with kind(url, timeout_s=5.0) as client:
        with pytest.raises(StalledError):
            client.infer("m", {"x": np.zeros(1, np.float32)}, timeout_s=0.2)
        assert client.ready()


def test_a_unix_socket_is_an_address_too(tmp_path, kind):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "agent.sock"))
        listener.listen()
        one = Peer(listener, [[READY, READY]])
        with kind(f"unix://{tmp_path}/agent.sock") as client:
            assert client.ready()
            assert client.ready()
        one.close()
    with (
        kind(f"unix://{tmp_path}/agent.sock") as client,
        pytest.raises(LinkDownError, match="no agent answers"),
    ):
        client.ready()


@pytest.fixture
def certificate(tmp_path, monkeypatch):
    """A certificate for localhost that this process trusts, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = tmp_path / "localhost.pem"
    path.write_bytes(made.public_bytes(Encoding.PEM) + key.private_bytes(*plain))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return path


@pytest.mark.parametrize("trusted", [True, False])
def test_a_proxy_with_tls_may_stand_before_the_agent(certificate, kind, trusted, monkeypatch, tmp_path):
    if not trusted:
        (tmp_path / "none.pem").touch()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))
    with context.wrap_socket(listener, server_side=True) as secure:
        one = Peer(secure, [[READY, READY], []])
        with kind(f"https://localhost:{secure.getsockname()[1]}") as client:
            if trusted:
                assert client.ready()
                assert client.ready()
            else:
                with pytest.raises(LinkDownError, match=r"certificate|CERTIFICATE"):
                    client.ready()
        one.close()
    assert len(one.requests) == (2 if trusted else 0)


def test_a_deadline_holds_over_tls_too(certificate, kind):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))
    with context.wrap_socket(listener, server_side=True) as secure:
        one = Peer(secure, [[READY]], pause_s=0.05)
        url = f"https://localhost:{secure.getsockname()[1]}"
        with kind(url, timeout_s=0.4) as client, pytest.raises(StalledError):
            client.ready()
        one.close()


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8090", "ftp://x", "http://", "http://x:port", "unix://", "unix:///", "unix://host/x"],
)
def test_a_url_that_is_none_is_the_users_to_fix(url):
    with pytest.raises(ConfigError, match="no URL"):
        AgentUrl.parse(url)
