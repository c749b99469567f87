"""Whether a model that was translated from another answers as that one did.

Decides the two shares that are looked at, and from where on a translation is refused. Pure arithmetic on arrays. It says
that a translation is faithful, never that a model is good.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeml.errors import BackendError

Array = npt.NDArray[np.generic]

AGREEMENT_MIN: Final = 0.99
CLOSE_MIN: Final = 0.95
TOLERANCE: Final = 1e-3
"""Of the range of the original answers. float32 against float64 is a thousand times less, until a tree's threshold lies between."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Shares of samples: whose highest score is of the same class (1 where there are no classes), whose answers are close."""

    classes: float
    close: float


def agreement_of(answers: Array, original: Array, *, has_classes: bool) -> Agreement:
    """Compare answers [samples, ...] with the original ones.

    Raises:
        BackendError: They have other shapes, so something was lost.
    """
    if answers.shape != original.shape:
        raise BackendError(
            f"the translated model answers with shape {list(answers.shape)}, the original with {list(original.shape)}",
            hint="give the model in another form: file.py:factory, or an .onnx file that you exported yourself",
        )
    flat = answers.reshape(len(answers), -1).astype(np.float64)
    wanted = original.reshape(len(original), -1).astype(np.float64)
    span = float(wanted.max() - wanted.min()) or 1.0
    close = float((np.abs(flat - wanted).max(axis=1) <= TOLERANCE * span).mean())
    classes = float((flat.argmax(axis=1) == wanted.argmax(axis=1)).mean()) if has_classes else 1.0
    return Agreement(classes, close)


def check_agreement(found: Agreement, what: str, *, has_classes: bool) -> tuple[str, ...]:
    """Refuse a translation that answers something else, and warn of one that is a little off.

    With classes, the class decides at AGREEMENT_MIN and scores may be off for few samples; without, answers decide.

    Returns:
        Warnings, for people.

    Raises:
        BackendError: Too few answers agree.
    """
    close_min = CLOSE_MIN if has_classes else AGREEMENT_MIN
    if found.classes < AGREEMENT_MIN or found.close < close_min:
        raise BackendError(
            f"{what} does not answer as the original does: same class for {found.classes:.1%}, close answers for {found.close:.1%} of the samples",
            hint="the translation is wrong for this model and was dropped: give another kind of model, or an .onnx file that you exported yourself",
        )
    if found.close < AGREEMENT_MIN:
        return (
            f"{what} answers {1 - found.close:.1%} of the samples with other scores than the original: float32 falls on the other side of a threshold",
        )
    return ()
