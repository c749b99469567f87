"""The interpreters of guests: named by the environment, or made by `make` beside pyproject.toml."""

import os
from pathlib import Path

import pytest

from edgeml.guest import Guest

ROOT = Path(__file__).parents[2]
FOLDERS = {
    Guest.LITERT_TORCH: ".venv-litert",
    Guest.TFLITE_RUNTIME: ".venv-tflite",
    Guest.TFLITE_MICRO: ".venv-tflm",
}


def python_of(guest):
    beside = ROOT / FOLDERS[guest] / "bin" / "python"
    return Path(os.environ.get(guest.variable) or beside)


def needs(guest):
    """A mark that skips with a reason where the interpreter is absent."""
    python = python_of(guest)
    return pytest.mark.skipif(
        not python.exists(),
        reason=f"no {python}: make {FOLDERS[guest]}/.installed, or name it in {guest.variable}",
    )
