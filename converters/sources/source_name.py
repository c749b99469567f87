"""How a source is named on the command line, and what kind of thing that names.

Decides kinds by a file's ending, and what is said of files that no model can be read from. What a file really holds is
found by whoever opens it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeml.errors import ConfigError


class SourceKind(enum.Enum):
    """What a source is, and so who opens it."""

    FACTORY = "a function in a Python file"
    PROGRAM = "an exported torch program"
    TORCHSCRIPT = "a torch file"
    PICKLE = "a pickled estimator"
    ONNX = "an ONNX file"
    TFLITE = "a TFLite file"

    @property
    def is_untrusted(self) -> bool:
        """Whether opening it runs code of whoever wrote it, so that it is opened in the sandbox."""
        return self in {SourceKind.TORCHSCRIPT, SourceKind.PICKLE}


_ENDINGS: Final = {
    ".pt2": SourceKind.PROGRAM,
    ".pt": SourceKind.TORCHSCRIPT,
    ".pth": SourceKind.TORCHSCRIPT,
    ".pkl": SourceKind.PICKLE,
    ".pickle": SourceKind.PICKLE,
    ".joblib": SourceKind.PICKLE,
    ".onnx": SourceKind.ONNX,
    ".tflite": SourceKind.TFLITE,
}
_USUAL: Final = "write file.py:factory, or give a .pt2, .pt, .pkl, .joblib, .onnx or .tflite file"
_FOREIGN: Final = {
    ".h5": "export it to .onnx or .tflite with the library that wrote it",
    ".keras": "export it to .onnx or .tflite with the library that wrote it",
    ".pb": "export it to .onnx or .tflite with the library that wrote it",
    ".safetensors": "it holds weights and no model: write file.py:factory that builds the model and loads them",
    ".npz": "it holds arrays and no model: write file.py:factory that builds the model and loads them",
    ".py": "name the function that returns the model: file.py:factory",
}


@dataclass(frozen=True, slots=True)
class SourceName:
    """Where a model comes from: `file.py:factory`, or a file with an empty factory."""

    path: Path
    factory: str

    @property
    def text(self) -> str:
        """Name without directories, as provenance holds it."""
        return f"{self.path.name}:{self.factory}" if self.factory else self.path.name

    @property
    def kind(self) -> SourceKind:
        """What the name names."""
        return SourceKind.FACTORY if self.factory else _ENDINGS[self.path.suffix.lower()]


def parse_source(text: str) -> SourceName:
    """Read a source's name.

    Raises:
        ConfigError: It names nothing that a model can be read from, or the file is missing.
    """
    path = Path(text)
    if path.suffix.lower() in _ENDINGS:
        name = SourceName(path, "")
    else:
        file, colon, factory = text.rpartition(":")
        if not colon or not file.endswith(".py") or not factory.isidentifier():
            raise ConfigError(
                f"{text!r} is no model that can be converted", hint=_FOREIGN.get(path.suffix.lower(), _USUAL)
            )
        name = SourceName(Path(file), factory)
    if not name.path.is_file():
        raise ConfigError(f"no file {name.path}", hint="check the path")
    return name
