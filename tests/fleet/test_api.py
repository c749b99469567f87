"""The HTTP server, over a real socket: ranges, logins, and nothing beyond the repository."""

import contextlib
import socket
import threading

import httpx
import pytest
import uvicorn

from edgeml.errors import PermanentTransferError
from edgeml.ids import DeviceId, digest_of
from edgeml.source import HttpSource
from edgeml.testing import sample_bundle
from fleet import api, devices, founding
from fleet.config import FleetHome, database_url, load
from fleet.devices import Enrolment
from fleet.store import Store
from fleet.tokens import operator_token, token_hash

from ..waiting import wait_for

TOKEN = "token-of-cam-1"
DATA = bytes(range(256)) * 1024
DIGEST = digest_of(DATA)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    made = FleetHome(tmp_path_factory.mktemp("api") / "fleet")
    founding.found(made)
    (made.repository / "blobs" / "sha256" / DIGEST).write_bytes(DATA)
    return made


@pytest.fixture(scope="module")
def store(home):
    opened = Store(database_url(home, load(home)))
    with opened.write() as connection:
        devices.enrol(
            connection,
            Enrolment(
                device=DeviceId("cam-1"),
                tenant="main",
                profile="generic-x86-64",
                token_sha256=token_hash(TOKEN),
                broker_hash="-",
                enrolled_at_ms=0,
            ),
        )
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def url(home, store):
    app = api.make_app(home, store, operator_token(home))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started, "the server")
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(60)
    listener.close()


@pytest.fixture
def device(url):
    with httpx.Client(base_url=url, auth=("cam-1", TOKEN)) as client:
        yield client


@pytest.fixture
def operator(url, home):
    token = home.operator_token.read_text()
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}) as client:
        yield client


BLOB = f"/blobs/sha256/{DIGEST}"
TAG = f'"{DIGEST}"'


def test_whole_blob_has_its_digest_as_entity_tag(device):
    answer = device.get(BLOB)
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (200, DATA, TAG)
    assert answer.headers["accept-ranges"] == "bytes"
    assert "immutable" in answer.headers["cache-control"]


@pytest.mark.parametrize("first", [0, 1, 65_536, 200_001, len(DATA) - 1])
def test_rest_of_a_blob_is_partial_and_says_where_it_begins(device, first):
    answer = device.get(BLOB, headers={"Range": f"bytes={first}-", "If-Range": TAG})
    assert answer.status_code == 206
    assert answer.headers["content-range"] == f"bytes {first}-{len(DATA) - 1}/{len(DATA)}"
    assert answer.content == DATA[first:]
    assert answer.headers["etag"] == TAG


def test_middle_of_a_blob_is_partial(device):
    answer = device.get(BLOB, headers={"Range": "bytes=100-199"})
    assert (answer.status_code, answer.content) == (206, DATA[100:200])


@pytest.mark.parametrize(
    "condition", ['"another"', f'W/"{DIGEST}"', DIGEST, "Thu, 01 Jan 1970 00:00:00 GMT", "*"]
)
def test_range_of_another_version_gets_the_whole_blob(device, condition):
    answer = device.get(BLOB, headers={"Range": "bytes=1000-", "If-Range": condition})
    assert (answer.status_code, answer.content) == (200, DATA)
    assert "content-range" not in answer.headers


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (f"bytes={len(DATA)}-", 416),
        ("bytes=9999999-", 416),
        ("bytes=x-", 400),
        ("lines=1-", 400),
        ("bytes=5-1", 400),
    ],
)
def test_range_that_cannot_be_is_refused(device, asked, status):
    assert device.get(BLOB, headers={"Range": asked}).status_code == status


def test_range_past_the_end_says_how_long_the_blob_is(device):
    answer = device.get(BLOB, headers={"Range": f"bytes={len(DATA)}-"})
    assert answer.headers["content-range"] == f"bytes */{len(DATA)}"


def test_device_goes_on_where_its_download_was_cut(url):
    source = HttpSource(url, "cam-1", TOKEN)
    with source.blob(DIGEST, 150_000) as stream:
        assert stream.offset == 150_000
        assert b"".join(stream.pieces) == DATA[150_000:]


@pytest.mark.parametrize("path", [BLOB, "/metadata/timestamp.json", "/metadata/1.root.json"])
@pytest.mark.parametrize(
    "login",
    [
        None,
        ("cam-1", ""),
        ("cam-1", "wrong"),
        ("cam-2", TOKEN),
        ("", ""),
        ("cam-1'--", TOKEN),
        ("x" * 5000, TOKEN),
        ("cam-1", TOKEN + "x"),
    ],
    ids=lambda login: "none" if login is None else f"{login[0][:8]}:{login[1][:8]}",
)
def test_repository_needs_a_devices_login(url, path, login):
    answer = httpx.get(url + path, auth=login)
    assert answer.status_code == 401
    assert "Basic" in answer.headers["www-authenticate"]


@pytest.mark.parametrize(
    "path",
    [
        "/metadata/nonsense.json",
        "/metadata/..%2Ffleet.db",
        "/metadata/%2e%2e%2f%2e%2e%2ffleet.db",
        "/metadata/..%2F..%2Fkeys%2Foffline%2Froot.pem",
        "/metadata/.%00.json",
        "/metadata/timestamp.json%00",
        "/metadata/TIMESTAMP.json",
        "/blobs/sha256/" + "0" * 64,
        "/blobs/sha256/" + DIGEST.upper(),
        "/blobs/sha256/..%2F..%2Fmetadata%2Ftimestamp.json",
        "/blobs/sha256/" + DIGEST[:-1],
        "/keys/offline/root.pem",
        "/fleet.db",
        "/docs",
    ],
)
def test_nothing_else_can_be_fetched(device, path):
    assert device.get(path).status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed(device, operator, method):
    for client in (device, operator):
        for path in (BLOB, "/metadata/timestamp.json", "/api/status", "/api/rollouts"):
            assert client.request(method, path).status_code == 405


def test_metadata_is_served_and_never_cached(device, home):
    answer = device.get("/metadata/timestamp.json")
    assert answer.content == (home.repository / "metadata" / "timestamp.json").read_bytes()
    assert answer.headers["cache-control"] == "no-cache"


def test_device_fetches_and_verifies_a_published_release(url, home, store, tmp_path):
    from edgeml.clock import SystemClock
    from edgeml.trust import TrustStore

    sample_bundle(tmp_path / "one.edgeml")
    (published,) = founding.publish(home, store, [tmp_path / "one.edgeml"], home.keys)
    trust = tmp_path / "trust"
    trust.mkdir()
    (trust / "root.json").write_bytes((home.repository / "metadata" / "1.root.json").read_bytes())
    source = HttpSource(url, "cam-1", TOKEN)
    devices_own = TrustStore(trust, source, now_ms=SystemClock().now_ms())
    devices_own.refresh()
    assert devices_own.target(published.target.path) == published.target
    with source.blob(published.target.digest, 0) as stream:
        assert digest_of(b"".join(stream.pieces)) == published.target.digest


def test_wrong_token_is_no_reason_to_try_again(url):
    with pytest.raises(PermanentTransferError, match="401"):
        list(HttpSource(url, "cam-1", "wrong").metadata("timestamp.json"))


@pytest.mark.parametrize("path", ["/api/status", "/api/rollouts", "/api/drift", "/metrics"])
def test_operators_view_needs_the_operators_token(url, device, operator, path):
    assert operator.get(path).status_code == 200
    kind = "text/plain; version=0.0.4; charset=utf-8" if path == "/metrics" else "application/json"
    assert operator.get(path).headers["content-type"] == kind
    assert device.get(path).status_code == 401
    assert httpx.get(url + path).status_code == 401
    assert httpx.get(url + path, headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_operators_token_opens_no_blob(operator):
    assert operator.get(BLOB).status_code == 401


def test_status_names_the_devices(operator):
    assert [one["device"] for one in operator.get("/api/status").json()["devices"]] == ["cam-1"]
    assert 'edgeml_fleet_device_online{device="cam-1"} 0\n' in operator.get("/metrics").text


def test_anybody_may_ask_whether_it_is_alive(url):
    assert httpx.get(url + "/healthz").text == "ok\n"


def test_operators_token_is_kept_and_for_its_owner_only(home):
    first = operator_token(home)
    assert first == operator_token(home)
    assert len(first) >= 43
    assert home.operator_token.stat().st_mode & 0o077 == 0


def test_client_that_leaves_in_the_middle_stops_nothing(url):
    host, port = url.removeprefix("http://").split(":")
    for _ in range(20):
        with contextlib.suppress(OSError), socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"GET " + BLOB.encode() + b" HTTP/1.1\r\nHost: x\r\nAuthorization: Basic x\r\n"
            )
    assert httpx.get(url + "/healthz").status_code == 200
