"""A .tflite file as the objects of its schema, and back.

Decides how it is written: data of tensors on 16 bytes, as the schema demands (kernels on a microcontroller read 8 at
once) and as Python's own writer does not do; the same objects give the same bytes. For processes of their own: a hostile
file may take any time and memory.
"""

from __future__ import annotations

from typing import Any, Final

IDENTIFIER: Final = b"TFL3"
ALIGNMENT_BYTES: Final = 16


def unpack(model: bytes) -> Any:
    """Read a file as a `ModelT`.

    Raises:
        ValueError: It is none.
    """
    from ai_edge_litert import schema_py_generated as schema

    if model[4:8] != IDENTIFIER:
        raise ValueError("no .tflite file: it does not say so at its beginning")
    try:
        root = schema.ModelT.InitFromPackedBuf(model)
        _bring_in(root, model)
        for code in root.operatorCodes:  # older files have the one field, newer both
            code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
    except Exception as error:  # hostile offsets raise errors of many kinds
        raise ValueError("a damaged .tflite file: its tables lead out of it") from error
    return root


def _bring_in(root: Any, model: bytes) -> None:
    """Put data that large files keep behind their tables into the tables, where every runtime finds it."""
    import numpy as np

    for buffer in root.buffers:
        if buffer.offset > 1:  # 0: none; 1: none either, but room was kept for an offset
            if buffer.offset + buffer.size > len(model):
                raise ValueError("data beyond the end")
            buffer.data = np.frombuffer(model, np.uint8, buffer.size, buffer.offset)
        buffer.offset = buffer.size = 0
    if any(one.largeCustomOptionsOffset for graph in root.subgraphs for one in graph.operators):
        raise ValueError("options of an operator behind the tables")


def pack(root: Any) -> bytes:
    """Write a `ModelT` as a file."""
    import flatbuffers

    class Aligned(flatbuffers.Builder):  # type: ignore[misc]  # flatbuffers has no types
        def StartVector(self, item_bytes: int, count: int, alignment: int) -> Any:  # noqa: N802
            if item_bytes == 1:
                alignment = ALIGNMENT_BYTES
            return super().StartVector(item_bytes, count, alignment)

    builder = Aligned(1 << 16)
    builder.Finish(root.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def operator_names(root: Any) -> list[str]:
    """Name each operator code of the file, for example `CONV_2D`; what the schema does not name is `CUSTOM`."""
    from ai_edge_litert import schema_py_generated as schema

    kinds = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    return [kinds.get(code.builtinCode, "CUSTOM") for code in root.operatorCodes]
