"""scikit-learn to ONNX by skl2onnx: one input `input`, one output `scores` or `output`.

Decides the converter's settings, the repair of what it writes for boosted histograms, which of its outputs is kept, and
how one decision becomes the scores of two classes. That the result is right is checked by `agreement.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from edgeml.errors import BackendError
from edgeml.manifest import RuntimeFamily
from edgeml.runtime import open_session

from ..opset import OPSET
from ..quiet import first_line, quiet
from ..steps.onnx_export import strip
from .estimator import TRANSLATION_HINT, Answering, Array, Estimator
from .surgery import keep_last_output, mirror_column, number_names, state_shapes, swap_columns, unfold_scalers

INPUT: Final = "input"
ML_OPSET: Final = 3
ORIENTING_SAMPLES: Final = 64


def output_name(estimator: Estimator) -> str:
    """Name of the one output."""
    return "scores" if estimator.is_classifier else "output"


def translate(estimator: Estimator, samples: Array) -> bytes:
    """Write an estimator as one ONNX file.

    Args:
        estimator: fitted.
        samples: float32 [2 or more, features]; some are run to see the shape and the order of the output.

    Raises:
        BackendError: skl2onnx cannot.
    """
    with quiet():
        try:
            proto = _converted(estimator)
        except Exception as error:  # its converters raise errors of many kinds
            raise BackendError(
                f"skl2onnx cannot convert {estimator.name}: {first_line(error)}", hint=TRANSLATION_HINT
            ) from error
    keep_last_output(proto, output_name(estimator))
    first = _run(proto, samples[:ORIENTING_SAMPLES])
    if estimator.is_classifier and estimator.answering is Answering.DECISIONS:
        _orient(proto, first, estimator.answers(samples[:ORIENTING_SAMPLES], "the data"))
    unfold_scalers(proto)
    number_names(proto)
    state_shapes(proto, _run(proto, samples[:2]).shape[-1])
    return _finished(proto)


def _orient(proto: Any, found: Array, wanted: Array) -> None:
    """Bring scores of two classes in the order of the classes: of some estimators skl2onnx writes one, or the wrong way round."""
    if found.shape[-1] == 1 and wanted.shape[-1] == 2:
        mirror_column(proto)
    elif (
        found.shape[-1] == wanted.shape[-1] == 2
        and float(found[:, 1].astype(np.float64) @ wanted[:, 1].astype(np.float64)) < 0
    ):
        swap_columns(proto)


def _run(proto: Any, samples: Array) -> Array:
    return open_session(_finished(proto), RuntimeFamily.ONNX).run([samples])[0]


def _converted(estimator: Estimator) -> Any:
    fitted, width = estimator.fitted, estimator.width
    if not estimator.is_classifier:
        return _by_skl2onnx(fitted, width, None)
    try:
        return _by_skl2onnx(fitted, width, {"zipmap": False})
    except NameError:
        # Some classifiers never make a map, and refuse to be told so; at the end of a pipeline they are told in any case.
        if not hasattr(fitted, "steps"):
            return _by_skl2onnx(fitted, width, None)
    import onnx

    last = fitted.steps[-1][1]
    before = _by_skl2onnx(fitted[:-1], width, None)
    after = onnx.compose.add_prefix(_by_skl2onnx(last, last.n_features_in_, None), "after_")
    between = [(before.graph.output[0].name, after.graph.input[0].name)]
    return onnx.compose.merge_models(before, after, io_map=between)


def _by_skl2onnx(fitted: Any, width: int, options: dict[str, bool] | None) -> Any:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    conversions, shapes = _repairs()
    # Without a name of its own the graph gets a random one, and the same estimator other bytes each time.
    return convert_sklearn(
        fitted, name="model", initial_types=[(INPUT, FloatTensorType([None, width]))], options=options,
        target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET}, custom_conversion_functions=conversions, custom_shape_calculators=shapes,
    )  # fmt: skip


def _repairs() -> tuple[dict[type, Callable[..., None]], dict[type, Any]]:
    """Wrap the converters of boosted histograms, which write booleans where onnx wants integers."""
    from skl2onnx._supported_operators import sklearn_operator_name_map
    from skl2onnx.common._registration import get_converter, get_shape_calculator
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    conversions: dict[type, Callable[..., None]] = {}
    shapes: dict[type, Any] = {}
    for kind in (HistGradientBoostingClassifier, HistGradientBoostingRegressor):
        name = sklearn_operator_name_map[kind]
        conversions[kind] = _with_integers(get_converter(name))
        shapes[kind] = get_shape_calculator(name)
    return conversions, shapes


def _with_integers(convert: Callable[..., None]) -> Callable[..., None]:
    def converted(scope: Any, operator: Any, container: Any) -> None:
        convert(scope, operator, _IntegerContainer(container))

    return converted


class _IntegerContainer:
    """A container of nodes in whose attributes booleans are integers."""

    def __init__(self, container: Any) -> None:
        self._container = container

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def add_node(self, op_type: str, inputs: Any, outputs: Any, **attributes: Any) -> None:
        self._container.add_node(
            op_type, inputs, outputs, **{name: _integers(value) for name, value in attributes.items()}
        )


def _integers(value: Any) -> Any:
    if isinstance(value, list) and any(isinstance(one, bool | np.bool_) for one in value):
        return [int(one) for one in value]
    return value


def _finished(proto: Any) -> bytes:
    strip(proto)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data
