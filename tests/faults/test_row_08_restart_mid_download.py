"""Row 8: the agent ends in the middle of a download, politely or not, again and again. Bytes are counted, not time."""

import signal
from pathlib import Path

import pytest

from agent.journal import peek
from edgeml.twin import Outcome

from .invariants import check

pytestmark = pytest.mark.processes

EVERY_BYTES = 250_000
IN_FLIGHT_BYTES = 128 << 10
"""Sent, and not yet written down when the agent ended."""


def fetchers(storage):
    """Children that fetch into this storage, whoever started them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes()
                inside = f"{storage}".encode() in b"".join(
                    str(one.resolve()).encode() for one in (entry / "fd").iterdir()
                )
            except OSError:
                continue
            if b"agent.fetch" in command and inside:
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_agent_that_ends_every_250_kB_still_finishes(
    make_agent, broker, mirror, signer, large, tmp_path, number
):
    """The whole bundle is one chunk: nothing of it is verified before all of it is there."""
    signer.chunk_bytes = 1 << 20
    agent = make_agent(tmp_path / "state")
    agent.join(broker, mirror)
    wanted = signer.release(large, 2)

    def slowly(asked, reply):
        # A device that reads at once: what was sent is what has come.
        reply.piece_bytes, reply.pause_s = 1024, 0.005 if asked.folder == "blobs" else 0

    mirror.habit = slowly
    broker.want(wanted)
    ends = 0
    for mark in range(EVERY_BYTES, len(large) - IN_FLIGHT_BYTES, EVERY_BYTES):
        agent.start()
        agent.wait_for(lambda mark=mark: mirror.sent.get(wanted.digest, 0) >= mark, f"{mark} bytes")
        assert agent.serves(), "while it fetches"
        agent.end(number)
        ends += 1
        agent.process = None
        assert not fetchers(tmp_path / "state"), "a child outlived its agent"
        check(tmp_path / "state", storage_bytes=len(large))
    assert ends >= 3
    agent.start()
    agent.wait_for(lambda: agent.ask("2.0.0"), "the new version")
    agent.wait_for(
        lambda: peek(tmp_path / "state/journal.db")["sample"].outcome is Outcome.COMMITTED, "the commit"
    )
    assert agent.stop() == 0
    assert "Traceback" not in agent.words()
    assert mirror.sent[wanted.digest] <= len(large) + ends * IN_FLIGHT_BYTES
    assert len(mirror.times(wanted.digest)) == ends + 1
    check(tmp_path / "state")
