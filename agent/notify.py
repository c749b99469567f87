"""Tells systemd that the agent is ready, still alive, and about to end.

Decides when the watchdog is fed: from the main loop, twice in its interval, so that an agent whose loop hangs is
restarted. Without systemd (no NOTIFY_SOCKET) nothing is said to anybody.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from typing import Final

logger = logging.getLogger(__name__)

SOCKET: Final = "NOTIFY_SOCKET"
WATCHDOG_US: Final = "WATCHDOG_USEC"
WATCHDOG_PID: Final = "WATCHDOG_PID"


class Notifier:
    """The agent's word to systemd."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Look for systemd in the environment."""
        address = environment.get(SOCKET, "")
        # An abstract address is written with @ in place of its leading NUL.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._pause_s = _watchdog_s(environment) / 2
        self._fed_s: float | None = None

    def ready(self) -> None:
        """Say that the agent serves what it has."""
        self._say("READY=1")

    def alive(self, now_s: float) -> None:
        """Feed the watchdog if it is time; call this often, with the monotonic time."""
        if self._pause_s and (self._fed_s is None or now_s - self._fed_s >= self._pause_s):
            self._fed_s = now_s
            self._say("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that the agent ends on purpose."""
        self._say("STOPPING=1")

    def _say(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto(state.encode(), self._address)
        except OSError as error:
            # What the device does comes first. If systemd must know, its watchdog draws the consequence.
            logger.warning("systemd does not hear %s: %s", state, error.strerror)


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """Seconds after which systemd takes the agent for hung; 0 if it does not watch this process."""
    interval_us, pid = environment.get(WATCHDOG_US, ""), environment.get(WATCHDOG_PID, str(os.getpid()))
    if not interval_us.isascii() or not interval_us.isdecimal() or pid != str(os.getpid()):
        return 0.0
    return int(interval_us) / 1e6
