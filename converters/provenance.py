"""Where a model came from: its repository's commit and the libraries that had a hand in it.

Decides what is worth recording, and that nothing of this machine (paths, names) is. A missing git is no error.
"""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from edgeml import __version__
from edgeml.errors import ConfigError
from edgeml.guest import Guest, interpreter_with, version_here, version_in
from edgeml.manifest import RuntimeFamily

from .recipe import Export

GIT_TIMEOUT_S: Final = 5.0
CONVERSION_LIBRARIES: Final = (
    "torch", "torch-pruning", "torchao", "onnx", "onnxscript", "onnxruntime", "ai-edge-litert", "ai-edge-quantizer",
    "skl2onnx", "hummingbird-ml", "numpy",
)  # fmt: skip
PACKAGING_LIBRARIES: Final = ("onnxruntime", "ai-edge-litert", "tflite-runtime", "numpy")


@dataclass(frozen=True, slots=True)
class Checkout:
    """What is checked out: the commit, empty where there is none, and whether tracked files differ from it."""

    commit: str
    is_dirty: bool


def checkout_of(directory: Path) -> Checkout:
    """Look at the checkout that a directory is in."""
    commit = git_commit(directory)
    changed = commit and _git(directory, "status", "--porcelain", "--untracked-files=no")
    return Checkout(commit, bool(changed))


def git_commit(directory: Path) -> str:
    """Return the commit that is checked out in a directory, or nothing: no checkout, no git."""
    commit = _git(directory, "rev-parse", "--verify", "HEAD")
    known = len(commit) in {40, 64} and set(commit) <= set("0123456789abcdef")
    return commit if known else ""


def _git(directory: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments],
            capture_output=True, text=True, check=False, timeout=GIT_TIMEOUT_S, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def libraries(names: tuple[str, ...]) -> tuple[str, ...]:
    """Name and version of edgeml, Python and those libraries that are installed."""
    found = [f"edgeml {__version__}", f"python {platform.python_version()}"]
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


def made_by(export: Export, *, is_torch: bool) -> tuple[str, ...]:
    """Name everything that has a hand in a candidate: CONVERSION_LIBRARIES, and what writes torch's models as .tflite.

    The latter may be in another interpreter.
    """
    found = libraries(CONVERSION_LIBRARIES)
    if not is_torch or export.family is not RuntimeFamily.TFLITE:
        return found
    guest = Guest.LITERT_TORCH
    try:
        python = interpreter_with(guest)
    except ConfigError:
        return found  # Then there will be no export, and its error says so.
    version = version_here(guest) if python is None else version_in(python, guest)
    return (*found, f"{guest.value} {version}")
