"""Recipes: what is done to a model, as ordered steps that are plain data.

Decides which steps there are, their settings, the order in which they may follow one another, and the name that a recipe
gives to its variant. How a step is carried out is the business of the file of its name in `steps/`; which recipes are
tried, of `plan.py`; which are known to be wrong on a runtime, of `known_wrong.py`.
"""

from __future__ import annotations

import enum
import re
from typing import Final, TypeAlias

import msgspec

from edgeml.manifest import RuntimeFamily

SLUG_MAX: Final = 24
"""So much of a student's name is in the variant's, which may have 63 characters."""


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all steps."""


class Activations(enum.Enum):
    """How activations are stored, by sign and bits; weights beside them are int8."""

    UINT8 = "u8"
    INT8 = "s8"
    INT16 = "s16"


class Encoding(enum.Enum):
    """How an ONNX file says that it is quantized: by nodes around float operators, or by integer operators."""

    QDQ = "qdq"
    QOPERATOR = "qoperator"


class CalibrationMethod(enum.Enum):
    """How a range is made of what was seen."""

    MINMAX = "minmax"
    ENTROPY = "entropy"
    PERCENTILE = "percentile"


class Layers(enum.Enum):
    """Which layers a dynamic recipe quantizes."""

    ALL = "all"
    LINEAR = "linear"


class Granularity(enum.Enum):
    """How many scales the weights of a layer have."""

    CHANNEL = "channel"
    TENSOR = "tensor"


class Boundary(enum.Enum):
    """What a quantized .tflite takes and gives: integers, or floats that it converts itself."""

    INTEGER = "integer"
    FLOAT = "float"


class Layout(enum.Enum):
    """Where the channels of a .tflite's input are."""

    SOURCE = "source"
    """Where the torch model has them."""
    CHANNELS_LAST = "channels-last"
    """Behind height and width, as cameras and microcontrollers have them: [1, channels, ...] is taken as [1, ..., channels]."""


class Prune(Step, frozen=True, tag="prune"):
    """Take whole channels out, about `ratio` of each layer's, rounded to `channel_block`; then train for `epochs`.

    The training is raced: plain, against distillation from the model before; the better one is kept.
    """

    ratio: float
    channel_block: int
    epochs: int = 12
    learning_rate: float = 3e-3
    seed: int = 0


class Student(Step, frozen=True, tag="student"):
    """Train a smaller network that the user's file names, plain and by distillation; the better one is kept.

    `factory` is `file.py:factory` without directories, `sha256` the digest of what it makes before any training.
    """

    factory: str
    epochs: int = 20
    learning_rate: float = 3e-3
    seed: int = 0
    sha256: str = ""


class QuantizationAwareTraining(Step, frozen=True, tag="qat"):
    """Train with quantization simulated, so that weights grow used to it; raced like the others.

    What is simulated should be what the compression after it does: `activations` None if it leaves them in float.
    """

    weight_bits: int = 8
    activations: Activations | None = Activations.UINT8
    epochs: int = 8
    learning_rate: float = 1e-3
    seed: int = 0


class Export(Step, frozen=True, tag="export"):
    """Write the model as a file of its family. `opset` is for ONNX alone, `layout` for .tflite alone.

    `opset` is the older one that a device's runtime needs; 0: the one that the model comes in.

    `is_quantized` is whether the source is a file that holds integers already, which stays as it is.
    """

    family: RuntimeFamily
    opset: int = 0
    layout: Layout = Layout.SOURCE
    is_quantized: bool = False


class StaticInteger(Step, frozen=True, tag="static"):
    """Quantize weights to int8 and activations by calibrated ranges.

    `float_layers` stay as they are (mixed precision). `weight_bits` 7 keeps products of uint8 and int8 from saturating
    on x86 without VNNI. `encoding` is for ONNX alone, `boundary` for .tflite alone.
    """

    activations: Activations
    encoding: Encoding = Encoding.QOPERATOR
    boundary: Boundary = Boundary.INTEGER
    calibration: CalibrationMethod = CalibrationMethod.MINMAX
    weight_bits: int = 8
    float_layers: tuple[str, ...] = ()


class DynamicInt8(Step, frozen=True, tag="dynamic"):
    """Quantize weights to int8 and activations by the range of each request. Slow for convolutions.

    What follows is for .tflite alone. The scales of linear and convolution layers are apart, for the runtimes' kernels
    are right with some only (`known_wrong.py`): the values given here are right in all. `bits` is 8 or 4.
    """

    layers: Layers = Layers.LINEAR
    linear: Granularity = Granularity.TENSOR
    convolution: Granularity = Granularity.CHANNEL
    bits: int = 8


class WeightOnly(Step, frozen=True, tag="weight-only"):
    """Store weights with 8 or 4 bits; compute in float."""

    bits: int


class Float16(Step, frozen=True, tag="float16"):
    """Store weights as float16; what the model takes and gives stays float32."""


TrainingStep: TypeAlias = Prune | Student | QuantizationAwareTraining
Compression: TypeAlias = StaticInteger | DynamicInt8 | WeightOnly | Float16
AnyStep: TypeAlias = TrainingStep | Export | Compression


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is done to a model: training steps on torch, one export, then at most one compression of the file.

    A file that is a source already has its `export` as well: it says the family.
    """

    export: Export
    training: tuple[TrainingStep, ...] = ()
    compression: Compression | None = None

    @property
    def family(self) -> RuntimeFamily:
        """Which kind of runtime loads the result."""
        return self.export.family

    @property
    def is_integer(self) -> bool:
        """Whether weights and activations are both integers."""
        return isinstance(self.compression, StaticInteger | DynamicInt8)

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the export is done."""
        return not self.training and self.compression is None

    @property
    def name(self) -> str:
        """Name of the variant that it makes; one recipe, one name, but for `float_layers`, of which it has the number, and a layout.

        >>> Recipe(Export(RuntimeFamily.ONNX), (), StaticInteger(Activations.UINT8)).name
        'onnx-int8-u8s8'
        >>> Recipe(Export(RuntimeFamily.ONNX), (Prune(0.5, 16),), Float16()).name
        'onnx-pruned50x16-fp16'
        """
        last = "as-is" if self.export.is_quantized else _compression_word(self.compression)
        words = [self.family.value, *map(_training_word, self.training), last]
        if self.family is RuntimeFamily.ONNX and self.export.opset:
            words.append(f"opset{self.export.opset}")
        return "-".join(words)

    @property
    def described(self) -> str:
        """What is done, in words."""
        said = [
            *map(_training_said, self.training),
            _export_said(self.export),
            *_compression_said(self.compression, self.family),
        ]
        return ", ".join(said)


def encode(recipe: Recipe) -> bytes:
    """Canonical bytes: the key under which a recipe's result is kept."""
    return msgspec.json.encode(recipe, order="sorted")


def _training_word(step: TrainingStep) -> str:
    match step:
        case Prune():
            return f"pruned{step.ratio * 100:.0f}x{step.channel_block}"
        case Student():
            return f"student-{_slug(step.factory)}"
        case QuantizationAwareTraining():
            return "qat"


def _slug(factory: str) -> str:
    """Write `file.py:factory` as a part of a name.

    >>> _slug("small_net.py:model")
    'small-net-model'
    """
    words = re.findall("[a-z0-9]+", factory.replace(".py:", " ").lower())
    return "-".join(words)[:SLUG_MAX].strip("-")


def _training_said(step: TrainingStep) -> str:
    match step:
        case Prune():
            return f"channels pruned by {step.ratio:.0%} in blocks of {step.channel_block}, trained {step.epochs} epochs"
        case Student():
            return f"student {step.factory} trained {step.epochs} epochs"
        case QuantizationAwareTraining():
            return f"quantization-aware training of {step.epochs} epochs"


def _export_said(step: Export) -> str:
    if step.is_quantized:
        return "as it is: quantized already"
    if step.family is RuntimeFamily.TFLITE:
        return "TFLite"
    if step.family is RuntimeFamily.TORCHSCRIPT:
        return "TorchScript, traced and frozen"
    return f"ONNX, brought to opset {step.opset}" if step.opset else "ONNX"


def _compression_word(step: Compression | None) -> str:
    match step:
        case None:
            return "fp32"
        case Float16():
            return "fp16"
        case WeightOnly():
            return f"weights{step.bits}"
        case DynamicInt8():
            return _dynamic_word(step)
        case StaticInteger():
            return _static_word(step)


def _dynamic_word(step: DynamicInt8) -> str:
    words = [f"dynamic{step.bits}"]
    if step.layers is Layers.LINEAR:
        words.append("linear")
    if step.linear is Granularity.CHANNEL:
        words.append("linear-per-channel")
    if step.convolution is Granularity.TENSOR:
        words.append("convolution-per-tensor")
    return "-".join(words)


def _static_word(step: StaticInteger) -> str:
    bits = 16 if step.activations is Activations.INT16 else 8
    words = [f"int{bits}", f"{step.activations.value}s{step.weight_bits}"]
    if step.encoding is Encoding.QDQ:
        words.append("qdq")
    if step.boundary is Boundary.FLOAT:
        words.append("floatio")
    if step.calibration is not CalibrationMethod.MINMAX:
        words.append(step.calibration.value)
    if step.float_layers:
        words.append(f"mixed{len(step.float_layers)}")
    return "-".join(words)


def _compression_said(step: Compression | None, family: RuntimeFamily) -> tuple[str, ...]:
    match step:
        case None:
            return ()
        case Float16():
            return ("weights float16",)
        case WeightOnly():
            return (f"weights {step.bits} bits, computed in float",)
        case DynamicInt8():
            return (
                f"dynamic int{step.bits} of {'linear layers' if step.layers is Layers.LINEAR else 'all layers'}",
            )
        case StaticInteger():
            form = step.encoding.value if family is RuntimeFamily.ONNX else f"{step.boundary.value} boundary"
            said = [
                f"static, {form}, per channel, {step.calibration.value} calibration",
                f"{_ACTIVATIONS[step.activations]} activations, int{step.weight_bits} weights",
            ]
            if step.float_layers:
                said.append(f"{len(step.float_layers)} layers left in float")
            return tuple(said)


_ACTIVATIONS: Final = {
    Activations.UINT8: "uint8",
    Activations.INT8: "int8",
    Activations.INT16: "int16",
}
