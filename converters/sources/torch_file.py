"""What a .pt file holds, found without opening it: TorchScript, weights, or a pickled module.

Decides by the names in its archive and by the instructions of its pickle, which are read and never carried out. Only
TorchScript goes on to the sandbox. Source: pickletools of Python; the archive's layout as torch.save and torch.jit.save
write it.
"""

from __future__ import annotations

import enum
import io
import pickletools
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Final

from edgeml.errors import ArtifactError, ConfigError

PICKLE_BYTES_MAX: Final = 64 << 20
_LEGACY_PICKLES: Final = 4
"""Before archives, torch.save wrote a number, a version, a description of the machine, and then the object."""
_OF_TENSORS: Final = (
    "torch",
    "torch._utils",
    "torch._tensor",
    "torch.storage",
    "torch.nn.parameter",
    "torch.serialization",
)
_PLAIN: Final = ("collections OrderedDict", "_codecs encode", "builtins set", "__builtin__ set")


class TorchFile(enum.Enum):
    """What a file of torch holds."""

    SCRIPT = "TorchScript"
    PROGRAM = "an exported program"
    WEIGHTS = "weights"
    MODULE = "a pickled module"


def check_script(content: bytes, name: str) -> None:
    """Refuse a file that is no TorchScript, and say what it is.

    Raises:
        ConfigError: It holds weights or an exported program.
        ArtifactError: It is a pickle, or nothing that torch wrote.
    """
    kind, class_name = look(content)
    match kind:
        case TorchFile.SCRIPT:
            return
        case TorchFile.PROGRAM:
            raise ConfigError(f"{name} is an exported program", hint="name it .pt2")
        case TorchFile.WEIGHTS:
            raise ConfigError(
                f"{name} holds weights (a state_dict) and no model",
                hint=f"write file.py:factory that builds the model and loads them with torch.load({name!r}, weights_only=True)",
            )
        case TorchFile.MODULE:
            raise ArtifactError(
                f"{name} is a pickle that makes {class_name}: to open it is to run what its writer wants, so it was not opened",
                hint="save the model with torch.jit.script(model).save(...) or torch.export.save, or write file.py:factory that loads the file, if you trust it",
            )
        case None:
            raise ArtifactError(
                f"{name} is nothing that torch wrote",
                hint="it may be truncated; save the model again with torch.jit.script(model).save(...)",
            )


def look(content: bytes) -> tuple[TorchFile | None, str]:
    """Say what a file holds, and for a pickled module the class that it makes first."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return _of_pickle(io.BytesIO(content))
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            inner = [name.partition("/")[2] for name in names]
            if "constants.pkl" in inner and any(one.startswith("code/") for one in inner):
                return TorchFile.SCRIPT, ""
            if any(one.startswith("models/") or one == "archive_format" for one in inner):
                return TorchFile.PROGRAM, ""
            place = next((name for name, one in zip(names, inner, strict=True) if one == "data.pkl"), None)
            if place is None:
                return None, ""
            with archive.open(place) as member:
                return _of_pickle(io.BytesIO(member.read(PICKLE_BYTES_MAX)))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, zlib.error):
        return None, ""


def _of_pickle(stream: IO[bytes]) -> tuple[TorchFile | None, str]:
    made = []
    try:
        for _ in range(_LEGACY_PICKLES):
            made += [*_globals(stream)]
    except Exception:  # pickletools raises errors of many kinds where instructions end
        if not made:
            return None, ""
    foreign = [one for one in made if one not in _PLAIN and one.split(" ")[0] not in _OF_TENSORS]
    return (TorchFile.MODULE, foreign[0].replace(" ", ".")) if foreign else (TorchFile.WEIGHTS, "")


def _globals(stream: IO[bytes]) -> Iterator[str]:
    """Names that a pickle asks for, as `module name`."""
    strings: list[str] = []
    for operation, argument, _ in pickletools.genops(stream):
        if operation.name in {"GLOBAL", "INST"}:
            yield str(argument)
        elif operation.name == "STACK_GLOBAL":
            yield " ".join(strings[-2:])
        elif isinstance(argument, str):
            strings = [*strings[-1:], argument]
