"""The intake: only a parcel's files, only within bounds, whole or not at all, and only over a unix socket."""

import http.client
import os
import socket

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.flash import DESIRED, INBOX
from agent.intake import METADATA_BYTES_MAX, NAMES_MAX, Intake
from agent.server import Server
from edgeml.errors import BudgetError, ConfigError, StorageError
from edgeml.ids import digest_of

NAME = "0123456789abcdef"
BLOB = f"repository/blobs/sha256/{'a' * 64}"
BLOB_BYTES_MAX = 10_000


@pytest.fixture
def intake(tmp_path):
    return Intake(tmp_path, BLOB_BYTES_MAX)


@pytest.mark.parametrize(
    ("path", "longest"),
    [
        (DESIRED, 8 << 10),
        (BLOB, BLOB_BYTES_MAX),
        ("repository/metadata/timestamp.json", METADATA_BYTES_MAX),
        ("repository/metadata/12.targets.json", METADATA_BYTES_MAX),
    ],
)
def test_each_file_has_its_bound(intake, path, longest):
    assert intake.length_max_bytes(path) == longest


@pytest.mark.parametrize(
    "path",
    [
        "", "x", "../desired.json", "./desired.json", "desired.json/", "desired.json\n", "repository/metadata/../x.json",
        "repository/metadata/x.json", "repository/metadata/1.root.json/x", f"{BLOB}/x", BLOB.upper(), f"/{BLOB}", f"repository//{BLOB}",
        "repository/metadata/9999999999.root.json", "trust/root.json",
    ],
)  # fmt: skip
def test_nothing_else_is_taken(intake, path, tmp_path):
    with pytest.raises(ConfigError), intake.receiving(NAME, path):
        pytest.fail("taken")
    assert list(tmp_path.rglob("*")) == []


@given(st.text(max_size=60), st.text(max_size=20))
def test_no_text_gets_out_of_the_inbox(path, name):
    intake = Intake(os.devnull, 1)
    try:
        intake.length_max_bytes(path)
    except ConfigError:
        return
    assert path == DESIRED or path.startswith("repository/")
    assert ".." not in path


@pytest.mark.parametrize("name", ["", "..", "x", NAME.upper(), NAME + "0", NAME[:-1] + "/"])
def test_a_parcel_has_a_name_of_its_kind(intake, name):
    with pytest.raises(ConfigError, match="no parcel is called"), intake.receiving(name, DESIRED):
        pytest.fail("taken")


def test_a_file_that_breaks_off_leaves_nothing(intake, tmp_path):
    def break_off():
        with intake.receiving(NAME, BLOB) as file:
            file.write(b"half")
            raise BrokenPipeError

    with pytest.raises(StorageError):
        break_off()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_parcels_are_bounded(intake, tmp_path):
    for number in range(NAMES_MAX):
        (tmp_path / INBOX / f"{number:016x}").mkdir(parents=True)
    with pytest.raises(BudgetError), intake.receiving("f" * 16, DESIRED):
        pytest.fail("taken")
    with intake.receiving(f"{1:016x}", DESIRED) as file:
        file.write(b"{}")


class Nobody:
    def models(self):
        return ()

    def manifest(self, _model):
        return None


@pytest.fixture
def over_socket(intake, tmp_path):
    path = tmp_path / "a.sock"
    server = Server(Nobody(), f"unix:{path}", intake=intake)
    server.start()
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://agent") as client:
        yield client
    server.stop()


def test_it_says_whose_releases_it_takes(over_socket, tmp_path):
    assert over_socket.get("/inbox").json() == {"root_sha256": None}
    (tmp_path / "trust").mkdir()
    (tmp_path / "trust" / "root.json").write_bytes(b"{}")
    assert over_socket.get("/inbox").json() == {"root_sha256": digest_of(b"{}")}


def test_files_come_whole_and_where_they_belong(over_socket, tmp_path):
    content = os.urandom(BLOB_BYTES_MAX)
    assert over_socket.put(f"/inbox/{NAME}/{BLOB}", content=content).status_code == 204
    path = tmp_path / INBOX / NAME / BLOB
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        (f"/inbox/{NAME}/{BLOB}", b"x" * (BLOB_BYTES_MAX + 1), 413),
        (f"/inbox/{NAME}/trust/root.json", b"x", 400),
        (f"/inbox/{NAME}/..%2f..%2ftrust%2froot.json", b"x", 400),
        (f"/inbox/..%2f..%2fx/{DESIRED}", b"x", 400),
        (f"/inbox/{NAME}/{BLOB}", iter([b"x"]), 411),
    ],
)
def test_what_is_wrong_is_refused_and_leaves_nothing(over_socket, tmp_path, path, content, status):
    before = {one for one in tmp_path.rglob("*") if one.is_file()}
    response = over_socket.put(path, content=content)
    assert response.status_code == status, response.text
    assert response.json()["error"]
    assert {one for one in tmp_path.rglob("*") if one.is_file()} == before


def test_a_sender_that_vanishes_leaves_nothing(over_socket, tmp_path):
    with socket.socket(socket.AF_UNIX) as sender:
        sender.connect(str(tmp_path / "a.sock"))
        sender.sendall(
            f"PUT /inbox/{NAME}/{BLOB} HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\nhalf".encode()
        )
    assert over_socket.get("/inbox").status_code == 200
    for _ in range(100):
        if not [one for one in (tmp_path / INBOX).rglob("*") if one.is_file()]:
            return
        over_socket.get("/inbox")
    pytest.fail("something is left")


def test_over_tcp_there_is_no_inbox(intake):
    server = Server(Nobody(), "127.0.0.1:0", intake=intake)
    server.start()
    try:
        host = server.url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=10)
        connection.request("PUT", f"/inbox/{NAME}/{DESIRED}", b"{}")
        assert connection.getresponse().status == 404
        connection.close()
    finally:
        server.stop()
