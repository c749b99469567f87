"""Which ONNX opset a profile's runtime reads, and which form of file goes with it.

Decides the opset that a profile gets and the IR version of a file: the oldest that has the opset, because onnxruntime
refuses a file of a newer one whatever is in it. How a file is brought to an opset is `steps/onnx_lower.py`'s business;
what an older runtime gets wrong, `known_wrong.py`'s.

Source: measured. Files with one operator, in each opset and each IR version, were given to 13 releases of onnxruntime
from 1.7 to 1.19, and what a search with `--explore` makes of the sample's digits to those from 1.9 to 1.32.
"""

from __future__ import annotations

from typing import Final

from edgeml.errors import IncompatibleError
from edgeml.profile import DeviceRuntime, HardwareProfile, version_of

OPSET: Final = 18
"""What is asked for unless a profile's runtime is older: what the exporter of torch writes without conversion."""
RUNTIME_MIN: Final = (1, 11)
"""The oldest onnxruntime that files are written for. 1.9 and 1.10 read opset 15 and lack kernels for int8 (QGemm, QLinearConv
of int8 by int8) and for the exporter's Reshape."""
NIBBLE_OPSET: Final = 18
"""From here on weights can be stored with 4 bits."""
_READ_SINCE: Final = {16: (1, 11), 17: (1, 12), 18: (1, 14), 19: (1, 15), 20: (1, 17), 21: (1, 18)}
"""The first onnxruntime that reads an opset."""
_IR_OF: Final = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8}
"""The oldest IR version that has an opset. onnxruntime 1.8 reads 7, 1.9 to 1.14 read 8, 1.15 to 1.17 read 9, 1.18 reads 10."""


def opset_for(profile: HardwareProfile, written: int = OPSET) -> int:
    """Decide to which opset a file is brought for a profile: the newest that its oldest onnxruntime reads.

    Args:
        profile: the hardware.
        written: what the source comes in, or the exporter writes.

    Returns:
        An opset older than `written`; 0 if nothing need be done.

    Raises:
        IncompatibleError: It is older than RUNTIME_MIN.
    """
    if not profile.onnxruntime or DeviceRuntime.ONNXRUNTIME not in profile.runtimes:
        return 0
    version = version_of(profile.onnxruntime)
    if version < RUNTIME_MIN:
        oldest = ".".join(map(str, RUNTIME_MIN))
        raise IncompatibleError(
            f"profile {profile.name} has onnxruntime {profile.onnxruntime}, older than {oldest}",
            hint=f"update the devices to onnxruntime {oldest} or newer, or ask for TFLite",
        )
    newest = max(opset for opset, since in _READ_SINCE.items() if version >= since)
    return newest if newest < written else 0


def ir_version_for(opset: int, written: int) -> int:
    """Decide the IR version of a file in an opset; `written` is the one it has, and stays where nothing is known.

    >>> ir_version_for(18, 10), ir_version_for(18, 7), ir_version_for(21, 10)
    (8, 7, 10)
    """
    return min(written, _IR_OF.get(opset, written))
