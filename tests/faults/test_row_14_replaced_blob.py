"""Row 14: the blob on the server is another one when the download goes on."""

import random

import pytest

from edgeml.twin import Outcome

from .invariants import check

OTHER = random.Random(14)


def cut(asked, reply):
    if asked.folder == "blobs" and len(reply.body) > 200_000:
        reply.cut_bytes = 200_000


@pytest.fixture
def replaced(large):
    """Habits of a server whose blob has been replaced: one that hears If-Range, and one that does not."""
    other = OTHER.randbytes(len(large))

    def honest(asked, reply):
        if reply.status == 206:
            reply.status, reply.body = 200, other
            reply.headers = {"ETag": '"another"'}

    def deaf(asked, reply):
        if reply.status == 206:
            reply.body = other[reply.start :]

    return [honest, deaf]


def test_what_is_another_blob_now_is_refused_and_what_was_verified_before_is_kept(
    unit, mirror, signer, large, replaced
):
    wanted = signer.release(large, 2)
    unit.suffer(mirror, wanted, [cut, *replaced, cut, *replaced])
    assert {one.condition for one in mirror.asked if one.range} == {f'"{wanted.digest}"'}
    mirror.sent.clear()
    assert unit.settle().outcome is Outcome.COMMITTED
    assert mirror.sent_bytes < len(large) - 300_000
    check(unit.storage)


def test_a_blob_that_stays_another_one_is_given_up(unit, mirror, signer, large, replaced):
    wanted = signer.release(large, 2)
    mirror.habit = cut
    unit.want(wanted)
    unit.step()
    mirror.habit = replaced[0]
    entry = unit.settle()
    assert entry.outcome is Outcome.FAILED
    assert "not the signed one" in entry.reason
    assert len(mirror.times(wanted.digest)) <= 1 + wanted.policy.attempts_max
    assert unit.serves() == "sample@1.0.0"
    check(unit.storage)
