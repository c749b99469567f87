"""Row 10: a server that sends a byte now and then, to hold a device for ever.

The child's own code, run in this process so that its window of a minute can be a third of a second.
"""

import time

import pytest

from agent.fetch import Job, deliver
from agent.route import Route
from edgeml import source
from edgeml.errors import StalledError, TransferError

from .invariants import check

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def fetch(unit, mirror, monkeypatch):
    monkeypatch.setattr(source, "RATE_WINDOW_S", 0.3)

    def run(wanted):
        job = Job(
            target=wanted.target, trust_directory=str(unit.storage / "trust"), store_directory=str(unit.table.store),
            repository=Route(url=mirror.url), now_ms=unit.clock.now_ms(), storage_bytes=1 << 30,
        )  # fmt: skip
        return deliver(job)

    return run


@pytest.mark.parametrize("what", ["timestamp.json", "chunk list", "bundle"])
@pytest.mark.parametrize(
    "raw",
    [HEAD, b"H" * 5000, HEAD.replace(b"\r\n\r\n", b"\r\nX: " + b"x" * 5000), HEAD + b"{" * 9000, CHUNKED + b"0" * 5000],
    ids=["head", "status line", "header", "body", "length of a chunk"],
)  # fmt: skip
def test_a_trickle_is_hung_up_wherever_it_is_and_the_next_attempt_goes_on(
    unit, mirror, signer, versions, fetch, what, raw
):
    wanted = signer.release(versions[2], 2)
    custom = signer.targets.targets[wanted.target].unrecognized_fields["custom"]
    name = {"chunk list": custom["chunks_sha256"], "bundle": wanted.digest}.get(what, what)

    def habit(asked, reply):
        if asked.name == name:
            # What is not about the trickle comes at once, byte by byte what is.
            reply.raw, reply.pause_s = raw, 0.05

    mirror.habit = habit
    began_s = time.monotonic()
    with pytest.raises(TransferError, match="bytes in") as raised:
        fetch(wanted)
    # Without the least rate it would have taken minutes; how long exactly is not what is tested.
    assert time.monotonic() - began_s < 20
    assert what == "timestamp.json" or isinstance(raised.value, StalledError)
    mirror.habit = lambda _asked, _reply: None
    assert fetch(wanted).digest == wanted.digest
    check(unit.storage)


def test_a_server_that_is_slow_but_not_too_slow_is_waited_for(
    unit, mirror, signer, versions, fetch, monkeypatch
):
    wanted = signer.release(versions[2], 2)

    def habit(asked, reply):
        reply.piece_bytes, reply.pause_s = len(reply.body) // 10 + 1, 0.05

    mirror.habit = habit
    assert fetch(wanted).digest == wanted.digest
