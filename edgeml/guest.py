"""Guests: libraries that live in a Python interpreter of their own, because they do not bear the others here.

Decides which there are, the environment variables that name their interpreters, and that nothing is searched for:
what is neither here nor named is not there. What runs in such an interpreter is the caller's business (`edgeml.child`).
"""

from __future__ import annotations

import enum
import functools
import os
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Final

from .errors import ConfigError

LOOK_S: Final = 30.0
_TELL_VERSION: Final = "import sys; from importlib import metadata; print(metadata.version(sys.argv[1]))"


class Guest(enum.Enum):
    """A library that may live in an environment of its own, by its package's name."""

    LITERT_TORCH = "litert-torch"
    """torch to .tflite: 2 GB, and it holds other libraries at old versions."""
    TFLITE_RUNTIME = "tflite-runtime"
    """What old and 32-bit devices have: needs numpy 1 and Python 3.11 or older."""
    TFLITE_MICRO = "tflite-micro"
    """What firmware is built with, on this machine's processor: daily builds without releases, x86-64 wheels alone."""

    @property
    def variable(self) -> str:
        """The environment variable that names the interpreter."""
        return f"EDGEML_{self.name}_PYTHON"

    @property
    def recipe(self) -> str:
        """The commands that make such an environment; in a checkout `make` does the same."""
        venv = f".venv-{self.value}"
        match self:
            case Guest.LITERT_TORCH:
                make = f"python3 -m venv {venv} && {venv}/bin/pip install 'edgeml-fleet[tflite]'"
            case Guest.TFLITE_RUNTIME:
                make = f"python3.11 -m venv {venv} && {venv}/bin/pip install 'edgeml-fleet[agent-tflite-runtime]'"
            case Guest.TFLITE_MICRO:
                make = f"python3 -m venv {venv} && {venv}/bin/pip install 'edgeml-fleet[tflite-micro]'"
        return f"{make} && export {self.variable}=$PWD/{venv}/bin/python"


def version_here(guest: Guest) -> str:
    """Version of the library in this interpreter; "" if it is not here."""
    try:
        return metadata.version(guest.value)
    except metadata.PackageNotFoundError:
        return ""


def named(guest: Guest) -> Path | None:
    """The interpreter that the environment names, whether or not it is any good."""
    text = os.environ.get(guest.variable, "")
    return Path(text).absolute() if text else None


@functools.cache
def version_in(python: Path, guest: Guest) -> str:
    """Version of the library in another interpreter, asked once; "" if it has none or is no interpreter."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", _TELL_VERSION, guest.value],
            capture_output=True, text=True, check=False, timeout=LOOK_S, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def interpreter_with(guest: Guest) -> Path | None:
    """Find the interpreter that has a library. None is this one, as everywhere.

    Raises:
        ConfigError: It is not here, and the variable names none or one without it.
    """
    if version_here(guest):
        return None
    python = named(guest)
    if python is None:
        raise ConfigError(
            f"{guest.value} is not installed, and {guest.variable} names no interpreter that has it",
            hint=guest.recipe,
        )
    if not version_in(python, guest):
        raise ConfigError(
            f"{guest.variable} names {python}, which is no Python interpreter with {guest.value}",
            hint=guest.recipe,
        )
    return python
