"""The model that a conversion starts from: a Python file's factory, or an exported program.

Decides how a source is named, loaded and put into evaluation mode, and how it is asked for its own answers. A factory is
the user's own code and runs in this process; so does `torch.export.load`, whose files are to be trusted. Nothing else
is loaded, and nothing is unpickled by us.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeml.errors import ConfigError, EdgemlError
from edgeml.ids import Digest, digest_of_file

from ..quiet import first_line, quiet

ANSWER_BATCH: Final = 256
TRUST_WARNING: Final = "is loaded into this process: convert only programs that you trust"

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class SourceName:
    """Where a model comes from: `file.py:factory`, or `program.pt2` with an empty factory."""

    path: Path
    factory: str

    @property
    def text(self) -> str:
        """Name without directories, as provenance holds it."""
        return f"{self.path.name}:{self.factory}" if self.factory else self.path.name


@dataclass(frozen=True, slots=True)
class TorchModel:
    """A loaded torch model in evaluation mode. `batch_is_free` is false if it takes one sample at a time."""

    module: Any
    batch_is_free: bool
    sha256: Digest


def parse_source(text: str) -> SourceName:
    """Read a source's name.

    Raises:
        ConfigError: It names neither a factory nor an exported program, or the file is missing.
    """
    if text.endswith(".pt2"):
        name = SourceName(Path(text), "")
    else:
        file, colon, factory = text.rpartition(":")
        if not colon or not file.endswith(".py") or not factory.isidentifier():
            other = text.endswith((".onnx", ".tflite"))
            raise ConfigError(
                f"{text!r} is no model that can be converted",
                hint="`edgeml package` bundles .onnx and .tflite files as they are"
                if other
                else "write file.py:factory, or give a .pt2 file",
            )
        name = SourceName(Path(file), factory)
    if not name.path.is_file():
        raise ConfigError(f"no file {name.path}", hint="check the path")
    return name


def load_source(name: SourceName) -> TorchModel:
    """Load a model and put it into evaluation mode.

    Raises:
        ConfigError: The code or program fails, or gives no torch module.
    """
    sha256 = digest_of_file(name.path)
    return _from_factory(name, sha256) if name.factory else _from_program(name.path, sha256)


def ask(model: TorchModel, samples: Array, what: str) -> Array:
    """Return the model's own answers, float [samples, ...], computed by torch.

    Raises:
        ConfigError: The samples do not fit the model, or its answer is not one finite tensor with a batch dimension.
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
                    f"{what} has {samples.dtype} samples of shape {list(samples.shape[1:])}, which the model refuses: {first_line(error)}",
                    hint="save the samples exactly as the model takes them, without the batch dimension",
                ) from error
            if not isinstance(answer, torch.Tensor) or not answer.ndim or len(answer) != len(piece):
                raise ConfigError(
                    f"the model answers {len(piece)} samples with {_describe(answer)}",
                    hint="it must return one tensor whose first dimension is the batch",
                )
            pieces.append(answer.detach().cpu().numpy())
    answers = np.concatenate(pieces)
    if not np.isfinite(answers).all():
        raise ConfigError(f"the model answers {what} with NaN or infinity", hint="check its weights")
    return answers


def _from_factory(name: SourceName, sha256: Digest) -> TorchModel:
    import torch

    with _module_of(name.path) as module:
        factory: Callable[[], Any] | None = getattr(module, name.factory, None)
        if not callable(factory):
            raise ConfigError(
                f"{name.path.name} has no function {name.factory}", hint="name a function without arguments"
            )
        model = _guarded(factory, f"{name.path.name}:{name.factory}()")
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(
            f"{name.text} returned {type(model).__name__}, not a torch.nn.Module",
            hint="return the model itself",
        )
    return TorchModel(model.eval(), batch_is_free=True, sha256=sha256)


@contextlib.contextmanager
def _module_of(path: Path) -> Iterator[Any]:
    """Import a file as the user would from its own directory, and leave no trace of that."""
    spec = importlib.util.spec_from_file_location(f"_source_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    writes = sys.dont_write_bytecode
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent.absolute()))
    sys.dont_write_bytecode = True
    try:
        _guarded(lambda: spec.loader.exec_module(module), path.name)  # type: ignore[union-attr]  # asserted above
        yield module
    finally:
        sys.dont_write_bytecode = writes
        sys.path.remove(str(path.parent.absolute()))
        sys.modules.pop(spec.name, None)


def _guarded(code: Callable[[], Any], what: str) -> Any:
    """Run the user's code; what it prints goes to stderr, so that our own output stays readable."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return code()
    except EdgemlError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ConfigError(
            f"{what} fails: {first_line(error)}", hint="run the file with Python to see where"
        ) from error


def _from_program(path: Path, sha256: Digest) -> TorchModel:
    import torch

    with quiet():
        try:
            program = torch.export.load(path)
            shapes = [
                node.meta["val"].shape
                for node in program.graph.nodes
                if node.name in program.graph_signature.user_inputs
            ]
            module = program.module()
        except Exception as error:  # torch raises errors of many kinds for a file it cannot read
            raise ConfigError(
                f"{path.name} cannot be loaded: {first_line(error)}",
                hint="write it with torch.export.save, by this version of torch",
            ) from error
    if len(shapes) != 1 or not len(shapes[0]):
        raise ConfigError(
            f"{path.name} takes {len(shapes)} inputs", hint="only models with one input can be converted"
        )
    batch = shapes[0][0]
    if isinstance(batch, int) and batch != 1:
        raise ConfigError(
            f"{path.name} takes {batch} samples at once",
            hint="export it with a free batch: dynamic_shapes=({0: torch.export.Dim('batch')},)",
        )
    return TorchModel(module, batch_is_free=not isinstance(batch, int), sha256=sha256)


def _describe(answer: Any) -> str:
    return (
        f"a tensor of shape {list(answer.shape)}"
        if hasattr(answer, "shape")
        else f"a {type(answer).__name__}"
    )
