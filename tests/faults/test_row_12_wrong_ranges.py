"""Row 12: truncated answers, wrong ranges, and whole files to whoever asked for a part."""

from edgeml.ids import digest_of
from edgeml.twin import Outcome

from .invariants import check


def on(name, change):
    def habit(asked, reply):
        if asked.name == name:
            change(reply)

    return habit


def cut(reply):
    reply.cut_bytes = 200_000


def shorter(reply):
    """A proxy that keeps only a part, and says so in the length."""
    reply.body = reply.body[: len(reply.body) // 2]


def elsewhere(reply):
    """Bytes from another place, honestly labelled."""
    reply.headers["Content-Range"] = f"bytes 7-{len(reply.body) + 6}/{reply.start + len(reply.body)}"


def lies(reply):
    """Bytes from another place, labelled as asked for."""
    reply.body = reply.body[1:] + b"?"


def without(reply):
    reply.headers["Content-Range"] = None


def senseless(reply):
    reply.headers["Content-Range"] = "bytes */*"


def unsatisfiable(reply):
    reply.status, reply.body = 416, b""


def whole(data):
    def change(reply):
        reply.status, reply.body = 200, data
        reply.headers.pop("Content-Range", None)

    return change


def test_every_wrong_range_is_seen_and_costs_at_most_what_it_brought(unit, mirror, signer, large):
    wanted = signer.release(large, 2)
    name = digest_of(large)
    mirror.sent.clear()
    changes = [cut, elsewhere, without, senseless, unsatisfiable, shorter, lies]
    unit.suffer(mirror, wanted, [on(name, change) for change in changes])
    [first, *others] = [one for one in mirror.asked if one.name == name]
    assert first.range is None
    assert all(int(one.range.removeprefix("bytes=")[:-1]) >= 196_608 for one in others), "the rest only"
    mirror.sent.clear()
    entry = unit.settle()
    assert entry.outcome is Outcome.COMMITTED
    assert mirror.sent_bytes < len(large) - 400_000, "what was verified before was not asked for again"
    check(unit.storage)


def test_a_whole_file_in_answer_to_a_range_is_used_from_where_it_is_needed(unit, mirror, signer, large):
    wanted = signer.release(large, 2)
    unit.suffer(mirror, wanted, [on(wanted.digest, cut)])
    mirror.habit = on(wanted.digest, whole(large))
    mirror.sent.clear()
    assert unit.settle().outcome is Outcome.COMMITTED
    assert mirror.sent[wanted.digest] == len(large)
    check(unit.storage)


def test_truncated_metadata_and_chunk_lists_are_asked_for_again(unit, mirror, signer, versions):
    wanted = signer.release(versions[2], 2)
    custom = signer.targets.targets[wanted.target].unrecognized_fields["custom"]
    names = [signer.at(role) for role in ("timestamp", "snapshot", "targets")] + [custom["chunks_sha256"]]
    unit.suffer(mirror, wanted, [on(name, shorter) for name in names])
    assert unit.settle().outcome is Outcome.COMMITTED
    check(unit.storage)
