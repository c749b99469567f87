"""Where a model came from: its repository's commit and the libraries that had a hand in it.

Decides what is worth recording, and that nothing of this machine (paths, names) is. A missing git is no error.
"""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
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
_RUNS_NOTHING: Final = (
    "--no-optional-locks",
    "-c",
    "core.fsmonitor=false",
    "-c",
    f"core.hooksPath={os.devnull}",
)
_HOW_STORED: Final = r"^core\.(autocrlf|eol|filemode|symlinks|ignorecase|precomposeunicode)$"
"""What a git directory says of how its file system and its texts are: all that is taken over of its settings."""


@dataclass(frozen=True, slots=True)
class Checkout:
    """What is checked out: the commit, empty where there is none, and whether tracked files differ from it."""

    commit: str
    is_dirty: bool


def checkout_of(directory: Path) -> Checkout:
    """Look at the checkout that a directory is in. Nothing that its git directory configures is run."""
    commit = git_commit(directory)
    return Checkout(commit, bool(commit) and _differs(directory, commit))


def _differs(directory: Path, commit: str) -> bool:
    """Compare tracked files with a commit by a git directory of our own.

    A model may come in an archive with a .git of a stranger's. `git status` would run what that configures: a file system
    monitor, filters, hooks, and a transport for objects that it lacks.
    """
    found = _git(directory, "rev-parse", "--show-toplevel", "--git-path", "index", "--git-path", "objects")
    if found.count("\n") != 2:
        return False
    top, index, objects = (directory / line for line in found.splitlines())
    how_stored = _git(directory, "config", "--local", "--get-regexp", _HOW_STORED)
    settings = [one.replace(" ", "=", 1) for one in how_stored.splitlines()]
    with tempfile.TemporaryDirectory() as made:
        own = Path(made)
        (own / "refs").mkdir()
        (own / "HEAD").write_text(f"{commit}\n")
        hashing = "sha256" if len(commit) == 64 else "sha1"
        (own / "config").write_text(
            f"[core]\nrepositoryformatversion = 1\n[extensions]\nobjectformat = {hashing}\n"
        )
        for shared in index.parent.glob("sharedindex.*"):
            (own / shared.name).symlink_to(shared)
        status = _git(
            top, *(word for one in settings for word in ("-c", one)),
            "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty",
            GIT_DIR=made, GIT_WORK_TREE=str(top), GIT_INDEX_FILE=str(index), GIT_OBJECT_DIRECTORY=str(objects),
        )  # fmt: skip
    return bool(status)


def git_commit(directory: Path) -> str:
    """Return the commit that is checked out in a directory, or nothing: no checkout, no git."""
    commit = _git(directory, "rev-parse", "--verify", "HEAD")
    known = len(commit) in {40, 64} and set(commit) <= set("0123456789abcdef")
    return commit if known else ""


def _git(directory: Path, *arguments: str, **environment: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *_RUNS_NOTHING, *arguments], env={**os.environ, **environment},
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
