"""The process that turns an exported program into a .tflite file, in the interpreter that has litert-torch.

Decides nothing but the converter's settings and the names in the file. It may import only what that interpreter has: the
standard library, torch, litert-torch, and of edgeml what needs nothing else. What the file is worth, and what becomes of
this process, is `litert_export.py`'s business.
"""

from __future__ import annotations

import json
import math
import resource
import signal
import sys
from pathlib import Path

from edgeml.lifeline import die_with_parent

from .tflite_names import rename

PROGRAM = "program.pt2"
REQUEST = "request.json"
MODEL = "model.tflite"
REPORT = "report.json"
FILE_BYTES_MAX = 2 << 30


def serve(folder: Path) -> None:
    """Read `request.json` and `program.pt2`, write `model.tflite` or a reason, and `report.json`."""
    request = json.loads((folder / REQUEST).read_bytes())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, FILE_BYTES_MAX))
    signal.alarm(math.ceil(request["timeout_s"]) + 5)  # should the parent be killed, nobody else ends us
    try:
        model = _convert(folder / PROGRAM, request["channels_last"])
        (folder / MODEL).write_bytes(rename(model, request["input"], request["output"]))
        refusal = ""
    except Exception as error:  # the libraries raise errors of every kind
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        refusal = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    (folder / REPORT).write_text(json.dumps({"refusal": refusal}), encoding="utf-8")


def _convert(program: Path, channels_last: bool) -> bytes:
    import litert_torch
    import torch

    torch.set_num_threads(1)
    exported = torch.export.load(program)
    sample = exported.example_inputs[0][0]
    # Unflattened, for the names of the layers: a flat program's are all the same.
    module = torch.export.unflatten(exported)
    if channels_last:
        module = litert_torch.to_channel_last_io(module, args=[0])
        sample = sample.movedim(1, -1).contiguous()
    return bytes(litert_torch.convert(module, (sample,)).model_content())


if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]), signal.SIGKILL)
    serve(Path(sys.argv[1]))
