"""torch to TorchScript, for devices whose own programs have torch.

Decides that a model is traced and frozen (batch normalisation is folded, weights become constants), what the archive says
of its input and output, and that equal models give equal bytes: torch writes this machine's paths into it, and names
classes by how many it traced before. Whether the trace answers as the model did is found by running it (`verify.py`).
"""

from __future__ import annotations

import io
import re
import zipfile
from typing import Any, Final

import msgspec
import numpy as np

from edgeml.errors import ConfigError
from edgeml.runtime.torchscript import SURFACE, Surface
from edgeml.tensors import BATCH, DType, TensorSpec

from ..quiet import first_line, quiet
from ..sources.torch_model import Array, TorchModel

INPUT: Final = "input"
TRACED_SAMPLES: Final = 2
"""More than one, for a traced size of one may be taken for a constant."""
ALIGNMENT_BYTES: Final = 64
"""Where torch's own writer begins each record, so that readers may map them."""
_ROOT: Final = "archive"
_PADDING_ID: Final = b"FB"
_LOCAL_HEADER_BYTES: Final = 30
_PADDING_HEAD_BYTES: Final = 4
_WRITTEN: Final = (1980, 1, 1, 0, 0, 0)
_DATA: Final = "data.pkl"
_CODE: Final = "code/__torch__.py"
_NAME: Final = b"Model"
_CLASS: Final = re.compile(rb"c(__torch__[\w.]*)\n(\w+)\n")
"""How the module that was saved names its class: by where the user's file was imported from, and a number."""
_DROPPED: Final = re.compile(r"\.debug_pkl$|^\.data/")
"""Paths and lines of the sources, and a number that torch makes of these bytes."""


def export_torchscript(model: TorchModel, sample: Array, output: str) -> bytes:
    """Trace a model and freeze it.

    Args:
        model: in evaluation mode; takes and gives one tensor.
        sample: [1 or more, ...], as the model takes it; only its shape and dtype matter.
        output: name of the model's output.

    Returns:
        A TorchScript archive which `torch.jit.load` reads, in C++ as well; the same bytes for the same model.

    Raises:
        ConfigError: The model cannot be traced.
    """
    with quiet():
        import torch

        count = TRACED_SAMPLES if model.batch_is_free else 1
        given = np.ascontiguousarray(np.resize(sample, (count, *sample.shape[1:])))
        example = torch.from_numpy(given)
        target = io.BytesIO()
        try:
            with torch.no_grad():
                traced = torch.jit.trace(model.module, (example,), check_trace=False)
                # An exported program computes as for inference, and calls itself in training.
                traced = torch.jit.freeze(traced.eval())
                answer = traced(example)
            surface = _surface(model, given, answer, output)
            torch.jit.save(traced, target, _extra_files={SURFACE: msgspec.json.encode(surface)})
        except Exception as error:  # torch.jit raises errors of many kinds
            raise ConfigError(
                f"the model cannot become TorchScript: {first_line(error)}",
                hint="torch.jit.trace must be able to follow it: one tensor in, one tensor out",
            ) from error
    return normalized(target.getvalue())


def normalized(archive: bytes) -> bytes:
    """Write a frozen module's archive again, without what differs from machine to machine and from call to call.

    A frozen module is one class without parts. Its name stands in lines of text alone, so it may change its length.

    Raises:
        ConfigError: It is no such archive.
    """
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as read, zipfile.ZipFile(target, "w") as written:
        content = {one.filename.partition("/")[2]: read.read(one) for one in read.infolist()}
        classes = _CLASS.findall(content[_DATA])
        code = [name for name in content if name.startswith("code/") and name.endswith(".py")]
        if len(classes) != 1 or len(code) != 1:
            raise ConfigError(
                "the model cannot become TorchScript: it has parts that cannot be frozen",
                hint="it must keep nothing that changes from call to call",
            )
        module, name = classes[0]
        for entry, data in content.items():
            if entry == code[0]:
                text = data.replace(module + b"." + name, b"__torch__." + _NAME)
                text = text.replace(b"class " + name + b"(", b"class " + _NAME + b"(")
                _write(written, target.tell(), f"{_ROOT}/{_CODE}", text)
            elif entry == _DATA:
                text = _CLASS.sub(b"c__torch__\n" + _NAME + b"\n", data)
                _write(written, target.tell(), f"{_ROOT}/{entry}", text)
            elif not _DROPPED.search(entry):
                _write(written, target.tell(), f"{_ROOT}/{entry}", data)
    return target.getvalue()


def _write(archive: zipfile.ZipFile, place: int, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _WRITTEN)
    header_bytes = _LOCAL_HEADER_BYTES + len(name.encode()) + _PADDING_HEAD_BYTES
    padding = -(place + header_bytes) % ALIGNMENT_BYTES
    entry.extra = _PADDING_ID + padding.to_bytes(2, "little") + b"Z" * padding
    archive.writestr(entry, data)


def _surface(model: TorchModel, given: Array, answer: Any, output: str) -> Surface:
    batch = BATCH if model.batch_is_free else 1
    answered = answer.numpy()
    return Surface(
        inputs=(TensorSpec(INPUT, DType(given.dtype.name), (batch, *given.shape[1:])),),
        outputs=(TensorSpec(output, DType(answered.dtype.name), (batch, *answered.shape[1:])),),
    )
