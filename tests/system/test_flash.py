"""Flashing over ssh and into a running agent, and what the fleet hears of it afterwards.

Over ssh: to a real sshd of this machine where there is one (with CI=true there has to be), and everywhere to a stand-in
that runs the same line in a shell, with the same standard input.
"""

import getpass
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgeml.port import free_port
from edgeml.twin import Outcome
from fleet.config import FleetHome
from fleet.founding import found

from .test_processes import House, house, wait_for

__all__ = ["House", "house"]
pytestmark = pytest.mark.processes


SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


@pytest.fixture(params=["stand-in", "OpenSSH"])
def ssh(request, tmp_path):
    """A command that reaches `cam`, which is this machine; logins to `nobody` fail."""
    path = tmp_path / "ssh"
    if request.param == "stand-in":
        path.write_text(
            '#!/bin/sh\n[ "$1" = nobody ] && { echo "Permission denied" >&2; exit 255; }\nshift\nexec /bin/sh -c "$*"\n'
        )
        path.chmod(0o755)
        yield path
        return
    if SSHD is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no sshd: scripts/install-servers installs it")
        pytest.skip("no sshd here (apt-get install openssh-server)")
    with served(tmp_path / "sshd") as config:
        path.write_text(f'#!/bin/sh\nexec ssh -F {config} "$@"\n')
        path.chmod(0o755)
        yield path


@contextmanager
def served(directory):
    """A real sshd that lets in the holder of one new key, and the client's settings for it."""
    directory.mkdir()
    for key in ("host", "mine"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / key], check=True, timeout=20
        )
    shutil.copy(directory / "mine.pub", directory / "authorized")
    port = free_port()
    settings = directory / "sshd_config"
    settings.write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {directory}/host\nAuthorizedKeysFile {directory}/authorized\n"
        f"PidFile {directory}/pid\nUsePAM no\nStrictModes no\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
    )
    (directory / "known").write_text(f"[127.0.0.1]:{port} {(directory / 'host.pub').read_text()}")
    both = f"HostName 127.0.0.1\nPort {port}\nUserKnownHostsFile {directory}/known\nBatchMode yes\nIdentitiesOnly yes"
    config = directory / "ssh_config"
    config.write_text(
        f"Host cam\nUser {getpass.getuser()}\nIdentityFile {directory}/mine\n"
        f"Host nobody\nUser nobody\nIdentityFile {directory}/host\nHost *\n{both}\n"
    )
    if os.geteuid() == 0:
        # Where it separates privileges; Debian makes it when the service starts, which here it does not.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    log = directory / "log"
    server = subprocess.Popen([SSHD, "-D", "-E", log, "-f", settings])
    try:
        wait_for(lambda: log.exists() and "listening" in log.read_text(), "sshd to listen")
        yield config
    finally:
        server.terminate()
        server.wait(60)


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
        done = flash(house, house.publish("1.0.0", model=model), f"cam:{storage}", "--ssh", str(ssh))
        assert done.returncode == 0, done.stderr
    assert f"cam:{storage}/inbox/" in done.stdout
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
        ("nobody:/x", 4, "cannot log in to nobody: .*Permission denied"),
        ("cam:/proc/1/nope", 5, "cam could not store it"),
        ("unix:///nonexistent.sock", 4, "no agent takes anything on /nonexistent.sock"),
    ],
)
def test_what_goes_wrong_is_one_line_with_a_hint(house, ssh, to, code, words):
    done = flash(house, house.publish("1.0.0"), to, "--ssh", str(ssh))
    assert (done.returncode, bool(re.search(words, done.stderr))) == (code, True), done.stderr
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
