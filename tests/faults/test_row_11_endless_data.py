"""Row 11: a server that never stops sending."""

from edgeml.source import READ_BYTES
from edgeml.twin import Outcome

from .invariants import check
from .signer import CHUNK_BYTES

SENT_MAX_BYTES = 32 << 20
"""What sockets hold between a server that sends and a device that has hung up, generously."""


def endless(name, body=None):
    def habit(asked, reply):
        if asked.name == name:
            reply.endless = True
            reply.status = 200
            reply.body = (body or reply.body) * 20
            reply.headers["Content-Length"] = None

    return habit


def test_a_bundle_and_a_chunk_list_without_an_end_are_read_up_to_their_signed_length(
    unit, mirror, signer, large
):
    wanted = signer.release(large, 2)
    chunk_list = signer.targets.targets[wanted.target].unrecognized_fields["custom"]["chunks_sha256"]
    [list_result, noise_result] = unit.suffer(
        mirror, wanted, [endless(chunk_list), endless(wanted.digest, b"noise" * 1000)]
    )
    assert list_result.fetched_bytes <= 32 * -(-len(large) // CHUNK_BYTES) + READ_BYTES
    assert noise_result.fetched_bytes <= CHUNK_BYTES + 2 * READ_BYTES
    # What is signed, and then more: nobody reads on.
    mirror.habit = endless(wanted.digest)
    before = unit.entry().fetched_bytes
    entry = unit.settle()
    assert entry.outcome is Outcome.COMMITTED
    assert entry.fetched_bytes - before <= len(large) + READ_BYTES
    assert mirror.sent_bytes < 3 * SENT_MAX_BYTES, "the device hung up"
    check(unit.storage, storage_bytes=len(large))


def test_metadata_without_an_end_are_read_up_to_a_limit_and_asked_for_again(unit, mirror, signer, versions):
    signer.rotate("root")
    wanted = signer.release(versions[2], 2)
    names = [signer.at(role) for role in ("root", "timestamp", "snapshot", "targets")]
    # Blanks are legal at the end of JSON: only the limit of the length stops them.
    unit.suffer(mirror, wanted, [endless(name, b" " * 5000) for name in names])
    assert unit.settle().outcome is Outcome.COMMITTED
    assert not [path for path in (unit.storage / "trust").rglob("*") if path.stat().st_size > 1 << 16]
    check(unit.storage, storage_bytes=1 << 16)
