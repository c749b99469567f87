"""Which layer of a .tflite file loses the accuracy: as `sensitivity.py`, for the other family.

Decides what is believed of the process that quantizes and runs the layers (`steps/scan_child.py`): its answers are scored
here, by the same judge as candidates. That ranks layers on LiteRT's kernels; what a mixture of layers is worth on the
device's own runtime is verified as for every candidate.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Final

import numpy as np

from edgeml.child import ChildLimits
from edgeml.errors import BackendError

from ..calibration import spread
from ..errand import Errand
from ..feed import channels_to
from ..recipe import Layout, StaticInteger
from ..sources.torch_model import Array
from ..steps.quantize_child import SAMPLES, SOURCE
from ..steps.scan_child import ANSWERS, TRIAL, ScanReport, ScanRequest
from .sensitivity import LayerSensitivity, Trial

LIMITS: Final = ChildLimits(timeout_s=300.0, threads=1, memory_bytes=8 << 30)
_ERRAND: Final = Errand("converters.steps.scan_child", "told the model's layers apart", LIMITS)


def scan_tflite(
    plain: bytes, calibration: Array, step: StaticInteger, trial: Trial, layout: Layout
) -> tuple[LayerSensitivity, ...]:
    """Quantize each layer of a float .tflite file alone and score the model; the worst layer comes first.

    Args:
        plain: the float file, with one input and one output.
        calibration: samples [n, ...] as the source takes them.
        step: how layers are quantized; its `float_layers` are looked at as well.
        trial: evaluation samples as the source takes them, and who scores.
        layout: how the file takes images.

    Raises:
        BackendError: A layer cannot be quantized or run, or the process died, hung or wrote garbage.
        BudgetError: It took too much memory.
    """
    with tempfile.TemporaryDirectory(prefix="edgeml-scan-") as name:
        folder = Path(name)
        (folder / SOURCE).write_bytes(plain)
        shown = channels_to(calibration[spread(len(calibration))], layout)
        for file, samples in ((SAMPLES, shown), (TRIAL, channels_to(trial.samples, layout))):
            np.save(folder / file, np.ascontiguousarray(samples), allow_pickle=False)
        report = _ERRAND.run(folder, ScanRequest(step, LIMITS.timeout_s), ScanReport)
        answers = _read(folder, report, len(trial.samples))
    baseline = trial.score(answers[0]).value
    found = []
    for row, given in zip(report.rows, answers[1:], strict=True):
        score = trial.score(given)
        found.append(
            LayerSensitivity(
                row.layer, row.operator, row.parameters, baseline - score.value, score.agreement, row.sqnr_db,
                row.weight_low, row.weight_high, row.activation_low, row.activation_high,
            )
        )  # fmt: skip
    return tuple(sorted(found, key=lambda one: one.harm))


def _read(folder: Path, report: ScanReport, samples: int) -> Array:
    """Read what the process left; nothing that it says is believed before it is checked."""
    try:
        answers: Array = np.load(folder / ANSWERS, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _ERRAND.garbage() from error
    numbers = [
        number for row in report.rows for number in (row.sqnr_db, row.activation_low, row.activation_high)
    ]
    if answers.shape[:2] != (len(report.rows) + 1, samples) or answers.dtype != np.float32:
        raise BackendError(f"the process that {_ERRAND.deed} left answers of another shape")
    if not np.isfinite(answers).all() or not all(map(math.isfinite, numbers)):
        raise BackendError("a model with one quantized layer answers with NaN or infinity")
    return answers
