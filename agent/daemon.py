"""The process that `edgeml agent run` becomes.

The command line replaces itself by this module, so that what it was parsed with (4 MB) does not stay on the device for
years. Nothing is decided here.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from edgeml.deferral import absent, deferred

with deferred("ipaddress"):
    # 0.3 MB, wanted for URLs with an address in brackets.
    from pathlib import Path
with absent("typing_extensions"):
    # 1.3 MB, and nothing in it that this Python's own typing has not.
    import msgspec  # noqa: F401 - for those that import it next
with deferred("inspect"):
    # 1.4 MB, wanted for the documentation of a class that has none, and ours have some.
    import dataclasses  # noqa: F401
with absent("bz2"), absent("lzma"):
    # 0.9 MB, for archives that no device unpacks: the entries of a bundle are stored.
    import zipfile  # noqa: F401

from edgeml.program import guarded


def become(config_path: Path, log_format: str) -> NoReturn:
    """Replace this process by the daemon; the process id stays.

    Raises:
        OSError: The interpreter cannot be started.
    """
    arguments = [sys.executable, "-P", "-m", __name__, str(config_path), log_format]
    os.execv(sys.executable, arguments)  # noqa: S606 - no shell; our own interpreter and arguments


def main() -> None:
    """Run the agent on the settings and in the log format that the command line gave."""
    from .config import load
    from .logs import set_up
    from .service import Service

    config_path, log_format = Path(sys.argv[1]), sys.argv[2]
    set_up(log_format)
    Service(load(config_path), config_path).run()


if __name__ == "__main__":
    guarded(main)
