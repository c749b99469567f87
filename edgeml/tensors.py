"""What a tensor is, without numpy: the supervisor and the manifest need only this.

Decides names of element types and what a shape may say. Checking arrays is `edgeml.arrays`' business.
"""

from __future__ import annotations

import enum

import msgspec

BATCH = -1
"""A dimension that the caller chooses."""


class DType(enum.Enum):
    """Element types that models may take or give, by their numpy names."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    FLOAT64 = "float64"
    INT8 = "int8"
    UINT8 = "uint8"
    INT16 = "int16"
    UINT16 = "uint16"
    INT32 = "int32"
    INT64 = "int64"
    BOOL = "bool"

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return _ITEM_BYTES[self]

    @property
    def protocol_name(self) -> str:
        """Name in the Open Inference Protocol v2."""
        return _PROTOCOL_NAMES[self]

    @classmethod
    def from_protocol_name(cls, name: str) -> DType:
        """Find a type by its Open Inference Protocol name.

        Raises:
            ValueError: No such type.
        """
        for dtype, known in _PROTOCOL_NAMES.items():
            if known == name:
                return dtype
        raise ValueError(f"unknown datatype {name!r}")


_ITEM_BYTES = {
    DType.FLOAT32: 4, DType.FLOAT16: 2, DType.FLOAT64: 8, DType.INT8: 1, DType.UINT8: 1,
    DType.INT16: 2, DType.UINT16: 2, DType.INT32: 4, DType.INT64: 8, DType.BOOL: 1,
}  # fmt: skip
_PROTOCOL_NAMES = {
    DType.FLOAT32: "FP32", DType.FLOAT16: "FP16", DType.FLOAT64: "FP64", DType.INT8: "INT8", DType.UINT8: "UINT8",
    DType.INT16: "INT16", DType.UINT16: "UINT16", DType.INT32: "INT32", DType.INT64: "INT64", DType.BOOL: "BOOL",
}  # fmt: skip


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One input or output of a model.

    `shape` uses BATCH (-1) where the caller chooses. `layout` is for example NCHW, or empty.
    `scale` and `zero_point` say how an integer tensor stands for reals: real = (q - zero_point) * scale.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    layout: str = ""
    scale: float | None = None
    zero_point: int | None = None

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: without the leading batch dimension."""
        return self.shape[1:]

    @property
    def sample_elements(self) -> int:
        """Number of elements in one sample; free dimensions count as one."""
        count = 1
        for size in self.sample_shape:
            count *= max(size, 1)
        return count
