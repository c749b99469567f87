"""Row 36: keys were replaced, again and again, while the device was off."""

import pytest

from edgeml.twin import Outcome

from .invariants import check
from .signer import ROLES


@pytest.mark.parametrize("rotations", [1, 5, 40])
def test_the_chain_of_roots_is_walked_however_many_were_missed(unit, mirror, signer, versions, rotations):
    for number in range(rotations):
        signer.rotate(ROLES[number % len(ROLES)])
        if number % len(ROLES):
            signer.rotate("root")
    entry = unit.install(signer.release(versions[2], 2))
    assert entry.outcome is Outcome.COMMITTED, entry.reason
    walked = [one.name for one in mirror.asked if one.name.endswith(".root.json")]
    assert walked == [f"{version}.root.json" for version in range(2, signer.root.version + 2)]
    check(unit.storage)


@pytest.mark.parametrize("missing", [2, 4, 6])
def test_a_missing_link_is_said_and_the_device_goes_on_when_it_is_back(
    unit, mirror, signer, versions, missing
):
    for role in ("root", "timestamp", "root", "timestamp", "timestamp"):
        signer.rotate(role)
    assert signer.root.version == 6
    link = signer.files.pop(f"{missing}.root.json")
    wanted = signer.release(versions[2], 2)
    unit.suffer(mirror, wanted, [lambda _asked, _reply: None])
    assert "timestamp was signed by 0/1 keys" in unit.entry().reason
    signer.files[f"{missing}.root.json"] = link
    assert unit.settle().outcome is Outcome.COMMITTED
    check(unit.storage)


def test_a_link_that_is_another_ones_is_refused(unit, mirror, signer, versions):
    for role in ("root", "timestamp", "root"):
        signer.rotate(role)
    wanted = signer.release(versions[2], 2)

    def swap(asked, reply):
        if asked.name == "2.root.json":
            reply.body = signer.files["3.root.json"]

    unit.suffer(mirror, wanted, [swap])
    assert unit.settle().outcome is Outcome.COMMITTED
    check(unit.storage)
