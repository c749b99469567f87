"""Names in a .tflite file that came from torch: the paths of its modules, instead of classes and of the converter's own.

Decides what each tensor of the file is called: `features.0.conv` for what a layer answers, `features.0.conv.weight` for
its weights. Names are all by which a person, a recipe's `float_layers` and an explanation can point at a layer; the
converter's are longer than the weights of a small one. Works on the file's own schema, without running it.
"""

from __future__ import annotations

import re
from typing import Any, Final

from .tflite_schema import operator_names, pack, unpack

_WEIGHED: Final = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D"})
_PARTS: Final = ("", "weight", "bias")
"""Names of the inputs of an operator with weights."""
_NUMBER: Final = re.compile(r"\d+$")


def rename(model: bytes, input_name: str, output_name: str) -> bytes:
    """Name a converted model's tensors after its modules, and what it takes and gives as told.

    Args:
        model: a .tflite file with one subgraph, one input and one output, written by litert-torch.
        input_name: name of its input.
        output_name: name of its output.

    Raises:
        ValueError: The file has more than one subgraph, input or output.
    """
    root = unpack(model)
    if len(root.subgraphs) != 1 or len(root.subgraphs[0].inputs) != 1 or len(root.subgraphs[0].outputs) != 1:
        raise ValueError("only models with one input and one output can be converted")
    graph = root.subgraphs[0]
    names = _names(graph, operator_names(root))
    names[graph.inputs[0]], names[graph.outputs[0]] = input_name, output_name
    for tensor, name in zip(
        graph.tensors, distinct(names, frozenset({input_name, output_name})), strict=True
    ):
        tensor.name = name.encode()
    for signature in root.signatureDefs or ():
        signature.inputs[0].name, signature.outputs[0].name = input_name.encode(), output_name.encode()
    return pack(root)


def _names(graph: Any, kinds: list[str]) -> list[str]:
    names = ["constant"] * len(graph.tensors)
    for operator in graph.operators:
        kind = kinds[operator.opcodeIndex]
        if kind in _WEIGHED:
            # The weights' own name ends with the module that holds them; the answer's begins with what was fused to it.
            layer = _path(graph.tensors[operator.inputs[1]].name, -1) or kind.lower()
            for index, part in zip(operator.inputs[1:], _PARTS[1:], strict=False):
                if index >= 0:
                    names[index] = f"{layer}.{part}"
        else:
            scope = _path(graph.tensors[operator.outputs[0]].name, 0)
            layer = f"{scope}.{kind.lower()}" if scope else kind.lower()
        for index in operator.outputs:
            names[index] = layer
    return names


def _path(name: bytes | None, which: int) -> str:
    """Read the module's path from one of a tensor's names.

    >>> _path(b"a.Wrapper/x.Unflattened_wrapped/x.Inner_l1/x.Inner_c1;;a.Wrapper/x.Unflattened_wrapped;2", 0)
    'l1.c1'
    """
    places = [one for one in _NUMBER.sub("", (name or b"").decode("utf-8", "replace")).split(";") if one]
    if not places:
        return ""
    steps = [step.rpartition(".")[2].partition("_")[2] for step in places[which].split("/")]
    return ".".join(step for step in steps if step and step != "wrapped")


def distinct(names: list[str], kept: frozenset[str] = frozenset()) -> list[str]:
    """Number the names that occur more than once, in order; those that are `kept` occur once and stay.

    >>> distinct(["add", "add", "input"], frozenset({"input"}))
    ['add', 'add_2', 'input']
    """
    taken = set(kept)
    result = []
    for name in names:
        candidate, number = name, 1
        while candidate in taken and name not in kept:
            number += 1
            candidate = f"{name}_{number}"
        taken.add(candidate)
        result.append(candidate)
    return result
