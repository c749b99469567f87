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

from ..quiet import first_line, quiet
from ..recipe import OPSET
from ..steps.onnx_export import strip
from .estimator import Array, Estimator

INPUT: Final = "input"
BATCH_NAME: Final = "batch"
ML_OPSET: Final = 3


def output_name(estimator: Estimator) -> str:
    """Name of the one output."""
    return "scores" if estimator.is_classifier else "output"


def translate(estimator: Estimator, samples: Array) -> bytes:
    """Write an estimator as one ONNX file.

    Args:
        estimator: fitted.
        samples: float32 [1 or more, features]; two of them are run to see the output's shape.

    Raises:
        BackendError: skl2onnx cannot.
    """
    with quiet():
        try:
            proto = _converted(estimator)
        except Exception as error:  # its converters raise errors of many kinds
            raise BackendError(f"skl2onnx cannot convert {estimator.name}: {first_line(error)}") from error
    _keep_one_output(proto, output_name(estimator))
    model = _finished(proto)
    columns = open_session(model, RuntimeFamily.ONNX).run([samples[:2]])[0].shape[-1]
    if estimator.is_classifier and columns == 1:
        _mirror(proto)
        columns = 2
    _state_shapes(proto, columns)
    return _finished(proto)


def _converted(estimator: Estimator) -> Any:
    from skl2onnx import convert_sklearn  # type: ignore[import-untyped]
    from skl2onnx.common.data_types import FloatTensorType  # type: ignore[import-untyped]

    conversions, shapes = _repairs()
    # Without a name of its own the graph gets a random one, and the same estimator other bytes each time.
    settings = {
        "name": "model", "initial_types": [(INPUT, FloatTensorType([None, estimator.width]))], "target_opset": {"": OPSET, "ai.onnx.ml": ML_OPSET},
        "custom_conversion_functions": conversions, "custom_shape_calculators": shapes,
    }  # fmt: skip
    if not estimator.is_classifier:
        return convert_sklearn(estimator.fitted, **settings)
    try:
        return convert_sklearn(estimator.fitted, options={"zipmap": False}, **settings)
    except NameError:
        # Some classifiers never make a map and refuse to be told so.
        return convert_sklearn(estimator.fitted, **settings)


def _repairs() -> tuple[dict[type, Callable[..., None]], dict[type, Any]]:
    """Wrap the converters of boosted histograms, which write booleans where onnx wants integers."""
    from skl2onnx._supported_operators import sklearn_operator_name_map  # type: ignore[import-untyped]
    from skl2onnx.common._registration import get_converter, get_shape_calculator  # type: ignore[import-untyped]
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


def _keep_one_output(proto: Any, name: str) -> None:
    """Keep the last output, under `name`, and drop all that only the others need."""
    graph = proto.graph
    kept = graph.output[-1]
    old = kept.name
    del graph.output[:-1]
    needed = {old}
    nodes = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= _inputs_of(node)
            nodes.append(node)
    stored = [one for one in graph.initializer if one.name in needed]
    del graph.value_info[:]
    _refill(graph.node, nodes[::-1])
    _refill(graph.initializer, stored)
    for node in graph.node:
        _rename(node.output, old, name)
        _rename(node.input, old, name)
    graph.output[0].name = name


def _inputs_of(node: Any) -> set[str]:
    """Names that a node reads, those that its subgraphs take from outside too."""
    found = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                found |= _inputs_of(inner)
            found |= {one.name for one in graph.output}
    return found


def _refill(field: Any, kept: list[Any]) -> None:
    import copy

    copies = [copy.deepcopy(one) for one in kept]
    del field[:]
    field.extend(copies)


def _rename(names: Any, old: str, new: str) -> None:
    for index, name in enumerate(names):
        if name == old:
            names[index] = new


def _mirror(proto: Any) -> None:
    """Make scores of two classes from one decision: its negative, and itself."""
    import onnx

    graph = proto.graph
    name = graph.output[0].name
    for node in graph.node:
        _rename(node.output, name, "decision")
    graph.node.extend(
        [
            onnx.helper.make_node("Neg", ["decision"], ["against"], name="against"),
            onnx.helper.make_node("Concat", ["against", "decision"], [name], name="both", axis=1),
        ]
    )


def _state_shapes(proto: Any, columns: int) -> None:
    for value, sizes in (
        (proto.graph.input[0], [BATCH_NAME, None]),
        (proto.graph.output[0], [BATCH_NAME, columns]),
    ):
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_param = BATCH_NAME
        while len(dims) < len(sizes):
            dims.add()
        if sizes[1] is not None:
            dims[1].dim_value = sizes[1]


def _finished(proto: Any) -> bytes:
    strip(proto)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data
