"""Row 36: keys were replaced, again and again, while the device was off."""

from pathlib import PurePosixPath

import pytest

from agent import flash
from agent.flash_agent import flash_agent
from agent.flash_ssh import Login, flash_ssh
from agent.intake import Intake
from agent.server import Server
from edgeml.errors import IncompatibleError
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


def on_a_card(bundle, unit, repository):
    """As a person with a card reader does."""
    flash.flash(bundle, unit.storage, repository, unit.clock.now_ms())


def over_ssh(bundle, unit, repository):
    """A stand-in for ssh runs the same lines in a shell of this machine."""
    ssh = repository.parent / "ssh"
    ssh.write_text('#!/bin/sh\nshift\nexec /bin/sh -c "$*"\n')
    ssh.chmod(0o755)
    flash_ssh(bundle, Login("cam", PurePosixPath(unit.storage), (str(ssh),)), repository, unit.clock.now_ms())


def into_an_agent(bundle, unit, repository):
    """The endpoint of an agent that runs, without anything else of one."""
    socket = repository.parent / "agent.sock"
    server = Server(None, f"unix:{socket}", intake=Intake(unit.storage, 1 << 20))
    server.start()
    try:
        flash_agent(bundle, socket, repository, unit.clock.now_ms())
    finally:
        server.stop()


WAYS = [on_a_card, over_ssh, into_an_agent]


def flashed(unit, signer, versions, directory, way):
    """Flash version 2 from a directory; return how that ended on the device."""
    bundle = directory / "2.edgeml"
    bundle.write_bytes(versions[2])
    way(bundle, unit, signer.write(directory / "repository"))
    (waiting,) = flash.waiting(unit.storage)
    unit.device.on_offline(waiting.desired, waiting.repository, unit.now())
    return unit.settle()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("given", [1, 2, 4])
def test_any_root_of_the_fleet_is_an_anchor_to_flash_to(unit, mirror, signer, versions, tmp_path, given, way):
    """A device that joined after a rotation was given a newer root than the first."""
    for role in ("root", "timestamp", "root"):
        signer.rotate(role)
    signer.release(versions[2], 2)
    (unit.storage / "trust/root.json").write_bytes(signer.files[f"{given}.root.json"])
    entry = flashed(unit, signer, versions, tmp_path, way)
    assert (entry.outcome, unit.serves()) == (Outcome.COMMITTED, "sample@2.0.0")
    assert mirror.asked == []
    check(unit.storage)


@pytest.mark.parametrize("way", WAYS)
def test_an_anchor_that_leads_nowhere_is_another_fleets(unit, signer, versions, tmp_path, way):
    stranger = signer.copy()
    stranger.rotate("root")
    signer.rotate("root")
    signer.rotate("timestamp")
    signer.release(versions[2], 2)
    (unit.storage / "trust/root.json").write_bytes(stranger.files["2.root.json"])
    with pytest.raises(IncompatibleError, match="trusts another fleet"):
        flashed(unit, signer, versions, tmp_path, way)
    assert not (unit.storage / "inbox").exists()
    check(unit.storage)


def test_a_fresh_device_is_given_the_newest_root_or_the_one_named(make_unit, signer, versions, tmp_path):
    signer.rotate("root")
    signer.rotate("timestamp")
    signer.release(versions[2], 2)
    bundle, repository = tmp_path / "2.edgeml", signer.write(tmp_path / "repository")
    bundle.write_bytes(versions[2])
    for number, named in enumerate((None, signer.files["2.root.json"])):
        fresh = make_unit(f"fresh-{number}")
        anchor = fresh.storage / "trust/root.json"
        anchor.unlink()
        flash.flash(bundle, fresh.storage, repository, fresh.clock.now_ms(), named)
        assert anchor.read_bytes() == (named or signer.files["3.root.json"])
        (waiting,) = flash.waiting(fresh.storage)
        fresh.device.on_offline(waiting.desired, waiting.repository, fresh.now())
        assert (fresh.settle().outcome, fresh.serves()) == (Outcome.COMMITTED, "sample@2.0.0")
