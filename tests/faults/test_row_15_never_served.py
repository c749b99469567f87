"""Row 15: a server that says for ever that it will not give something."""

import pytest

from edgeml.twin import Outcome

from .invariants import check


def refuse(name, status):
    def habit(asked, reply):
        if asked.name == name:
            reply.status, reply.body = status, b"no"
            reply.headers = {}

    return habit


@pytest.mark.parametrize(("what", "status"), [("bundle", 404), ("chunk list", 410), ("timestamp.json", 403)])
def test_it_is_given_up_after_the_attempts_allowed_and_the_next_wish_is_heard(
    unit, mirror, signer, versions, what, status
):
    wanted = signer.release(versions[2], 2)
    custom = signer.targets.targets[wanted.target].unrecognized_fields["custom"]
    name = {"chunk list": custom["chunks_sha256"], "bundle": wanted.digest}.get(what, what)
    mirror.habit = refuse(name, status)
    entry = unit.install(wanted)
    assert entry.outcome is Outcome.FAILED
    assert str(status) in entry.reason
    assert len(mirror.times(name)) == wanted.policy.attempts_max
    assert unit.serves() == "sample@1.0.0"
    check(unit.storage)
    mirror.habit = lambda _asked, _reply: None
    assert unit.install(signer.release(versions[2], 3)).outcome is Outcome.COMMITTED
    check(unit.storage)


def test_something_else_may_be_wanted_meanwhile(unit, mirror, signer, versions):
    gone, instead = signer.releases([(versions[2], 2), (versions[3], 3)])
    mirror.habit = refuse(gone.digest, 404)
    unit.want(gone)
    unit.step()
    before_s = unit.now_s
    unit.want(instead)
    unit.step()
    assert unit.entry().desired == instead
    assert unit.now_s == before_s, "no back-off of the other is waited for"
    assert unit.settle().outcome is Outcome.COMMITTED
    assert unit.serves() == "sample@3.0.0"
    assert len(mirror.times(gone.digest)) == 1
    check(unit.storage)
