"""Where a model came from: its repository's commit and the libraries that had a hand in it.

Decides what is worth recording, and that nothing of this machine (paths, names) is. A missing git is no error.
"""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Final

from edgeml import __version__

GIT_TIMEOUT_S: Final = 5.0
CONVERSION_LIBRARIES: Final = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")
PACKAGING_LIBRARIES: Final = ("onnxruntime", "ai-edge-litert", "tflite-runtime", "numpy")


def git_commit(directory: Path) -> str:
    """Return the commit that is checked out in a directory, or nothing: no checkout, no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), "rev-parse", "--verify", "HEAD"],
            capture_output=True, text=True, check=False, timeout=GIT_TIMEOUT_S, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    commit = done.stdout.strip()
    known = done.returncode == 0 and len(commit) in {40, 64} and set(commit) <= set("0123456789abcdef")
    return commit if known else ""


def libraries(names: tuple[str, ...]) -> tuple[str, ...]:
    """Name and version of edgeml, Python and those libraries that are installed."""
    found = [f"edgeml {__version__}", f"python {platform.python_version()}"]
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)
