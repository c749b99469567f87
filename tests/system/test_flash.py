"""Flashing over ssh and into a running agent, and what the fleet hears of it afterwards.

There is no ssh server here: `--ssh` is a stand-in that runs the same line in a shell of this machine, with the same
standard input. What ssh itself does is not tried.
"""

import json
import re
import subprocess
import sys

import pytest

from edgeml.twin import Outcome
from fleet.config import FleetHome
from fleet.founding import found

from .test_processes import House, house, wait_for

__all__ = ["House", "house"]
pytestmark = pytest.mark.processes


@pytest.fixture
def ssh(tmp_path):
    """A command that does what ssh does, on this machine; logins to `nobody` fail."""
    path = tmp_path / "ssh"
    path.write_text(
        '#!/bin/sh\n[ "$1" = nobody ] && { echo "Permission denied" >&2; exit 255; }\nshift\nexec /bin/sh -c "$*"\n'
    )
    path.chmod(0o755)
    return path


def flash(house, bundle, to, *options, fleet=None):
    return subprocess.run(
        [sys.executable, "-m", "edgeml", "flash", bundle, "--to", to, "--fleet", fleet or house.home.directory, *options],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def alone(house, listen):
    path = house.settings.parent / "alone.toml"
    kept = re.findall(r"^(?:device|tenant|profile|storage) = .*$", house.settings.read_text(), re.MULTILINE)
    path.write_text("\n".join(kept) + f'\n[serve]\nlisten = "{listen}"\n')
    return path


def outcomes(house, settings):
    found_ = json.loads(house.edgeml("agent", "status", "-c", settings, "--json"))["models"]
    return {one["model"]: (one["slots"].get("current", {}).get("release"), one["outcome"]) for one in found_}


def test_over_ssh_two_releases_reach_an_agent_that_runs(house, ssh, tmp_path):
    storage = house.settings.parent / "state"
    for model in ("digits", "kws"):
        done = flash(house, house.publish("1.0.0", model=model), f"pi@cam:{storage}", "--ssh", str(ssh))
        assert done.returncode == 0, done.stderr
    assert f"pi@cam:{storage}/inbox/" in done.stdout
    settings = alone(house, f"127.0.0.1:{house.port}")
    agent = house.agent(settings)
    wanted = {"digits": ("digits@1.0.0", "committed"), "kws": ("kws@1.0.0", "committed")}
    wait_for(lambda: outcomes(house, settings) == wanted, "both to be committed")
    assert agent.stop() == 0
    # Everything that came is the owner's alone.
    files = [path for path in storage.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o077 for path in files if "inbox" in path.parts} <= {0}


def test_an_empty_storage_is_given_the_trust_anchor_and_another_fleets_is_left_alone(house, ssh, tmp_path):
    bundle = house.publish("1.0.0")
    empty = tmp_path / "with spaces 'and quotes"
    done = flash(house, bundle, f"cam:{empty}", "--ssh", str(ssh))
    assert done.returncode == 0, done.stderr
    assert "was given this fleet's" in done.stdout
    assert (empty / "trust" / "root.json").stat().st_mode & 0o777 == 0o600
    other = FleetHome(tmp_path / "other")
    found(other)
    (empty / "trust" / "root.json").write_bytes((other.repository / "metadata" / "1.root.json").read_bytes())
    done = flash(house, bundle, f"cam:{empty}", "--ssh", str(ssh))
    assert done.returncode == 3
    assert "trusts another fleet" in done.stderr


@pytest.mark.parametrize(
    ("to", "code", "words"),
    [
        ("nobody:/x", 4, "cannot log in to nobody: Permission denied"),
        ("cam:/proc/1/nope", 5, "cam could not store it"),
        ("unix:///nonexistent.sock", 4, "no agent takes anything on /nonexistent.sock"),
    ],
)
def test_what_goes_wrong_is_one_line_with_a_hint(house, ssh, to, code, words):
    done = flash(house, house.publish("1.0.0"), to, "--ssh", str(ssh))
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert "hint" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_archive_that_breaks_off_leaves_nothing_that_would_be_tried(house, ssh, tmp_path):
    storage = tmp_path / "card"
    cut = tmp_path / "cut"
    cut.write_text(f'#!/bin/sh\ncase "$2" in *tar*) head -c 3000 | {ssh} "$@";; *) exec {ssh} "$@";; esac\n')
    cut.chmod(0o755)
    done = flash(house, house.publish("1.0.0"), f"cam:{storage}", "--ssh", str(cut))
    assert done.returncode == 5, done.stderr
    assert list(storage.rglob("desired.json")) == []


def test_a_running_agent_takes_it_over_its_unix_socket_and_refuses_what_is_not_signed(house, tmp_path):
    socket = tmp_path / "agent.sock"
    settings = alone(house, f"unix:{socket}")
    agent = house.agent(settings)
    wait_for(socket.exists, "the socket")
    storage = house.settings.parent / "state"
    (storage / "trust").mkdir(parents=True, exist_ok=True)
    (storage / "trust" / "root.json").write_bytes((house.settings.parent / "root.json").read_bytes())
    bundle = house.publish("1.0.0")
    done = flash(house, bundle, f"unix://{socket}", "--json")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: outcomes(house, settings) == {"sample": ("sample@1.0.0", "committed")}, "the commit")
    other = FleetHome(tmp_path / "other")
    found(other)
    done = flash(house, bundle, f"unix://{socket}", fleet=other.directory)
    assert done.returncode == 3
    assert "trusts another fleet" in done.stderr
    assert agent.stop() == 0


def test_the_fleet_hears_what_came_of_it_when_it_sees_the_device(house):
    """The device is offline, is flashed, and comes back."""
    bundle = house.publish("1.0.0")
    agent = house.agent()
    flash(house, bundle, str(house.settings.parent / "state"))
    wait_for(
        lambda: outcomes(house, house.settings) == {"sample": ("sample@1.0.0", "committed")}, "the commit"
    )
    house.serve()

    def said():
        return [(one.release, one.outcome) for one in house.device().models]

    wait_for(lambda: said() == [("sample@1.0.0", Outcome.COMMITTED)], "the fleet to know")
    assert agent.stop() == 0
