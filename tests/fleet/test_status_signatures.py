"""`edgeml fleet status` says when signatures have expired: the fleet's own, and as devices have them."""

import msgspec

from edgeml.clock import SystemClock
from edgeml.twin import Birth
from fleet import devices

from .test_cli import Shell, shell

__all__ = ["Shell", "shell"]
DAY_MS = 86_400_000


def test_frozen_devices_are_named(shell, tmp_path):
    for name in ("cam-1", "cam-2"):
        shell.run("device", "add", name, "--profile", "generic-x86-64", "--out", tmp_path / name)
    assert "frozen" not in shell.run("status").stdout
    store = shell.store()
    with store.write() as connection:
        before = devices.load_many(connection, ["cam-2"])
        birth = Birth(device="cam-2", session="s", profile="p", agent_version="1", frozen_since_ms=1_000)
        after = {name: msgspec.structs.replace(one, birth=birth) for name, one in before.items()}
        devices.save(connection, before, after)
    store.close()
    assert "1 device frozen: cam-2 (" in shell.run("status").stdout
    assert [one["frozen_since_ms"] for one in shell.json("status")["devices"]] == [None, 1_000]


def test_a_fleet_that_has_stopped_signing_says_so(shell, monkeypatch):
    signed_until_ms = shell.json("status")["signed_until_ms"]
    assert 6.9 < (signed_until_ms - SystemClock().now_ms()) / DAY_MS <= 7.0
    assert "expired" not in shell.run("status").stdout
    monkeypatch.setattr(SystemClock, "now_ms", lambda _self: signed_until_ms + 3 * DAY_MS)
    assert "the fleet's signatures expired 3 d ago: no device installs anything" in shell.run("status").stdout
