"""Any model as an operator graph that can be looked at: of a file as it is, of everything else as it would be exported.

Decides what is only read (.onnx, .tflite, bundles) and what has to be loaded and exported first, for which the shape of
one sample must be known. Answers are compared only where loading compares them anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgeml.errors import ConfigError
from edgeml.manifest import RuntimeFamily

from .estimate.onnx_graph import read_onnx
from .estimate.tflite_graph import read_tflite

if TYPE_CHECKING:
    from .estimate.graph import Graph

MODEL_BYTES_MAX: Final = 1 << 30
SAMPLES: Final = 8
"""By which a translation is compared with its original; random ones, so it is a look and no proof."""
SIDE_MAX: Final = 1 << 20
_READERS: Final = {RuntimeFamily.ONNX: read_onnx, RuntimeFamily.TFLITE: read_tflite}
_BY_SUFFIX: Final = {f".{one.value}": one for one in _READERS}


@dataclass(frozen=True, slots=True)
class Readable:
    """A model that can be looked at. `source` says what its file is, if that is not what was named."""

    name: str
    graph: Graph
    length_bytes: int
    source: str = ""


def read(text: str, shape: tuple[int, ...] | None = None) -> Readable:
    """Read a model.

    Args:
        text: a .onnx, .tflite or .edgeml file, or any other source of `edgeml convert`.
        shape: of one sample, without the batch; for the others, and only for them.

    Raises:
        ConfigError: It cannot be read or loaded, or the shape is missing or of no use.
        ArtifactError: It is damaged, or its content is refused.
        BackendError: It cannot be exported.
        BudgetError: An untrusted file took too much memory.
    """
    path = Path(text)
    if path.suffix == ".edgeml" or path.suffix in _BY_SUFFIX:
        if shape is not None:
            raise ConfigError(f"{path.name} says itself what it takes", hint="leave --shape away")
        return _of_file(path)
    return _of_source(text, shape)


def parse_shape(text: str) -> tuple[int, ...]:
    """Read a shape like `1,32,32`.

    Raises:
        ConfigError: It is none.

    >>> parse_shape("1,32,32"), parse_shape("30")
    ((1, 32, 32), (30,))
    """
    words = [word.strip() for word in text.replace("x", ",").split(",")]
    if not all(word.isascii() and word.isdecimal() and 0 < int(word) <= SIDE_MAX for word in words):
        raise ConfigError(
            f"{text!r} is no shape of one sample", hint="sizes without the batch, for example --shape 1,32,32"
        )
    return tuple(map(int, words))


def _of_file(path: Path) -> Readable:
    if path.suffix == ".edgeml":
        from edgeml.bundle import Bundle

        with Bundle(path) as bundle:
            data, family = bundle.model(), bundle.manifest.runtime
        if family not in _READERS:
            raise ConfigError(
                f"{path.name} holds {family.value}, which is code and no graph",
                hint="give what it was converted from, with --shape",
            )
        return Readable(path.name, _READERS[family](data), len(data))
    try:
        with path.open("rb") as file:
            data = file.read(MODEL_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path.name}: {error}", hint="check the path") from error
    if len(data) > MODEL_BYTES_MAX:
        raise ConfigError(
            f"{path.name} is longer than {MODEL_BYTES_MAX} bytes", hint="give a model for a device"
        )
    return Readable(path.name, _READERS[_BY_SUFFIX[path.suffix]](data), len(data))


def _of_source(text: str, shape: tuple[int, ...] | None) -> Readable:
    import numpy as np

    from .sources.load import load
    from .sources.source import ModelFile
    from .sources.source_name import parse_source
    from .sources.torch_model import TorchModel
    from .steps.onnx_compact import compact
    from .steps.onnx_export import export_onnx

    name = parse_source(text)
    if shape is None:
        raise ConfigError(
            f"{name.text} does not say what it takes",
            hint="give the shape of one sample, without the batch: --shape 1,32,32",
        )
    samples = np.random.default_rng(0).random((SAMPLES, *shape), np.float32)
    found = load(name, samples)
    if isinstance(found, ModelFile):
        data = found.model
    else:
        assert isinstance(found, TorchModel)
        found.answers(samples, f"a sample of shape {list(shape)}")
        data = compact(export_onnx(found, samples, "output"))
    return Readable(name.text, read_onnx(data), len(data), "its float32 ONNX export")
