"""A port of this machine that nobody listens on now.

Decides only where to look: below the range from which the kernel gives ports to outgoing connections. A port that it gave
and took back is soon given to the next connection, and whoever was to listen on it finds it taken. For the demo and for
tests, whose processes are told their ports; a service has ports of its own.
"""

from __future__ import annotations

import random
import socket
from typing import Final

FIRST: Final = 10_000
LAST: Final = 32_000
"""Linux gives ports from 32768 on to connections, unless it is told otherwise."""
_CHOICE: Final = random.SystemRandom()
_GIVEN: Final[set[int]] = set()


def free_port() -> int:
    """Return one that this process was not given before.

    Raises:
        OSError: There is none left.

    >>> FIRST <= free_port() < LAST
    True
    """
    for port in _CHOICE.sample(range(FIRST, LAST), LAST - FIRST):
        if port in _GIVEN:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _GIVEN.add(port)
        return port
    raise OSError(f"no port from {FIRST} to {LAST} is free")
