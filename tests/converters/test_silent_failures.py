"""Recipes that convert without a word and answer at chance level, each on the runtime that a device has.

The table of known_wrong.py is held against each runtime, both ways: what it refuses is wrong, what it lets through is
right. And what is wrong is caught by its numbers alone, without the table.
"""

import numpy as np
import pytest

from converters.interpreters import place_of
from converters.known_wrong import refusal
from converters.quiet import quiet
from converters.recipe import (
    Activations,
    Boundary,
    DynamicInt8,
    Export,
    Float16,
    Granularity,
    Layers,
    Recipe,
    StaticInteger,
    WeightOnly,
)
from converters.select import Floor
from converters.steps.quantize_child import _quantize
from converters.steps.tflite_schema import unpack
from edgeml.errors import BackendError
from edgeml.guest import Guest
from edgeml.kernels import quantise
from edgeml.manifest import RuntimeFamily
from edgeml.probe import probe
from edgeml.profile import DeviceRuntime

from .guests import needs, python_of
from .tflite_net import digits_net

pytestmark = pytest.mark.processes
LITERT, OLD = DeviceRuntime.AI_EDGE_LITERT, DeviceRuntime.TFLITE_RUNTIME
MICRO = DeviceRuntime.TFLITE_MICRO
ALL, CHANNEL, TENSOR = Layers.ALL, Granularity.CHANNEL, Granularity.TENSOR
STEPS = [
    None,
    Float16(),
    WeightOnly(8),
    WeightOnly(4),
    StaticInteger(Activations.INT8),
    StaticInteger(Activations.INT8, boundary=Boundary.FLOAT),
    StaticInteger(Activations.INT16),
    DynamicInt8(),
    DynamicInt8(ALL),
    DynamicInt8(linear=CHANNEL),
    DynamicInt8(ALL, linear=CHANNEL),
    DynamicInt8(ALL, convolution=TENSOR),
    DynamicInt8(ALL, bits=4),
    DynamicInt8(ALL, linear=CHANNEL, bits=4),
]
RECIPES = [Recipe(Export(RuntimeFamily.TFLITE), (), step) for step in STEPS]
WRONG_BELOW = 0.5
"""Chance is 0.1. Not less than this, for convolutions with one scale read past it: their answers change from run to run."""
SILENT = {
    ("tflite-dynamic8-convolution-per-tensor", LITERT): WRONG_BELOW,
    ("tflite-dynamic8-convolution-per-tensor", OLD): WRONG_BELOW,
    ("tflite-dynamic8-linear-per-channel", OLD): WRONG_BELOW,
    ("tflite-dynamic8-linear-linear-per-channel", OLD): WRONG_BELOW,
    ("tflite-dynamic4", OLD): WRONG_BELOW,
    ("tflite-dynamic4-linear-per-channel", OLD): WRONG_BELOW,
    ("tflite-weights8", MICRO): 0.8,
}
"""Seven pairs that end well, say nothing, and are wrong, with what they stay below: the last is not even near chance."""
NOT_LOADED = {("tflite-weights4", OLD), ("tflite-weights4", MICRO), ("tflite-fp16", MICRO)} | {
    (one.name, MICRO) for one in RECIPES if isinstance(one.compression, DynamicInt8)
}
"""Pairs that say so."""
RUNTIMES = [
    LITERT,
    pytest.param(OLD, marks=needs(Guest.TFLITE_RUNTIME)),
    pytest.param(MICRO, marks=needs(Guest.TFLITE_MICRO)),
]


def quantized(net, step):
    with quiet():
        return _quantize(net.model, net.calibration, step)


@pytest.fixture(scope="module")
def made():
    """Model bytes by recipe, each made once; here, for the model is our own."""
    net = digits_net()
    return {
        one.name: net.model if one.compression is None else quantized(net, one.compression) for one in RECIPES
    }


@pytest.fixture(autouse=True)
def _guests(monkeypatch):
    for guest in (Guest.TFLITE_RUNTIME, Guest.TFLITE_MICRO):
        monkeypatch.setenv(guest.variable, str(python_of(guest)))


def accuracy(model, runtime):
    """The share of right answers on the runtime itself, in a child process."""
    net, place = digits_net(), place_of(runtime)
    [graph] = unpack(model).subgraphs
    taken, samples = graph.tensors[graph.inputs[0]], net.samples
    if taken.type != 0:
        scale, zero_point = taken.quantization.scale[0], taken.quantization.zeroPoint[0]
        samples = quantise(samples, scale, zero_point, np.dtype({9: "int8", 7: "int16"}[taken.type]))
    result = probe(model, RuntimeFamily.TFLITE, [samples], place=place)
    assert result.runtime.startswith(runtime.value)
    return float((result.answers[0].argmax(1) == net.labels).mean())


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda one: one.name)
def test_what_a_recipe_answers_on_a_runtime_is_what_the_table_says(recipe, runtime, made):
    net = digits_net()
    floor = Floor("accuracy", net.accuracy, 0.05)
    if (recipe.name, runtime) in NOT_LOADED:
        assert refusal(recipe, runtime)
        with pytest.raises(BackendError, match="cannot load"):
            accuracy(made[recipe.name], runtime)
        return
    value = accuracy(made[recipe.name], runtime)
    if (recipe.name, runtime) in SILENT:
        assert value < SILENT[recipe.name, runtime]
        assert not floor.holds(value)
        assert refusal(recipe, runtime)
    else:
        assert floor.holds(value), value
        assert not refusal(recipe, runtime)


def test_the_float_model_is_good_enough_to_tell():
    assert digits_net().accuracy > 0.85
