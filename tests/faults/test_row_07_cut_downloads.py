"""Row 7: the network is cut in the middle of a download, n times, anywhere. Bytes are counted, not time."""

import random

import msgspec

from edgeml.twin import Outcome, Policy

from .invariants import check
from .signer import CHUNK_BYTES


def blob_cuts(sizes):
    """Cut every answer that gives a blob after the next of these sizes."""
    left = iter(sizes)

    def habit(asked, reply):
        if asked.folder == "blobs" and reply.status < 300:
            reply.cut_bytes = next(left, None)

    return habit


def test_a_download_cut_every_200_kB_costs_a_twentieth_more_at_most_and_is_not_given_up(
    unit, mirror, signer, large
):
    """Four cuts, and the deployment allows three attempts: those are for attempts that bring nothing."""
    mirror.habit = blob_cuts([200_000] * 100)
    mirror.sent.clear()
    entry = unit.install(signer.release(large, 2))
    assert entry.outcome is Outcome.COMMITTED, entry.reason
    assert unit.serves() == "sample@2.0.0"
    assert len(unit.waits) > 4
    assert mirror.sent_bytes <= 1.05 * len(large)
    assert entry.fetched_bytes <= mirror.sent_bytes
    assert entry.fetched_bytes >= len(large), "what the cut attempts brought counts, too"
    check(unit.storage)


def test_cuts_anywhere_cost_no_more_than_a_chunk_each(unit, mirror, signer, large):
    chance = random.Random(7)
    cuts = [chance.randrange(20_000, 300_000) for _ in range(5)]
    mirror.habit = blob_cuts(cuts)
    mirror.sent.clear()
    entry = unit.install(signer.release(large, 2))
    assert entry.outcome is Outcome.COMMITTED, entry.reason
    chunk_list = 32 * -(-len(large) // CHUNK_BYTES)
    assert mirror.sent_bytes <= len(large) + chunk_list + len(cuts) * CHUNK_BYTES
    check(unit.storage)


def test_a_cut_of_the_chunk_list_and_of_every_metadata_file_is_another_attempt_and_no_refusal(
    unit, mirror, signer, large
):
    wanted = msgspec.structs.replace(signer.release(large, 2), policy=Policy(attempts_max=5))
    wanted_files = [signer.at(role) for role in ("timestamp", "snapshot", "targets")]
    chunk_list = signer.targets.targets[wanted.target].unrecognized_fields["custom"]["chunks_sha256"]
    for name in (*wanted_files, chunk_list):
        cut = []

        def once(asked, reply, name=name, cut=cut):
            if asked.name == name and not cut:
                cut.append(name)
                reply.cut_bytes = len(reply.body) // 2

        mirror.habit = once
        unit.want(wanted)
        while not cut:
            unit.step()
        assert unit.entry().outcome is None
        assert unit.serves() == "sample@1.0.0"
    mirror.habit = blob_cuts([])
    assert unit.settle().outcome is Outcome.COMMITTED
    check(unit.storage)
