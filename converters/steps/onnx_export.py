"""torch to ONNX, in one file.

Decides the exporter's settings and what is checked after it: it may silently write another opset than it was asked for,
and it writes source paths of this machine into the file. Quantizing is `onnx_quantize.py`'s business.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from edgeml.errors import ConfigError

from ..opset import OPSET
from ..quiet import first_line, is_interrupt, quiet
from ..sources.torch_model import Array, TorchModel

INPUT: Final = "input"
BATCH_NAME: Final = "batch"


def export_onnx(model: TorchModel, sample: Array, output: str) -> bytes:
    """Export a model.

    Args:
        model: in evaluation mode.
        sample: [1 or more, ...], as the model takes it; only its shape matters.
        output: name of the model's output.

    Returns:
        One ONNX file with all weights, input `input` with a free first dimension if the model has one.

    Raises:
        ConfigError: The model cannot be exported.
    """
    with quiet():
        import torch

        shapes = ({0: BATCH_NAME},) if model.batch_is_free else None
        example = torch.from_numpy(np.ascontiguousarray(sample[:1]))
        try:
            program = torch.onnx.export(
                model.module, (example,), dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=[output],
                dynamic_shapes=shapes, verbose=False,
            )  # fmt: skip
            assert program is not None
            proto = program.model_proto
        except Exception as error:  # torch.onnx raises errors of many kinds
            if is_interrupt(error):
                raise KeyboardInterrupt from error
            raise ConfigError(
                f"the model cannot be exported to ONNX: {first_line(error)}",
                hint="torch.export must be able to trace it with a free batch: avoid control flow on values and shapes",
            ) from error
    _check(proto, model)
    strip(proto)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def strip(proto: Any) -> None:
    """Remove what a runtime does not read from a ModelProto: paths of this machine, traces, notes."""
    del proto.metadata_props[:]
    proto.ClearField("doc_string")
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.ClearField("doc_string")  # an empty one that is set takes bytes too


def _check(proto: Any, model: TorchModel) -> None:
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    if opsets.get("") != OPSET:
        raise ConfigError(
            f"the exporter wrote opset {opsets.get('')} instead of {OPSET}",
            hint="an operator of the model does not exist in that opset; replace it",
        )
    if any(tensor.external_data for tensor in proto.graph.initializer):
        raise ConfigError(
            "the exported weights do not fit into one file",
            hint="the model is too large for ONNX in one file (2 GiB)",
        )
    first = proto.graph.input[0].type.tensor_type.shape.dim[0]
    if model.batch_is_free and first.dim_param != BATCH_NAME:
        raise ConfigError(
            "the model fixes its batch dimension while it is traced",
            hint="do not use the batch size as a number in forward()",
        )
