"""What systemd hears, over a real socket."""

import os
import socket

import pytest

from agent.notify import Notifier


@pytest.fixture(params=["file", "abstract"])
def systemd(request, tmp_path):
    """(address as in NOTIFY_SOCKET, listening socket)."""
    path = tmp_path / "notify"
    name = f"@edgeml-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path) if request.param == "file" else f"\0{name[1:]}")
        listener.settimeout(0.05)
        yield str(path) if request.param == "file" else name, listener


def heard(listener):
    found = []
    while True:
        try:
            found.append(listener.recv(100).decode())
        except TimeoutError:
            return found


def test_the_life_of_an_agent_is_told(systemd):
    address, listener = systemd
    notifier = Notifier(
        {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}
    )
    notifier.ready()
    for now_s in (100.0, 101.0, 104.9, 105.0, 106.0, 130.0):
        notifier.alive(now_s)
    notifier.stopping()
    assert heard(listener) == ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1", "STOPPING=1"]


@pytest.mark.parametrize(
    "watchdog",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "-5"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}],
)  # fmt: skip
def test_a_watchdog_that_does_not_watch_this_process_is_not_fed(systemd, watchdog):
    address, listener = systemd
    notifier = Notifier({"NOTIFY_SOCKET": address, **watchdog})
    for now_s in range(100):
        notifier.alive(float(now_s))
    assert heard(listener) == []


def test_without_systemd_nothing_is_said():
    notifier = Notifier({})
    notifier.ready()
    notifier.alive(0.0)
    notifier.stopping()


def test_systemd_that_went_away_or_is_stuck_stops_nothing(systemd, tmp_path, caplog):
    gone = Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    gone.ready()
    assert "systemd does not hear READY=1" in caplog.text
    address, _listener = systemd
    stuck = Notifier({"NOTIFY_SOCKET": address})
    for _ in range(2000):  # more than the socket's queue holds
        stuck.ready()
    assert "Resource temporarily unavailable" in caplog.text
