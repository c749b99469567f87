"""A real HTTP server in front of a signed repository: honest, until it is given a habit."""

import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE_BYTES = 4096


@dataclass
class Reply:
    """What an honest server would send; a habit changes it."""

    status: int
    body: bytes
    headers: dict = field(default_factory=dict)
    start: int = 0
    cut_bytes: int | None = None
    """The connection is closed after so many bytes of the body."""
    endless: bool = False
    """The body is repeated until the client hangs up."""
    pause_s: float = 0.0
    piece_bytes: int = PIECE_BYTES
    raw: bytes | None = None
    """Sent instead of a head and a body, one byte at a time with a pause after each."""


@dataclass(frozen=True)
class Asked:
    folder: str
    name: str
    range: str | None
    condition: str | None
    at_s: float
    login: str | None = None


class Mirror(ThreadingHTTPServer):
    """Serves what a signer has. `habit(asked, reply)` may change every reply."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, repository, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.repository = repository
        self.asked = []
        self.sent = {}
        self.habit = lambda _asked, _reply: None
        self.closed = threading.Event()
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def anchor(self):
        """The root metadata that a device is given."""
        return self.repository.anchor

    @property
    def sent_bytes(self):
        """Bytes of bodies, of blobs only."""
        return sum(self.sent.values())

    def times(self, name):
        """When a file was asked for."""
        return [one.at_s for one in self.asked if one.name == name]

    def handle_error(self, request, client_address):
        """The client hangs up on purpose; that is no news."""

    def close(self):
        self.closed.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_args):
        """Quiet."""

    def do_GET(self):
        mirror = self.server
        parts = self.path.strip("/").split("/")
        asked = Asked(
            parts[0], parts[-1], self.headers.get("Range"), self.headers.get("If-Range"), time.monotonic(),
            self.headers.get("Authorization"),
        )  # fmt: skip
        mirror.asked.append(asked)
        reply = honest(mirror.repository.content(asked.folder, asked.name), asked)
        mirror.habit(asked, reply)
        if reply.raw is not None:
            self.trickle(reply)
            return
        self.send_response(reply.status)
        for name, value in ({"Content-Length": str(len(reply.body))} | reply.headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.send_body(asked, reply)

    def send_body(self, asked, reply):
        mirror, position = self.server, 0
        while not mirror.closed.is_set() and (reply.endless or position < len(reply.body)):
            begins = position % len(reply.body)
            piece = reply.body[begins : begins + reply.piece_bytes]
            if reply.cut_bytes is not None:
                piece = piece[: max(0, reply.cut_bytes - position)]
            if not piece:
                return
            self.wfile.write(piece)
            position += len(piece)
            if asked.folder == "blobs":
                mirror.sent[asked.name] = mirror.sent.get(asked.name, 0) + len(piece)
            if reply.pause_s:
                mirror.closed.wait(reply.pause_s)

    def trickle(self, reply):
        for at in range(len(reply.raw)):
            self.wfile.write(reply.raw[at : at + 1])
            if self.server.closed.wait(reply.pause_s):
                return


def honest(content, asked):
    """What RFC 9110 asks for."""
    if content is None:
        return Reply(404, b"there is none")
    start = 0
    if asked.range and asked.condition in (None, f'"{asked.name}"'):
        start = int(asked.range.removeprefix("bytes=").removesuffix("-"))
    if not start:
        return Reply(200, content, {"ETag": f'"{asked.name}"'})
    if start >= len(content):
        return Reply(416, b"", {"Content-Range": f"bytes */{len(content)}"}, start)
    shown = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return Reply(206, content[start:], {"ETag": f'"{asked.name}"', "Content-Range": shown}, start)
