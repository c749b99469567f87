"""Makes what recipes say, and keeps every step's result so that others can go on from it.

Decides which step's result another recipe can share, and what a result depends on: the source, the data, the steps and the
libraries. What each step does is its own file's business, in `steps/`. What a recipe makes is the same bytes each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np

from edgeml.errors import ConfigError
from edgeml.ids import Digest
from edgeml.manifest import RuntimeFamily

from .array_file import Array
from .dataset import Dataset
from .feed import channels_to
from .provenance import CONVERSION_LIBRARIES, libraries, made_by
from .recipe import Export, Prune, QuantizationAwareTraining, Recipe, Student, TrainingStep
from .sources.source import ModelFile, Source
from .sources.torch_model import TorchModel
from .steps import onnx_quantize
from .steps.cost import Cost
from .steps.distill import Race
from .steps.litert_export import export_tflite
from .steps.litert_quantize import quantize_tflite
from .steps.onnx_compact import compact
from .steps.onnx_export import export_onnx
from .steps.onnx_lower import lower
from .steps.prune import prune
from .steps.qat import train_quantized
from .steps.student import teach
from .steps.torchscript_export import export_torchscript
from .steps.training_data import prepare
from .store import Key, Store, key_of

FORM: Final = 6
"""Changed when a step gives other bytes for the same settings, so that nothing older is taken for it."""
OnFraction = Callable[[float], None]


@dataclass(slots=True)
class Workshop:
    """Makes the results of recipes from one source with one data set.

    `fingerprint` tells the source from every other one. Its file does not: a factory may load weights that lie beside it.
    `students` says where the factory of each student lies, for no recipe names a directory.
    """

    source: Source
    fingerprint: Digest
    data: Dataset
    store: Store
    output: str
    students: Mapping[Student, str] = field(default_factory=dict)
    on_fraction: OnFraction = lambda _: None
    _trained: dict[tuple[TrainingStep, ...], TorchModel] = field(default_factory=dict)
    _made_by: dict[Export, tuple[str, ...]] = field(default_factory=dict)
    _libraries: tuple[str, ...] = field(default_factory=lambda: libraries(CONVERSION_LIBRARIES))

    def make(self, recipe: Recipe) -> bytes:
        """Return a recipe's model file.

        Raises:
            ConfigError: The source or the data are not what a step needs.
            BackendError: A library cannot do it.
        """
        return self._kept(self.key(recipe), lambda: self._compressed(recipe))

    def key(self, recipe: Recipe) -> Key:
        """Name everything that a recipe's result depends on."""
        by = self.made_by(recipe.export)
        return key_of("model", FORM, self.fingerprint, self.data.sha256, self.output, recipe, by)

    def made_by(self, export: Export) -> tuple[str, ...]:
        """Name the libraries that have a hand in what is exported so."""
        if export not in self._made_by:
            self._made_by[export] = made_by(export, is_torch=isinstance(self.source, TorchModel))
        return self._made_by[export]

    def _kept(self, key: Key, make: Callable[[], bytes]) -> bytes:
        found = self.store.get(key)
        if found is None:
            found = make()
            self.store.put(key, found)
        return found

    def prepared(self, export: Export, training: tuple[TrainingStep, ...] = ()) -> bytes:
        """Return an exported ONNX file as its quantizers want it.

        Raises:
            ConfigError: As `make`.
            BackendError: As `make`.
        """
        key = key_of("prepared", self.key(Recipe(export, training)))
        return self._kept(key, lambda: onnx_quantize.prepare(self._export(export, training)))

    def _compressed(self, recipe: Recipe) -> bytes:
        if recipe.compression is None:
            exported = self._export(recipe.export, recipe.training)
            is_theirs = isinstance(self.source, ModelFile) and self.source.original is None
            is_ours = recipe.family is RuntimeFamily.ONNX and not is_theirs
            return compact(exported) if is_ours else exported
        samples = self.data.calibration_x
        if recipe.family is RuntimeFamily.ONNX:
            return onnx_quantize.quantize(
                self.prepared(recipe.export, recipe.training), samples, recipe.compression
            )
        plain = self.make(Recipe(recipe.export, recipe.training))
        return quantize_tflite(plain, channels_to(samples, recipe.export.layout), recipe.compression)

    def note(self, recipe: Recipe) -> str:
        """What is to be said of how a recipe's result was trained; empty where it was not."""
        found = self.store.get(self._note_key(recipe.training)) if recipe.training else None
        return "" if found is None else found.decode()

    def _export(self, export: Export, training: tuple[TrainingStep, ...]) -> bytes:
        """Return the model as its exporter writes it: with names that its source's layers have."""
        key = key_of("export", self.key(Recipe(export, training)))
        return self._kept(key, lambda: self._exported(export, training))

    def _exported(self, export: Export, training: tuple[TrainingStep, ...]) -> bytes:
        if isinstance(self.source, ModelFile):
            return lower(self.source.model, export.opset) if export.opset else self.source.model
        assert isinstance(self.source, TorchModel)
        model = self._model(self.source, training)
        if export.family is RuntimeFamily.ONNX:
            exported = export_onnx(model, self.data.calibration_x, self.output)
            return lower(exported, export.opset) if export.opset else exported
        if export.family is RuntimeFamily.TORCHSCRIPT:
            return export_torchscript(model, self.data.calibration_x, self.output)
        return export_tflite(model, self.data.calibration_x, self.output, export.layout)

    def _model(self, source: TorchModel, training: tuple[TrainingStep, ...]) -> TorchModel:
        if not training:
            return source
        if training not in self._trained:
            before = self._model(source, training[:-1])
            self._trained[training], note = self._train(before, training[-1])
            self.store.put(self._note_key(training), note.encode())
        return self._trained[training]

    def _note_key(self, training: tuple[TrainingStep, ...]) -> Key:
        return key_of("note", FORM, self.fingerprint, self.data.sha256, training, self._libraries)

    def _train(self, model: TorchModel, step: TrainingStep) -> tuple[TorchModel, str]:
        given = self.data.training
        if given is None:
            raise ConfigError(
                "the data have no train_x and train_y", hint="add them to the .npz: training steps need them"
            )
        data = prepare(model, given.x, given.y)
        match step:
            case Prune():
                pruned = prune(model, step, data, self.on_fraction)
                return pruned.model, f"{_cost(pruned.before, pruned.after)}; {_race(pruned.race)}"
            case Student():
                placed = msgspec.structs.replace(step, factory=self.students.get(step, step.factory))
                taught = teach(model, placed, data, self.on_fraction)
                return taught.model, f"{_cost(taught.before, taught.after)}; {_race(taught.race)}"
            case QuantizationAwareTraining():
                accustomed = train_quantized(model, step, data, self.on_fraction)
                return accustomed.model, _race(accustomed.race)


def fingerprint_of(source: Source, answers: Array) -> Digest:
    """Tell a source from every other one: by the file that was named, its answers [samples, ...] and what is exported.

    The last is its weights or, of what has become a file already, that file: what a factory makes depends on more than its
    own file.
    """
    found = hashlib.sha256(source.sha256.encode())
    found.update(np.ascontiguousarray(answers).tobytes())
    if isinstance(source, ModelFile):
        found.update(source.model)
    if isinstance(source, TorchModel):
        for name, value in sorted(source.module.state_dict().items()):
            found.update(f"{name} ".encode())
            for piece in _content(value):
                found.update(piece)
    return Digest(found.hexdigest())


def _content(value: Any) -> Iterator[bytes]:
    """Write what a module's state holds: tensors of any type, of which numpy has not all, or what a module keeps beside them."""
    import torch

    match value:
        case torch.Tensor():
            yield f"{value.dtype} {tuple(value.shape)}".encode()
            plain = value.detach().cpu().to_dense()
            plain = plain.dequantize() if plain.is_quantized else plain.resolve_conj().resolve_neg()
            yield plain.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        case np.ndarray():
            yield f"{value.dtype} {value.shape}".encode()
            yield value.tobytes()
        case Mapping():
            yield f"{len(value)} names".encode()
            for name, held in value.items():
                yield repr(name).encode()
                yield from _content(held)
        case list() | tuple():
            yield f"{len(value)} values".encode()
            for held in value:
                yield from _content(held)
        case _:
            yield repr(value).encode()


def _cost(before: Cost, after: Cost) -> str:
    return f"{after.macs / before.macs:.0%} of the MACs, {after.parameters / before.parameters:.0%} of the parameters"


def _race(race: Race) -> str:
    """Say what the training tried on one budget, and what was kept."""
    tried = ", ".join(f"{run.teaching.value} {run.score.value:.4f}" for run in race.runs)
    return f"trained: {tried} on {race.held_out} held-out samples; {race.kept.value} kept"
