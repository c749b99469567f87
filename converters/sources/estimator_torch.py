"""scikit-learn to ONNX by way of torch: for what skl2onnx does not know.

Decides that hummingbird's torch modules are used and nothing else of it: its own ONNX backend fails with current torch, and
its traced one answers wrongly without a word. That the result is right is checked by `agreement.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeml.errors import BackendError, ConfigError

from ..quiet import first_line, quiet
from .estimator import TRANSLATION_HINT, Answering, Array, Estimator
from .torchscript import export_script


def translate_by_torch(estimator: Estimator, samples: Array) -> bytes:
    """Write an estimator as one ONNX file, output `output`.

    Args:
        estimator: fitted; it gives probabilities or values.
        samples: float32 [2 or more, features].

    Raises:
        BackendError: hummingbird knows no way, or torch cannot export what it made.
    """
    if estimator.answering is Answering.DECISIONS:
        raise BackendError(
            f"hummingbird gives no decision function of {estimator.name}", hint=TRANSLATION_HINT
        )
    with quiet():
        try:
            # The torch backend asks for no sample, so none can be baked into what it makes.
            from hummingbird.ml import convert

            module = convert(estimator.fitted, "torch").model.eval()
        except Exception as error:  # the library raises errors of many kinds
            raise BackendError(
                f"hummingbird cannot convert {estimator.name}: {first_line(error)}", hint=TRANSLATION_HINT
            ) from error
    try:
        return export_script(_one_output(module), np.ascontiguousarray(samples))
    except ConfigError as error:
        raise BackendError(
            f"{estimator.name} as hummingbird writes it cannot be exported: {error.message}",
            hint=TRANSLATION_HINT,
        ) from error


def _one_output(module: Any) -> Any:
    """A module that gives what `module` gives last: of (label, probabilities) the probabilities."""
    import torch

    class Last(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, samples: Any) -> Any:
            found = self.inner(samples)
            return found[-1] if isinstance(found, tuple | list) else found

    return Last().eval()
