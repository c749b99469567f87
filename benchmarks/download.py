"""What a download takes that is cut every 200 kB, next to one that is not cut and to a bare GET of the same bytes.

A server in this process, 8 MB of noise, chunks of 256 KiB, as `edgeml fleet publish` makes them. No back-offs: what is
measured is bytes on the wire, and the work of resuming.
"""

import argparse
import hashlib
import json
import random
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import urllib3

from edgeml.download import fetch
from edgeml.errors import TransferError
from edgeml.ids import digest_of
from edgeml.manifest import RuntimeFamily
from edgeml.source import HttpSource
from edgeml.trustfacts import SignedFacts, SignedTarget

SIZE_BYTES = 8 << 20
CHUNK_BYTES = 256 << 10
CUT_BYTES = 200_000


class Server(ThreadingHTTPServer):
    """Serves blobs, and may cut every answer."""

    daemon_threads = True

    def __init__(self, blobs):
        super().__init__(("127.0.0.1", 0), Handler)
        self.blobs, self.cut_bytes, self.sent_bytes = blobs, None, 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """One blob by its digest, from an offset on."""

    def log_message(self, *_args):
        """Quiet."""

    def do_GET(self):
        """Send it, or the beginning of it."""
        body = self.server.blobs[self.path.rpartition("/")[2]]
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        piece = body[start:][: self.server.cut_bytes]
        self.wfile.write(piece)
        self.server.sent_bytes += len(piece)


def measure(server, target, cut_bytes):
    server.cut_bytes, server.sent_bytes = cut_bytes, 0
    attempts, started_ns = 0, time.perf_counter_ns()
    with tempfile.TemporaryDirectory() as folder:
        while True:
            attempts += 1
            try:
                fetch(HttpSource(server.url), target, Path(folder))
                break
            except TransferError:
                continue
    return attempts, server.sent_bytes, (time.perf_counter_ns() - started_ns) / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    data = random.Random(1).randbytes(SIZE_BYTES)
    chunks = b"".join(
        hashlib.sha256(data[at : at + CHUNK_BYTES]).digest() for at in range(0, SIZE_BYTES, CHUNK_BYTES)
    )
    server = Server({digest_of(data): data, digest_of(chunks): chunks})
    facts = SignedFacts("m@1", "v", 1, ("p",), RuntimeFamily.ONNX, CHUNK_BYTES, digest_of(chunks))
    target = SignedTarget("m/1/v.edgeml", digest_of(data), SIZE_BYTES, facts)
    started_ns = time.perf_counter_ns()
    urllib3.request("GET", f"{server.url}/{digest_of(data)}")
    bare_s = (time.perf_counter_ns() - started_ns) / 1e9
    rows = [{"way": "bare GET", "attempts": 1, "bytes": SIZE_BYTES, "s": bare_s}]
    for way, cut_bytes in (("whole", None), ("cut every 200 kB", CUT_BYTES)):
        attempts, sent_bytes, taken_s = measure(server, target, cut_bytes)
        rows.append({"way": way, "attempts": attempts, "bytes": sent_bytes, "s": taken_s})
    if arguments.json:
        print(json.dumps({"rows": rows, "size_bytes": SIZE_BYTES}))
        return
    for one in rows:
        print(
            f"{one['way']:<17} {one['attempts']:3} attempts  {one['bytes'] / SIZE_BYTES:6.4f} of the size"
            f"  {one['s'] / bare_s:6.1f} x the bare time"
        )


if __name__ == "__main__":
    main()
