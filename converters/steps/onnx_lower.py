"""An ONNX file in an older opset, for devices with an older runtime.

Decides what is done before and checked after onnx's own converter: it leaves attributes behind that the older opset does
not have, and a result that is not what was asked for is refused. Which opset a device needs is `opset.py`'s business;
that the answers stay the same is verified as for every candidate.
"""

from __future__ import annotations

from typing import Any, Final

from edgeml.errors import BackendError

from ..opset import ir_version_for
from ..quiet import first_line, quiet

_LATER: Final = {"ReduceMean": "noop_with_empty_axes", "ReduceMax": "noop_with_empty_axes", "ReduceMin": "noop_with_empty_axes",
    "ReduceProd": "noop_with_empty_axes", "ReduceL1": "noop_with_empty_axes", "ReduceL2": "noop_with_empty_axes",
    "ReduceLogSum": "noop_with_empty_axes", "ReduceLogSumExp": "noop_with_empty_axes",
    "ReduceSumSquare": "noop_with_empty_axes"}  # fmt: skip
"""Attributes that came with an opset and mean nothing when they are 0, as the exporter writes them."""


def lower(model: bytes, opset: int) -> bytes:
    """Bring a file to an older opset; one that is as old already is given back as it is.

    Args:
        model: one ONNX file without external data.
        opset: what it is to be in, at most.

    Raises:
        BackendError: It uses what the older opset does not have.
    """
    with quiet():
        import onnx
        from onnx import version_converter

        proto = onnx.load_from_string(model)
        if _opset(proto) <= opset:
            return model
        for node in proto.graph.node:
            kept = [one for one in node.attribute if one.i or one.name != _LATER.get(node.op_type)]
            del node.attribute[:]
            node.attribute.extend(kept)
        try:
            lowered = version_converter.convert_version(proto, opset)
            lowered.ir_version = ir_version_for(opset, lowered.ir_version)
            onnx.checker.check_model(lowered, full_check=True)
        except Exception as error:  # onnx raises errors of many kinds, its converter bare RuntimeErrors
            raise BackendError(
                f"the model cannot be written in ONNX opset {opset}: {first_line(error)}",
                hint="an operator of it came later; replace it, or update the runtime of the devices",
            ) from error
    if _opset(lowered) != opset:
        raise BackendError(
            f"the converter wrote opset {_opset(lowered)} instead of {opset}",
            hint="update the runtime of the devices, or export the model in that opset yourself",
        )
    data: bytes = lowered.SerializeToString(deterministic=True)
    return data


def _opset(proto: Any) -> int:
    return next((one.version for one in proto.opset_import if one.domain in {"", "ai.onnx"}), 0)
