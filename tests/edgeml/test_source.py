"""Directories and servers as sources: layout, headers, and which failures are worth another try."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from edgeml.errors import LinkDownError, PermanentTransferError, TransferError
from edgeml.ids import Digest, digest_of
from edgeml.source import DirectorySource, HttpSource

DIGEST = digest_of(b"hello world")


class Answer(HTTPServer):
    """Gives one scripted answer to everything."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.headers, self.body = 200, {}, b""
        self.date = ""
        self.seen: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address) -> None:
        """The client hangs up on purpose."""


class Handler(BaseHTTPRequestHandler):
    server: Answer

    def log_message(self, *_args) -> None:
        """Quiet."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        return self.server.date or super().date_time_string(timestamp)

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)


@pytest.fixture
def server() -> Iterator[Answer]:
    server = Answer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def read(source: HttpSource | DirectorySource, digest: Digest = DIGEST, offset: int = 0) -> tuple[int, bytes]:
    with source.blob(digest, offset) as stream:
        return stream.offset, b"".join(stream.pieces)


def test_directory_serves_metadata_and_blobs_from_any_offset(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata/timestamp.json").write_bytes(b"{}")
    (tmp_path / "blobs/sha256").mkdir(parents=True)
    (tmp_path / "blobs/sha256" / DIGEST).write_bytes(b"hello world")
    source = DirectorySource(tmp_path)
    assert b"".join(source.metadata("timestamp.json")) == b"{}"
    assert read(source) == (0, b"hello world")
    assert read(source, offset=6) == (6, b"world")
    assert read(source, offset=99) == (99, b"")


def test_directory_without_the_file_is_permanent(tmp_path: Path) -> None:
    with pytest.raises(PermanentTransferError):
        list(DirectorySource(tmp_path).metadata("timestamp.json"))
    with pytest.raises(PermanentTransferError):
        read(DirectorySource(tmp_path))


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../secret", "..", "."])
def test_directory_serves_nothing_outside_itself(tmp_path: Path, name: str) -> None:
    (tmp_path / "repository/metadata").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "repository/secret").write_bytes(b"x")
    with pytest.raises(TransferError):
        list(DirectorySource(tmp_path / "repository").metadata(name))


@pytest.mark.parametrize("digest", ["", "../../../secret", DIGEST.upper(), DIGEST[:-1], DIGEST + "0"])
def test_directory_takes_only_digests_for_blobs(tmp_path: Path, digest: str) -> None:
    with pytest.raises(PermanentTransferError):
        read(DirectorySource(tmp_path), Digest(digest))


def test_login_and_range_are_sent_as_headers(server: Answer) -> None:
    server.status, server.body = 206, b"world"
    server.headers = {"Content-Range": "bytes 6-10/11", "Content-Length": "5"}
    assert read(HttpSource(server.url + "/", "cam-1", "s3cret"), offset=6) == (6, b"world")
    path, headers = server.seen[0]
    assert path == f"/blobs/sha256/{DIGEST}"
    assert headers["Range"] == "bytes=6-"
    assert headers["If-Range"] == f'"{DIGEST}"'
    assert headers["Accept-Encoding"] == "identity"
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")) == b"cam-1:s3cret"


def test_first_request_asks_for_no_range_and_without_a_login_sends_none(server: Answer) -> None:
    server.body = b"hello world"
    assert read(HttpSource(server.url)) == (0, b"hello world")
    assert {"Range", "If-Range", "Authorization"}.isdisjoint(server.seen[0][1])


def test_whole_answer_to_a_range_begins_at_zero(server: Answer) -> None:
    server.body = b"hello world"
    assert read(HttpSource(server.url), offset=6) == (0, b"hello world")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 414])
def test_refusals_are_permanent(server: Answer, status: int) -> None:
    server.status = status
    with pytest.raises(PermanentTransferError) as raised:
        read(HttpSource(server.url))
    assert str(status) in raised.value.message


@pytest.mark.parametrize("status", [408, 416, 429, 500, 502, 503])
def test_passing_troubles_are_worth_another_try(server: Answer, status: int) -> None:
    server.status = status
    with pytest.raises(TransferError) as raised:
        read(HttpSource(server.url))
    assert not isinstance(raised.value, PermanentTransferError)


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        ("120", 120.0), ("0", 0.0), (" 7 ", 7.0), ("999999999999", 3600.0), ("-5", 0.0), ("soon", 0.0), ("", 0.0), ("٣", 0.0),
        ("Wed, 25 Nov 2026 12:01:30 GMT", 90.0), ("Wed, 25 Nov 2026 11:00:00 GMT", 0.0), ("Wed, 25 Nov 2099 12:00:00 GMT", 3600.0),
        ("Wed, 99 Nov 2026 12:00:00 GMT", 0.0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("status", [429, 503])
def test_a_pause_that_the_server_asks_for_is_told_by_its_own_clock(
    server: Answer, status: int, header: str, wait_s: float
) -> None:
    server.status, server.headers = status, {"Retry-After": header.encode().decode("latin-1")}
    server.date = "Wed, 25 Nov 2026 12:00:00 GMT"
    with pytest.raises(TransferError) as raised:
        read(HttpSource(server.url))
    assert raised.value.retry_after_s == wait_s


def test_redirect_is_not_followed(server: Answer) -> None:
    server.status, server.headers = 302, {"Location": "http://127.0.0.1:1/elsewhere"}
    with pytest.raises(TransferError):
        read(HttpSource(server.url))
    assert len(server.seen) == 1


def test_metadata_cut_before_its_end_is_a_transfer_error_and_not_short(server: Answer) -> None:
    server.body, server.headers = b'{"signed":', {"Content-Length": "500"}
    with pytest.raises(TransferError):
        list(HttpSource(server.url).metadata("timestamp.json"))


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://[::bad", "http://"])
def test_address_that_leads_nowhere_is_a_link_that_is_down(address: str) -> None:
    with pytest.raises(LinkDownError) as raised:
        list(HttpSource(address).metadata("timestamp.json"))
    assert "\n" not in raised.value.message


def test_password_is_in_no_message(server: Answer) -> None:
    server.status = 401
    with pytest.raises(PermanentTransferError) as raised:
        read(HttpSource(server.url, "cam-1", "s3cret"))
    assert "s3cret" not in raised.value.message + raised.value.hint
