"""What a loaded source is for the rest of the room: something with original answers that can become some files.

Decides what every source says of itself, and how a source that is a file answers. `torch_model.py` has the other kind.
How each kind is opened and checked is the business of the file of its name; which one a name means, of `load.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from edgeml.columns import to_real
from edgeml.errors import BackendError, ConfigError
from edgeml.ids import Digest
from edgeml.kernels import quantise
from edgeml.manifest import RuntimeFamily, ScoreKind
from edgeml.probe import ProbeLimits, probe
from edgeml.tensors import DType, TensorSpec

from .layout import layout_hint

Array = npt.NDArray[np.generic]

LIMITS: Final = ProbeLimits(timeout_s=300.0, threads=1, memory_bytes=8 << 30)
MODEL_BYTES_MAX: Final = 1 << 30


class Original(Protocol):
    """The model as it was before it became a file."""

    def answers(self, samples: Array, what: str) -> Array:
        """Answer [samples, ...]; `what` names the samples in messages."""
        ...


class Source(Protocol):
    """A loaded source."""

    @property
    def sha256(self) -> Digest:
        """Digest of the file that was named."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know, a line each."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes in the order of the scores, where the source knows them."""
        ...

    @property
    def scores(self) -> ScoreKind | None:
        """What its scores are; None where the source does not say."""
        ...

    def answers(self, samples: Array, what: str) -> Array:
        """Return the original answers [samples, ...], finite. `what` names the samples in messages.

        Raises:
            ConfigError: The samples do not fit.
            BackendError: The model cannot be run on them.
        """
        ...

    def can_become(self, family: RuntimeFamily) -> str:
        """Empty if it can become a file of that family, else why not."""
        ...

    def can_be_quantized(self, family: RuntimeFamily) -> str:
        """Empty if what it becomes in that family can be made smaller, else why not."""
        ...

    def can_be_trained(self) -> str:
        """Empty if steps may train it, else why not."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A source that is, or has become, one ONNX or TFLite file with one input.

    `sha256` is of the file that was named, `model` what became of it. `original` answers where the file is only a
    translation; None if the file is the original. `quantized` is the first tensor that is stored as integers, or empty.
    """

    family: RuntimeFamily
    model: bytes
    input: TensorSpec
    sha256: Digest
    made_from: str
    original: Original | None = None
    quantized: str = ""
    opset: int = 0
    warnings: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    scores: ScoreKind | None = None

    def answers(self, samples: Array, what: str) -> Array:
        """Return the original answers [samples, ...]: the original's, or the file's on its runtime, in a child.

        Raises:
            ConfigError: The samples do not fit, or an answer is NaN or infinite.
            BackendError: The runtime refuses the model or dies of it.
        """
        if self.original is not None:
            return self.original.answers(samples, what)
        return self.file_answers(samples, what)

    def file_answers(self, samples: Array, what: str) -> Array:
        """Return the file's own answers [samples, ...] as reals, computed by its runtime in a child.

        Floats for a file that takes integers become these by its own scale.

        Raises:
            ConfigError: The samples do not fit, or an answer is NaN or infinite.
            BackendError: The runtime refuses the model or dies of it.
        """
        taken = self.input
        if taken.scale is not None and samples.dtype.kind == "f" and taken.dtype is not DType.FLOAT32:
            samples = quantise(samples, taken.scale, taken.zero_point or 0, np.dtype(taken.dtype.value))
        self._check(samples, what)
        found = probe(self.model, self.family, [samples], limits=LIMITS)
        if len(found.answers) != 1:
            raise BackendError(
                f"the model has {len(found.answers)} outputs",
                hint="only models with one output can be converted",
            )
        answers, spec = found.answers[0], found.outputs[0]
        return finite(answers if spec.scale is None else to_real(answers, spec), what)

    def can_become(self, family: RuntimeFamily) -> str:
        """Empty if it can become a file of that family, else why not."""
        if family is self.family:
            return ""
        if family is RuntimeFamily.TORCHSCRIPT:
            return (
                f"{self.made_from} cannot become TorchScript: give the torch module itself by file.py:factory"
            )
        if self.family is RuntimeFamily.ONNX:
            return (
                f"{self.made_from} becomes ONNX, and there is no sound way from ONNX to TFLite: "
                "give the torch module itself by file.py:factory"
            )
        return f"{self.made_from} stays TFLite: give the model that it was exported from"

    def can_be_quantized(self, family: RuntimeFamily) -> str:
        """Empty if it can be made smaller in that family, else why not."""
        reason = self.can_become(family)
        if not reason and self.quantized:
            return f"tensor {self.quantized} is quantized already: it can be bundled as it is, or give the float model"
        return reason

    def can_be_trained(self) -> str:
        """Why it cannot: a file of a runtime has no gradients."""
        return f"{self.made_from} cannot be trained: give the torch module itself by file.py:factory"

    def _check(self, samples: Array, what: str) -> None:
        shape = self.input.shape
        hint = layout_hint(shape, samples.shape)
        fits_shape = len(shape) == samples.ndim and all(
            want in {-1, got} for want, got in zip(shape[1:], samples.shape[1:], strict=True)
        )
        if fits_shape and samples.dtype.name == self.input.dtype.value:
            return
        raise ConfigError(
            f"{what} has {samples.dtype} samples of shape {list(samples.shape[1:])}, "
            f"the model takes {self.input.dtype.value} of shape {list(shape[1:])}",
            hint=hint
            or self._other_precision()
            or "save the samples exactly as the model takes them, without the batch dimension",
        )

    def _other_precision(self) -> str:
        taken = self.input.dtype
        if taken not in {DType.FLOAT64, DType.FLOAT16}:
            return ""
        return (
            f"data cannot be {taken.value} here: export the model in float32 (of torch: model.float() before the export), "
            "and save the data in float32"
        )


def finite(answers: Array, what: str) -> Array:
    """Refuse answers that are no numbers.

    Raises:
        ConfigError: One is NaN or infinite, or there are none.
    """
    if not answers.size:
        raise ConfigError(
            f"the model answers {what} with shape {list(answers.shape)}, which holds nothing",
            hint="check what it returns",
        )
    if answers.dtype.kind == "f" and not np.isfinite(answers).all():
        raise ConfigError(f"the model answers {what} with NaN or infinity", hint="check its weights")
    return answers
