"""A float .tflite network for the digits, written with the format's own schema: no exporter has a hand in it.

Convolution, depthwise convolution, pointwise convolution with weights that were drawn, a linear layer that was fitted.
"""

import functools
from dataclasses import dataclass

import numpy as np

WIDTH = 12


@dataclass(frozen=True)
class DigitsNet:
    """A model of [1, 8, 8, 1] and samples; `accuracy` is the float model's, by arithmetic."""

    model: bytes
    calibration: np.ndarray
    samples: np.ndarray
    labels: np.ndarray
    accuracy: float


class Writer:
    """Collects tensors and operators of one subgraph."""

    def __init__(self):
        from ai_edge_litert import schema_py_generated as schema

        self.schema, self.graph, self.model = schema, schema.SubGraphT(), schema.ModelT()
        self.graph.tensors, self.graph.operators = [], []
        self.model.buffers, self.model.operatorCodes = [schema.BufferT()], []

    def tensor(self, name, shape, data=None):
        made = self.schema.TensorT()
        made.name, made.shape, made.buffer = name.encode(), list(shape), 0
        made.type = self.schema.TensorType.FLOAT32
        if data is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            made.type = getattr(self.schema.TensorType, data.dtype.name.upper())
            made.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def operator(self, kind, inputs, output, options):
        code, made = self.schema.OperatorCodeT(), self.schema.OperatorT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(self.schema.BuiltinOperator, kind)
        code.version = 1
        made.opcodeIndex = len(self.model.operatorCodes)
        made.inputs, made.outputs = inputs, [output]
        made.builtinOptions = options
        made.builtinOptionsType = getattr(
            self.schema.BuiltinOptions, type(options).__name__.removesuffix("T")
        )
        self.model.operatorCodes.append(code)
        self.graph.operators.append(made)

    def bytes(self, inputs, outputs):
        from converters.steps.tflite_schema import pack

        self.graph.inputs, self.graph.outputs = inputs, outputs
        self.model.version, self.model.subgraphs = 3, [self.graph]
        return pack(self.model)


def convolutions():
    """Weights as torch has them, [out, in, height, width], and biases."""
    generator = np.random.default_rng(3)
    shapes = [(WIDTH, 1, 3, 3), (WIDTH, 1, 3, 3), (2 * WIDTH, WIDTH, 1, 1)]
    return [
        (
            generator.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32),
            generator.normal(0, 0.1, shape[0]).astype(np.float32),
        )
        for shape in shapes
    ]


def features(images):
    """What the convolutions make of [samples, 8, 8, 1]: [samples, 4 * 4 * 2 * WIDTH]."""
    (first, first_bias), (second, second_bias), (third, third_bias) = convolutions()
    value = np.maximum(np.einsum("nhwcyx,ocyx->nhwo", windows(images), first, optimize=True) + first_bias, 0)
    seen = windows(value)[:, ::2, ::2]
    value = np.maximum(np.einsum("nhwcyx,cyx->nhwc", seen, second[:, 0], optimize=True) + second_bias, 0)
    value = np.maximum(value @ third[:, :, 0, 0].T + third_bias, 0)
    return value.reshape(len(images), -1)


def windows(value):
    """The 3 by 3 places around each of [samples, height, width, channels], zeros outside."""
    padded = np.pad(value, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))


@functools.cache
def digits_net():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[..., None]
    taught, kept = slice(0, 1200), slice(1200, 1600)
    rows = np.hstack([features(images[taught]), np.ones((1200, 1), np.float32)]).astype(np.float64)
    wanted = 2.0 * np.eye(10)[digits.target[taught]] - 1
    fitted = np.linalg.solve(rows.T @ rows + np.eye(rows.shape[1]), rows.T @ wanted).astype(np.float32)
    scores = features(images[kept]) @ fitted[:-1] + fitted[-1]
    return DigitsNet(
        written(np.ascontiguousarray(fitted[:-1].T), fitted[-1]),
        images[taught][:100],
        images[kept],
        digits.target[kept],
        float((scores.argmax(1) == digits.target[kept]).mean()),
    )


def written(coefficients, intercept):
    writer = Writer()
    schema, relu = writer.schema, writer.schema.ActivationFunctionType.RELU
    (first, first_bias), (second, second_bias), (third, third_bias) = convolutions()
    image = writer.tensor("image", (1, 8, 8, 1))
    value = writer.tensor("stem", (1, 8, 8, WIDTH))
    options = schema.Conv2DOptionsT()
    options.padding, options.strideH, options.strideW = schema.Padding.SAME, 1, 1
    options.dilationHFactor = options.dilationWFactor = 1
    options.fusedActivationFunction = relu
    weights = writer.tensor("stem.weight", (WIDTH, 3, 3, 1), first.transpose(0, 2, 3, 1))
    bias = writer.tensor("stem.bias", (WIDTH,), first_bias)
    writer.operator("CONV_2D", [image, weights, bias], value, options)

    # Every second place of a padded convolution of stride one: a stride of two with padding in front alone.
    deep = schema.DepthwiseConv2DOptionsT()
    deep.padding, deep.strideH, deep.strideW, deep.depthMultiplier = schema.Padding.VALID, 2, 2, 1
    deep.dilationHFactor = deep.dilationWFactor = 1
    deep.fusedActivationFunction = relu
    padding = writer.tensor("padding", (4, 2), np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32))
    padded, spread = writer.tensor("pad", (1, 10, 10, WIDTH)), writer.tensor("depthwise", (1, 4, 4, WIDTH))
    writer.operator("PAD", [value, padding], padded, schema.PadOptionsT())
    weights = writer.tensor("depthwise.weight", (1, 3, 3, WIDTH), second.transpose(1, 2, 3, 0))
    bias = writer.tensor("depthwise.bias", (WIDTH,), second_bias)
    writer.operator("DEPTHWISE_CONV_2D", [padded, weights, bias], spread, deep)

    mixed = writer.tensor("pointwise", (1, 4, 4, 2 * WIDTH))
    weights = writer.tensor("pointwise.weight", (2 * WIDTH, 1, 1, WIDTH), third.transpose(0, 2, 3, 1))
    bias = writer.tensor("pointwise.bias", (2 * WIDTH,), third_bias)
    writer.operator("CONV_2D", [spread, weights, bias], mixed, options)

    flat, scores = writer.tensor("flat", (1, 32 * WIDTH)), writer.tensor("scores", (1, 10))
    shape = writer.tensor("shape", (2,), np.array([1, 32 * WIDTH], np.int32))
    writer.operator("RESHAPE", [mixed, shape], flat, schema.ReshapeOptionsT())
    weights = writer.tensor("scores.weight", coefficients.shape, coefficients)
    bias = writer.tensor("scores.bias", intercept.shape, intercept)
    writer.operator("FULLY_CONNECTED", [flat, weights, bias], scores, schema.FullyConnectedOptionsT())
    return writer.bytes([image], [scores])
