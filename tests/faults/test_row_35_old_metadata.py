"""Row 35: the attacks that The Update Framework names, by servers and thieves, against a device's own path.

Endless data and slow retrieval are rows 11 and 10. Extraneous dependencies do not exist: a bundle needs nothing else.
Each attack is really signed, by as many keys as the attacker is said to have.
"""

import datetime as dt
import re

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile

from edgeml.ids import ReleaseId
from edgeml.twin import Outcome, Policy

from .invariants import check
from .signer import Signer

DAY_MS = 86_400_000
HUGE = 2**31


def another_fleet(signer, bundle):
    """Arbitrary installation: everything is well signed, by keys that are the attacker's."""
    other = Signer()
    wanted = other.release(bundle, 2)
    signer.files, signer.blobs = other.files, other.blobs
    return wanted


def targets_by_another_key(signer, bundle):
    """Arbitrary installation by who has the online keys and no targets key."""
    signer.signers["targets"] = CryptoSigner.generate_ed25519()
    return signer.release(bundle, 2)


def another_bundle_under_the_digest(signer, bundle):
    """A malicious mirror: honest metadata, a blob of the attacker's."""
    wanted = signer.release(bundle, 2)
    signer.blobs[wanted.digest] = bundle[:-100] + bytes(100)
    return wanted


def old_timestamp(signer, bundle):
    """Rollback of the timestamp by a mirror: what it gave last month."""
    signer.files = signer.past
    return signer.wanted


def old_snapshot(signer, bundle):
    """Rollback of the snapshot by who has the timestamp key."""
    signer.timestamp.snapshot_meta = MetaFile(signer.snapshot.version - 1)
    signer.publish_timestamp()
    return signer.wanted


def old_targets(signer, bundle):
    """Rollback of the targets by who has the timestamp and snapshot keys."""
    signer.snapshot.meta["targets.json"] = MetaFile(signer.targets.version - 1)
    signer.publish_snapshot()
    return signer.wanted


def mixed(signer, bundle):
    """Mix-and-match: targets of last month under a snapshot of today."""
    old = signer.files[signer.at("targets")]
    wanted = signer.release(bundle, 2)
    signer.files[signer.at("targets")] = old
    return wanted


def one_signature_of_two(signer, bundle):
    """Key compromise below the threshold: two keys must sign the targets, the thief has one."""
    signer.root.add_key(CryptoSigner.generate_ed25519().public_key, "targets")
    signer.root.roles["targets"].threshold = 2
    signer.root.version += 1
    signer.publish_root([signer.signers["root"]])
    return signer.release(bundle, 2)


def one_signature_twice(signer, bundle):
    """The same, and the thief signs twice with the key that it has."""
    wanted = one_signature_of_two(signer, bundle)
    name, signers = signer.at("targets"), [signer.signers["targets"]] * 2
    signer.files[name] = signer.resigned(name, signers)
    return wanted


def root_without_the_old_keys(signer, bundle):
    """A new root that only its own new keys have signed."""
    signer.rotate("root")
    name = signer.at("root")
    signer.files[name] = signer.resigned(name, [signer.signers["root"]])
    return signer.release(bundle, 2)


def revoked_timestamp(signer, bundle):
    """A thief goes on with the timestamp key that has been replaced."""
    stolen = signer.signers["timestamp"]
    signer.rotate("timestamp")
    signer.signers["timestamp"] = stolen
    return signer.release(bundle, 2)


ATTACKS = [
    another_fleet, targets_by_another_key, another_bundle_under_the_digest, old_timestamp, old_snapshot, old_targets, mixed,
    one_signature_of_two, one_signature_twice, root_without_the_old_keys, revoked_timestamp,
]  # fmt: skip


@pytest.fixture
def seasoned(unit, signer, versions):
    """A device that has seen newer metadata than the oldest; the fleet remembers what it gave before."""
    signer.past = signer.frozen()
    signer.wanted = signer.release(versions[2], 2)
    signer.publish()
    # It refreshes, and is told not to install: version 3 is for other hardware.
    other = signer.release(versions[3], 3, profiles=("another-device",))
    entry = unit.install(other)
    assert entry.outcome is Outcome.REJECTED
    assert "is for another-device" in entry.reason
    return unit


def refused(unit, wanted, because="signed metadata is refused|is not the signed one"):
    slots, counter = (unit.storage / "slots.json").read_bytes(), unit.entry().release_counter
    generation = unit.entry().generation + 1
    entry = unit.install(
        msgspec.structs.replace(wanted, generation=generation, policy=Policy(attempts_max=1))
    )
    assert entry.outcome in {Outcome.FAILED, Outcome.REJECTED}
    assert re.search(because, entry.reason), entry.reason
    assert (unit.storage / "slots.json").read_bytes() == slots
    assert entry.release_counter == counter
    assert unit.serves() == "sample@1.0.0"
    check(unit.storage)
    return entry


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda one: one.__name__)
def test_an_attack_is_refused_and_changes_nothing(seasoned, signer, versions, attack):
    refused(seasoned, attack(signer, versions[2]))


def test_the_honest_fleet_is_believed_again_after_each(seasoned, mirror, signer, versions):
    for attack in (old_timestamp, old_snapshot, mixed, another_fleet):
        mirror.repository = signer.copy()
        refused(seasoned, attack(mirror.repository, versions[2]))
    mirror.repository = signer
    assert seasoned.install(signer.release(versions[2], 40)).outcome is Outcome.COMMITTED
    check(seasoned.storage)


def test_frozen_metadata_are_refused_when_their_time_is_over_and_the_model_serves_on(seasoned, signer):
    seasoned.clock.shift_ms = 8 * DAY_MS
    refused(seasoned, signer.wanted, "expired")


@pytest.mark.parametrize("role", ["timestamp", "snapshot"])
def test_a_fast_forward_is_healed_by_new_keys(seasoned, signer, versions, role):
    """A thief of the online keys signs the highest version there is, so that no honest one is ever newer."""
    honest = signer.copy()
    for one in ("timestamp", "snapshot") if role == "snapshot" else ("timestamp",):
        getattr(signer, one).version = HUGE
    if role == "snapshot":
        signer.publish_snapshot()
    else:
        signer.publish_timestamp()
    # It installs nothing, but now the device has seen it.
    refused(seasoned, msgspec.structs.replace(signer.wanted, target="none"), "no signed release none")
    signer.files = honest.files
    refused(seasoned, signer.wanted)
    for one in ("timestamp", "snapshot"):
        honest.rotate(one)
    wanted = honest.release(versions[2], 50)
    signer.files = honest.files
    assert seasoned.install(wanted).outcome is Outcome.COMMITTED
    check(seasoned.storage)


def test_wrong_software_is_rejected(seasoned, signer, versions):
    """Well signed, but not for this device, not what was asked for, or older than what it has."""
    tales = [
        msgspec.structs.replace(signer.wanted, release=ReleaseId("sample@9.9.9")),
        msgspec.structs.replace(signer.wanted, digest="0" * 64),
        signer.release(versions[2], 3, profiles=("npu-only",)),
    ]
    for wanted in tales:
        refused(seasoned, wanted, "signed as something else|is for npu-only")
        assert seasoned.entry().outcome is Outcome.REJECTED, "not tried again"


def test_an_older_release_is_no_way_back(unit, signer, versions):
    old = signer.release(versions[2], 2)
    assert unit.install(signer.release(versions[3], 5)).outcome is Outcome.COMMITTED
    entry = unit.install(msgspec.structs.replace(old, generation=9))
    assert entry.outcome is Outcome.REJECTED
    assert "release counter 2" in entry.reason
    assert unit.serves() == "sample@3.0.0"
    check(unit.storage)


def test_what_was_signed_says_when_it_ends():
    """The simulator's own terms, on which the freeze above rests."""
    signer = Signer()
    ends = signer.timestamp.expires - dt.datetime.fromtimestamp(signer.now_ms / 1000, dt.UTC)
    assert dt.timedelta(days=6) < ends <= dt.timedelta(days=7)
