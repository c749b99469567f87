"""Whether files can be made in a folder, found out before the work whose result goes there.

Decides how that is tried without leaving anything: by a folder of a name of its own, in the nearest place that exists. A
folder that is missing is not made: a conversion that fails for another reason leaves none.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from edgeml.errors import ConfigError


def check_writable(folder: Path, option: str) -> None:
    """Refuse a folder that cannot be made or written; `option` is what the user gives it by.

    Raises:
        ConfigError: The system refuses, or a file is in its place.
    """
    hint = f"give another {option}"
    # Links that lead nowhere are there too: no folder can be made in their place.
    there = next(one for one in (folder, *folder.absolute().parents) if os.path.lexists(one))
    if not there.is_dir():
        raise ConfigError(f"{option} {folder}: {there} is no directory", hint=hint)
    try:
        Path(tempfile.mkdtemp(prefix=".edgeml-", dir=there)).rmdir()
    except OSError as error:
        # The system's own words alone mislead: /proc says that there is no such file.
        raise ConfigError(
            f"{option} {folder} cannot be written: nothing can be made in {there} ({error.strerror or error})",
            hint=hint,
        ) from error
