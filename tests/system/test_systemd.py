"""The agent under a supervisor that speaks as systemd does, and the unit that is shipped."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "deploy" / "edgeml-agent.service"


@pytest.mark.processes
def test_systemd_hears_of_an_agents_life_and_of_its_hanging(tmp_path):
    (tmp_path / "agent.toml").write_text('device = "cam-1"\nprofile = "generic-x86-64"\nstorage = "state"\n')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        agent = subprocess.Popen(
            [sys.executable, "-m", "edgeml", "agent", "run", "-c", str(tmp_path / "agent.toml")],
            env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert systemd.recv(100) == b"READY=1"
            assert [systemd.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            agent.send_signal(signal.SIGSTOP)
            systemd.settimeout(1.0)
            with contextlib.suppress(TimeoutError):
                systemd.recv(100)  # one may have been on its way
            with pytest.raises(TimeoutError):
                systemd.recv(100)
            agent.send_signal(signal.SIGCONT)
            agent.terminate()
            said, until_s = b"", time.monotonic() + 5
            while said != b"STOPPING=1" and time.monotonic() < until_s:
                said = systemd.recv(100)
            assert said == b"STOPPING=1"
            assert agent.wait(5) == 0
        finally:
            agent.kill()
            agent.communicate()


def test_the_unit_stops_the_agent_before_its_workers():
    lines = UNIT.read_text().splitlines()
    for wanted in ("Type=notify", "KillMode=mixed", "Delegate=yes", "Restart=always", "UMask=0077"):
        assert wanted in lines


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_the_unit(tmp_path):
    text = UNIT.read_text().replace("/opt/edgeml/bin/edgeml-agent", sys.executable)
    unit = tmp_path / UNIT.name
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False, timeout=60
    )
    assert UNIT.name not in done.stderr
