"""Row 13: a bit flips, in anything that is fetched and in anything that lies on the disk."""

import random
import shutil

import pytest

from edgeml.delta import make
from edgeml.errors import TrustError
from edgeml.trust import TrustStore
from edgeml.twin import Outcome

from .invariants import check
from .signer import CHUNK_BYTES

FLIPS = 60


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def flip(name, at=None):
    def habit(asked, reply):
        if asked.name == name:
            reply.body = flipped(reply.body, 8 * (len(reply.body) // 2 if at is None else at - reply.start))

    return habit


def test_a_flip_in_anything_fetched_is_refused_and_it_is_fetched_again(unit, mirror, signer, large):
    signer.rotate("root")
    wanted = signer.release(large, 2)
    chunk_list = signer.targets.targets[wanted.target].unrecognized_fields["custom"]["chunks_sha256"]
    places = [signer.at(role) for role in ("root", "timestamp", "snapshot", "targets")]
    habits = [flip(name) for name in (*places, chunk_list)]
    habits += [flip(wanted.digest, at) for at in (0, 3 * CHUNK_BYTES + 5, len(large) - 1)]
    unit.suffer(mirror, wanted, habits)
    mirror.sent.clear()
    assert unit.settle().outcome is Outcome.COMMITTED
    assert mirror.sent_bytes <= CHUNK_BYTES, "only the last chunk was still wanting"
    check(unit.storage)


def test_a_flip_in_a_delta_costs_the_delta_and_nothing_else(unit, mirror, signer, versions, tmp_path):
    for number in (1, 2):
        (tmp_path / str(number)).write_bytes(versions[number])
    packed = make(tmp_path / "1", tmp_path / "2")
    delta = signer.delta(versions[1], packed)
    [wanted] = signer.releases([(versions[2], 2)], deltas=[delta])
    mirror.habit = flip(delta.sha256)
    entry = unit.install(wanted)
    assert entry.outcome is Outcome.COMMITTED
    assert len(mirror.times(delta.sha256)) == 1
    assert entry.fetched_bytes >= len(packed) + len(versions[2])
    check(unit.storage)


def test_a_flip_on_the_disk_after_the_fetch_is_fetched_again_and_not_for_ever(unit, mirror, signer, versions):
    wanted = signer.release(versions[2], 2)
    path = unit.table.path(wanted.digest)
    unit.want(wanted)
    for _ in range(wanted.policy.attempts_max):
        unit.step()
        path.write_bytes(flipped(versions[2], 8 * 5000))
        unit.step()
        assert unit.serves() == "sample@1.0.0"
    assert unit.settle().outcome is Outcome.FAILED
    assert len(mirror.times(wanted.digest)) == wanted.policy.attempts_max
    # What lies there now names no slot; the next deployment finds out, and fetches it anew.
    path.write_bytes(flipped(versions[2], 8 * 5000))
    assert unit.install(signer.release(versions[2], 3)).outcome is Outcome.COMMITTED
    check(unit.storage)


def test_a_flip_in_the_installed_bundle_is_never_loaded_and_the_one_before_serves(
    unit, signer, versions, make_unit
):
    wanted = signer.release(versions[2], 2)
    unit.install(wanted)
    unit.close()
    path = unit.table.path(wanted.digest)
    path.write_bytes(flipped(versions[2], 8 * 5000))
    again = make_unit()
    assert again.serves() == "sample@1.0.0"
    again.settle()
    check(again.storage)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "root"])
def test_any_flip_in_metadata_changes_nothing_that_is_believed(unit, signer, versions, tmp_path, role):
    signer.rotate("root")
    wanted = signer.release(versions[2], 2)
    name, good = signer.at(role), signer.files[signer.at(role)]
    chance = random.Random(role)
    refused = 0
    for number, bit in enumerate(chance.sample(range(8 * len(good)), FLIPS)):
        trust = tmp_path / str(number)
        shutil.copytree(unit.storage / "trust", trust)
        signer.files[name] = flipped(good, bit)
        try:
            store = TrustStore(trust, signer, now_ms=unit.clock.now_ms())
            # A letter of a signature in upper case is the same signature.
            assert store.target(wanted.target).digest == wanted.digest
        except TrustError:
            refused += 1
    assert refused > FLIPS * 0.8
    signer.files[name] = good
    assert TrustStore(unit.storage / "trust", signer, now_ms=unit.clock.now_ms()).target(wanted.target)
    check(unit.storage)
