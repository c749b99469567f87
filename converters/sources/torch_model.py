"""A torch module that can be traced, trained and asked for its own answers.

Decides what of torch can become one (a module, an exported program), that it is put into evaluation mode, and how it is
asked. `torch.export.load` runs in this process, so its files are to be trusted. TorchScript is `torchscript.py`'s
business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeml.errors import ConfigError
from edgeml.ids import Digest, digest_of_file
from edgeml.manifest import RuntimeFamily, ScoreKind

from ..quiet import first_line, quiet
from .layout import CHANNELS_FIRST, CHANNELS_LAST, transpose_hint
from .python_file import call_factory
from .source import finite
from .source_name import SourceKind, SourceName, parse_source

__all__ = [
    "TRUST_WARNING", "Array", "SourceName", "TorchModel", "ask", "from_module", "from_program", "load_source", "parse_source", "read_program",
]  # fmt: skip

ANSWER_BATCH: Final = 256
TRUST_WARNING: Final = "is loaded into this process: convert only programs that you trust"
_PROGRAM_IS_FIXED: Final = (
    "an exported program cannot be trained: give the torch module itself by file.py:factory"
)
_IMAGE: Final = 4

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class TorchModel:
    """A loaded torch model in evaluation mode. `batch_is_free` is false if it takes one sample at a time.

    `fixed` says why steps may not train it; empty if they may.
    """

    module: Any
    batch_is_free: bool
    sha256: Digest
    fixed: str = ""
    warnings: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    scores: ScoreKind | None = None

    def answers(self, samples: Array, what: str) -> Array:
        """Return the original answers [samples, ...], as `ask`."""
        return ask(self, samples, what)

    def can_become(self, family: RuntimeFamily) -> str:  # noqa: ARG002  # every source is asked by family
        """Empty: torch can become all; whether this model does, its export tells."""
        return ""

    def can_be_quantized(self, family: RuntimeFamily) -> str:
        """Empty, as for `can_become`."""
        return self.can_become(family)

    def can_be_trained(self) -> str:
        """Empty, or why it cannot."""
        return self.fixed


def load_source(name: SourceName) -> TorchModel:
    """Load a source that is torch's: a factory's module or program, or a .pt2 file. `load.load` takes all kinds.

    Raises:
        ConfigError: The code or program fails, or gives something else.
    """
    sha256 = digest_of_file(name.path)
    if name.kind is SourceKind.PROGRAM:
        return read_program(name.path, sha256)
    if name.kind is not SourceKind.FACTORY:
        raise ConfigError(
            f"{name.text} is {name.kind.value}, not torch's",
            hint="write file.py:factory, or give a .pt2 file",
        )
    model = call_factory(name)
    import torch

    if isinstance(model, torch.export.ExportedProgram):
        return from_program(model, name.text, sha256)
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(
            f"{name.text} returned {type(model).__name__}, not a torch.nn.Module",
            hint="return the model itself",
        )
    return from_module(model, sha256)


def from_module(module: Any, sha256: Digest) -> TorchModel:
    """Take a torch.nn.Module into evaluation mode."""
    return TorchModel(module.eval(), batch_is_free=True, sha256=sha256)


def read_program(path: Path, sha256: Digest) -> TorchModel:
    """Read a .pt2 file, in this process.

    Raises:
        ConfigError: It cannot be read, or takes several inputs or several samples at once.
    """
    import torch

    with quiet():
        try:
            program = torch.export.load(path)
        except Exception as error:  # torch raises errors of many kinds for a file it cannot read
            raise ConfigError(
                f"{path.name} cannot be loaded: {first_line(error)}",
                hint="write it with torch.export.save, by this version of torch",
            ) from error
    model = from_program(program, path.name, sha256)
    return TorchModel(
        model.module, model.batch_is_free, sha256, model.fixed, (f"{path.name} {TRUST_WARNING}",)
    )


def from_program(program: Any, what: str, sha256: Digest) -> TorchModel:
    """Take a torch.export.ExportedProgram.

    Raises:
        ConfigError: It takes several inputs, or several samples at once.
    """
    inputs = program.graph_signature.user_inputs
    with quiet():
        shapes = [node.meta["val"].shape for node in program.graph.nodes if node.name in inputs]
        module = program.module()
    if len(shapes) != 1 or not len(shapes[0]):
        raise ConfigError(
            f"{what} takes {len(shapes)} inputs", hint="only models with one input can be converted"
        )
    batch = shapes[0][0]
    if isinstance(batch, int) and batch != 1:
        raise ConfigError(
            f"{what} takes {batch} samples at once",
            hint="export it with a free batch: dynamic_shapes=({0: torch.export.Dim('batch')},)",
        )
    return TorchModel(
        module, batch_is_free=not isinstance(batch, int), sha256=sha256, fixed=_PROGRAM_IS_FIXED
    )


def ask(model: TorchModel, samples: Array, what: str) -> Array:
    """Return the model's own answers, float [samples, ...], computed by torch.

    Raises:
        ConfigError: The samples do not fit the model, or its answer is not one finite tensor with a batch dimension, of a
            type that numpy has.
    """
    import torch

    step = ANSWER_BATCH if model.batch_is_free else 1
    pieces: list[Array] = []
    with torch.no_grad(), quiet():
        for start in range(0, len(samples), step):
            piece = np.ascontiguousarray(samples[start : start + step])
            try:
                answer = model.module(torch.from_numpy(piece))
            except Exception as error:  # the model is the user's code and may raise anything
                raise ConfigError(
                    f"{what} has {samples.dtype} samples of shape {list(samples.shape[1:])}, which the model refuses: {_said(error)}",
                    hint=_other_precision(model.module)
                    or _one_at_a_time(model.module, piece)
                    or _layout_that_fits(model.module, piece[:1])
                    or "save the samples exactly as the model takes them, without the batch dimension",
                ) from error
            if not isinstance(answer, torch.Tensor) or not answer.ndim or len(answer) != len(piece):
                raise ConfigError(
                    f"the model answers {len(piece)} samples with {_describe(answer)}",
                    hint="it must return one tensor whose first dimension is the batch",
                )
            pieces.append(_numbers(answer))
    return finite(np.concatenate(pieces), what)


def _numbers(answer: Any) -> Array:
    try:
        numbers: Array = answer.detach().cpu().numpy()
    except (TypeError, RuntimeError) as error:  # numpy has no such type, or the tensor is sparse
        raise ConfigError(
            f"the model answers in {answer.dtype}, which cannot be read: {first_line(error)}",
            hint="let it answer in float32: return answer.float()",
        ) from error
    return numbers


def _said(error: Exception) -> str:
    """Say what is wrong in one line; TorchScript tells where first, and what last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines and "TorchScript interpreter" in lines[0] else first_line(error)


def _other_precision(module: Any) -> str:
    """Tell a module that does not compute in float32: data have no other floats here, so the model has to change."""
    import torch

    kinds = {one.dtype for one in module.parameters() if one.is_floating_point()}
    if not kinds or torch.float32 in kinds:
        return ""
    names = ", ".join(sorted(str(one).removeprefix("torch.") for one in kinds))
    return f"the model computes in {names}, and models take float32: give model.float(), with data in float32"


def _one_at_a_time(module: Any, piece: Array) -> str:
    """Find by trying whether a model that refuses several samples takes the first alone."""
    if len(piece) == 1 or not _takes(module, piece[:1], tuple(range(piece.ndim))):
        return ""
    return "the model takes only a batch of 1: leave the batch free, as in x.reshape(len(x), ...)"


def _layout_that_fits(module: Any, sample: Array) -> str:
    """Find by trying whether an image that was refused would be taken in the other layout. A module has no stated shape."""
    return next((transpose_hint(order) for order in _orders(sample) if _takes(module, sample, order)), "")


def _orders(sample: Array) -> Iterator[tuple[int, ...]]:
    if sample.ndim == _IMAGE:
        yield from (CHANNELS_FIRST, CHANNELS_LAST)


def _takes(module: Any, sample: Array, order: tuple[int, ...]) -> bool:
    import torch

    try:
        module(torch.from_numpy(np.ascontiguousarray(sample.transpose(order))))
    except Exception:  # whatever it raises, it does not take this layout either
        return False
    return True


def _describe(answer: Any) -> str:
    return (
        f"a tensor of shape {list(answer.shape)}"
        if hasattr(answer, "shape")
        else f"a {type(answer).__name__}"
    )
