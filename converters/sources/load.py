"""Loads whatever a name names: one way in for all kinds of sources.

Decides who opens what, and that whatever was translated on the way in is compared with its original before anything is
made of it. How each kind is opened is the business of the file of its name.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeml.errors import BackendError, ConfigError
from edgeml.ids import Digest, digest_of, digest_of_file
from edgeml.manifest import ScoreKind

from ..calibration import spread
from .agreement import agreement_of, check_agreement
from .estimator import TRANSLATION_HINT, Answering, Estimator, estimator_of, is_estimator
from .onnx_file import model_file, read_bounded, read_onnx, with_warnings
from .python_file import call_factory
from .source import ModelFile, Original, Source
from .source_name import SourceKind, SourceName
from .tflite_file import read_tflite
from .torch_file import check_script
from .torch_model import TorchModel, ask, from_module, from_program, read_program
from .untrusted import UntrustedFile

Array = npt.NDArray[np.generic]

COMPARED_MAX: Final = 256
"""Samples by which a translation is compared with its original, taken evenly from those given."""


def load(name: SourceName, samples: Array) -> Source:
    """Load a source.

    Args:
        name: from `parse_source`.
        samples: [2 or more, ...] as the model takes them, by which translations are made and compared.

    Raises:
        ConfigError: It cannot be used as it is, or does not take the samples; the user can fix it.
        ArtifactError: Its content is refused.
        BackendError: It cannot be translated, or its translation answers something else.
        BudgetError: An untrusted file took too much memory.
    """
    few = np.ascontiguousarray(samples[spread(len(samples), COMPARED_MAX)])
    match name.kind:
        case SourceKind.FACTORY:
            return _from_factory(name, few)
        case SourceKind.PROGRAM:
            return read_program(name.path, digest_of_file(name.path))
        case SourceKind.ONNX:
            return read_onnx(name.path)
        case SourceKind.TFLITE:
            return read_tflite(name.path)
        case SourceKind.TORCHSCRIPT | SourceKind.PICKLE:
            return _from_untrusted(name, few)


def _from_factory(name: SourceName, samples: Array) -> Source:
    found = call_factory(name)
    sha256 = digest_of_file(name.path)
    if is_estimator(found):
        return _from_estimator(estimator_of(found, name.text), name.text, sha256, samples)
    # Whoever returns something of torch's has imported it.
    torch = sys.modules.get("torch")
    if torch is not None:
        if isinstance(found, torch.jit.ScriptModule):
            return _from_script(found, name.text, sha256, samples)
        if isinstance(found, torch.export.ExportedProgram):
            return from_program(found, name.text, sha256)
        if isinstance(found, torch.nn.Module):
            return from_module(found, sha256)
    raise ConfigError(
        f"{name.text} returned {type(found).__name__}, which is no model",
        hint="return a torch.nn.Module, an ExportedProgram, a ScriptModule, or a fitted scikit-learn estimator",
    )


def _from_script(module: Any, text: str, sha256: Digest, samples: Array) -> ModelFile:
    from .torchscript import export_script

    original = TorchModel(module.eval(), batch_is_free=True, sha256=sha256)
    answers = ask(original, samples, "the data")
    file = replace(model_file(export_script(original.module, samples), text, sha256), original=original)
    return _compared(file, answers, samples, has_classes=False)


def _from_estimator(estimator: Estimator, text: str, sha256: Digest, samples: Array) -> ModelFile:
    answers = estimator.answers(samples, "the data")
    file = model_file(_translate(estimator, samples), text, sha256)
    told = replace(file, original=estimator, labels=estimator.labels, scores=estimator.scores)
    return _compared(told, answers, samples, has_classes=estimator.is_classifier)


def _translate(estimator: Estimator, samples: Array) -> bytes:
    from .estimator_onnx import translate

    try:
        return translate(estimator, samples)
    except BackendError as error:
        if estimator.answering is Answering.DECISIONS:
            raise
        from .estimator_torch import translate_by_torch

        try:
            return translate_by_torch(estimator, samples)
        except BackendError as second:
            raise BackendError(
                f"{error.message}; {second.message}",
                hint=TRANSLATION_HINT,
            ) from second


def _from_untrusted(name: SourceName, samples: Array) -> ModelFile:
    content = read_bounded(name.path)
    if name.kind is SourceKind.TORCHSCRIPT:
        check_script(content, name.text)
    original: Original = (untrusted := UntrustedFile(content, name.text, name.kind))
    opened = untrusted.convert(samples)
    file = replace(
        model_file(opened.model, name.text, digest_of(content)),
        original=original,
        labels=opened.labels,
        scores=opened.scores,
    )
    file = with_warnings(file, (untrusted.warning, *opened.warnings))
    classifies = opened.scores in {ScoreKind.PROBABILITIES, ScoreKind.LOGITS}
    return _compared(file, opened.answers, samples, has_classes=classifies)


def _compared(file: ModelFile, original: Array, samples: Array, *, has_classes: bool) -> ModelFile:
    found = agreement_of(file.file_answers(samples, "the data"), original, has_classes=has_classes)
    return with_warnings(file, check_agreement(found, f"{file.made_from} as ONNX", has_classes=has_classes))
