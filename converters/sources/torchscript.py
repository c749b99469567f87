"""TorchScript to ONNX: the one thing that is made of a ScriptModule.

Decides the exporter: only the old one takes TorchScript. Whether the result answers as the module did is checked by the
caller; a file that holds TorchScript is opened in the sandbox (`untrusted.py`).
"""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np

from edgeml.errors import ConfigError

from ..opset import OPSET
from ..quiet import first_line, quiet
from ..steps.onnx_export import strip
from .surgery import number_names
from .torch_model import Array

INPUT: Final = "input"
OUTPUT: Final = "output"
BATCH_NAME: Final = "batch"


def export_script(module: Any, samples: Array) -> bytes:
    """Write a ScriptModule, or a module that is traced here, as one ONNX file with a free batch.

    Args:
        module: in evaluation mode; takes and gives one tensor.
        samples: [2 or more, ...] as it takes them. More than one, for a traced size of one may be taken for a constant.

    Raises:
        ConfigError: torch cannot export it.
    """
    import onnx
    import torch

    target = io.BytesIO()
    axes = {INPUT: {0: BATCH_NAME}, OUTPUT: {0: BATCH_NAME}}
    with quiet(), torch.no_grad():
        try:
            torch.onnx.export(
                module, (torch.from_numpy(np.ascontiguousarray(samples[:2])),), target, dynamo=False, opset_version=OPSET,
                input_names=[INPUT], output_names=[OUTPUT], dynamic_axes=axes,
            )  # fmt: skip
        except Exception as error:  # torch.onnx raises errors of many kinds
            raise ConfigError(
                f"the TorchScript module cannot be exported to ONNX: {first_line(error)}",
                hint="give the torch module itself by file.py:factory, or a .pt2 file",
            ) from error
        proto = onnx.load_from_string(target.getvalue())
    # The exporter names scopes by what this process exported before.
    number_names(proto)
    strip(proto)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data
