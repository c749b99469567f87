"""`edgeml agent doctor`: each fault is found, with what to do, and hides no other."""

import json
import subprocess
import sys

import pytest

from agent.checkup import examine
from agent.config import load
from agent.enrolment import enrol

DAY_MS = 86_400_000


@pytest.fixture
def kit(fleet, tmp_path):
    directory = tmp_path / "kit"
    enrol(fleet.wish(directory), lambda _line: None, 0)
    return directory


def faults(kit, now_ms):
    found = {one.name: one for one in examine(kit / "agent.toml", now_ms)}
    return {name: one for name, one in found.items() if not one.good}


def test_device_in_order_has_nothing_wrong_but_its_broker_which_does_not_run(fleet, kit):
    wrong = faults(kit, fleet.clock.now_ms())
    assert set(wrong) == {"broker"}
    assert "cannot reach" in wrong["broker"].said
    assert wrong["broker"].hint


def change(kit, name):
    match name:
        case "files":
            (kit / "identity.pem").chmod(0o644)
        case "storage":
            (kit / "state").rmdir()
        case "trust anchor":
            (kit / "root.json").write_text("{}")
        case "certificate":
            (kit / "identity.pem").write_bytes(
                (kit / "identity.pem").read_bytes().split(b"-----BEGIN CERT")[0]
            )
        case "journal" | "buffer":
            (kit / "state" / {"journal": "journal.db", "buffer": "telemetry.db"}[name]).write_bytes(
                b"x" * 9000
            )
        case "blob server":
            text = (kit / "agent.toml").read_text()
            (kit / "agent.toml").write_text(text.replace("https://127.0.0.1:", "https://127.0.0.2:"))


@pytest.mark.parametrize(
    "name", ["files", "storage", "trust anchor", "certificate", "journal", "buffer", "blob server"]
)
def test_each_fault_is_named_with_a_next_step(fleet, kit, name):
    change(kit, name)
    wrong = faults(kit, fleet.clock.now_ms())
    assert name in wrong
    assert wrong[name].hint


def test_expired_certificate_and_a_clock_that_was_never_set_are_told(fleet, kit):
    late = faults(kit, fleet.clock.now_ms() + 91 * DAY_MS)
    assert "expired 1.0 days ago" in late["certificate"].said
    assert "claim create --device cam-1" in late["certificate"].hint
    assert "timedatectl" in faults(kit, 0)["clock"].hint


def test_command_prints_json_and_fails_with_1(kit):
    done = subprocess.run(
        [sys.executable, "-m", "edgeml", "agent", "doctor", "-c", str(kit / "agent.toml"), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    found = {one["name"]: one for one in json.loads(done.stdout)}
    assert found["broker"]["good"] is False
    assert found["blob server"]["good"] is True


def test_settings_that_cannot_be_read_are_the_only_finding(tmp_path):
    (found,) = examine(tmp_path / "agent.toml", 0)
    assert found.name == "settings"
    assert found.hint


def test_looking_leaves_nothing_behind(fleet, kit):
    before = {path: path.read_bytes() for path in kit.rglob("*") if path.is_file()}
    examine(kit / "agent.toml", fleet.clock.now_ms())
    assert {path: path.read_bytes() for path in kit.rglob("*") if path.is_file()} == before
    assert load(kit / "agent.toml").device == "cam-1"
