"""Writes small .tflite files, operator by operator, for tests that need one of a known form."""

from dataclasses import dataclass, field

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int8": schema.TensorType.INT8,
    "int16": schema.TensorType.INT16,
    "int32": schema.TensorType.INT32,
}


@dataclass
class File:
    """A file that grows; every tensor is [1, ...] in `dtype`, quantized with one scale if that is int8."""

    dtype: str = "int8"
    tensors: list = field(default_factory=list)
    buffers: list = field(default_factory=lambda: [schema.BufferT()])
    operators: list = field(default_factory=list)
    codes: list = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    inputs: list = field(default_factory=list)

    def tensor(self, shape, *, dtype="", values=None, scales=1, variable=False, signature=None):
        """Add a tensor; it is a constant if it has values."""
        made, dtype = schema.TensorT(), dtype or self.dtype
        made.shape, made.type, made.name = list(shape), TYPES[dtype], f"t{len(self.tensors)}".encode()
        made.shapeSignature, made.isVariable = signature, variable
        if values is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.asarray(values, dtype).tobytes(), np.uint8)
            self.buffers.append(buffer)
            made.buffer = len(self.buffers) - 1
        if self.dtype == "int8" and dtype != "float32" and scales:
            made.quantization = schema.QuantizationParametersT()
            step = (
                0.05 * 0.05 if dtype == "int32" else 0.05
            )  # of a bias: that of the input times that of the weights
            made.quantization.scale, made.quantization.zeroPoint = [step] * scales, [0] * scales
        self.tensors.append(made)
        return len(self.tensors) - 1

    def input(self, shape, **more):
        self.inputs.append(self.tensor(shape, **more))
        return self.inputs[-1]

    def weights(self, shape, scales=1):
        values = (
            self.random.integers(-100, 100, shape) if self.dtype == "int8" else self.random.normal(size=shape)
        )
        return self.tensor(shape, values=values, scales=scales)

    def bias(self, count, scales=1):
        return self.tensor(
            [count],
            dtype="int32" if self.dtype == "int8" else "float32",
            values=np.zeros(count),
            scales=scales,
        )

    def add(self, native, inputs, shape, options=None, kind="", custom=None, **more):
        """Add an operator with one output of this shape; returns the output."""
        number = getattr(schema.BuiltinOperator, native)
        made, code = schema.OperatorT(), schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.customCode = number, min(number, 127), custom
        self.codes.append(code)
        made.opcodeIndex, made.inputs, made.outputs = (
            len(self.codes) - 1,
            list(inputs),
            [self.tensor(shape, **more)],
        )
        if options is not None:
            made.builtinOptions, made.builtinOptionsType = options, getattr(schema.BuiltinOptions, kind)
        self.operators.append(made)
        return made.outputs[0]

    def conv(self, data, shape, kernel=(3, 3), stride=1):
        options = schema.Conv2DOptionsT()
        options.padding, options.strideW, options.strideH = schema.Padding.VALID, stride, stride
        channels = self.tensors[data].shape[-1]
        operands = [
            data,
            self.weights([shape[-1], *kernel, channels], shape[-1]),
            self.bias(shape[-1], shape[-1]),
        ]
        return self.add("CONV_2D", operands, shape, options, "Conv2DOptions")

    def depthwise(self, data, shape, kernel=(3, 3), stride=1):
        options = schema.DepthwiseConv2DOptionsT()
        options.padding, options.depthMultiplier = schema.Padding.VALID, 1
        options.strideW = options.strideH = stride
        weights = self.weights([1, *kernel, shape[-1]], shape[-1])
        self.tensors[weights].quantization.quantizedDimension = 3
        return self.add(
            "DEPTHWISE_CONV_2D",
            [data, weights, self.bias(shape[-1], shape[-1])],
            shape,
            options,
            "DepthwiseConv2DOptions",
        )

    def dense(self, data, outputs, weights=None):
        weights = self.weights([outputs, self.tensors[data].shape[-1]]) if weights is None else weights
        options = schema.FullyConnectedOptionsT()
        return self.add(
            "FULLY_CONNECTED",
            [data, weights, self.bias(outputs)],
            [1, outputs],
            options,
            "FullyConnectedOptions",
        )

    def recurrent(self, data, units, memory=16, state="int16"):
        """Add an SVDF layer, which remembers `memory` requests in a state of this dtype."""
        options = schema.SVDFOptionsT()
        options.rank, options.fusedActivationFunction = 1, schema.ActivationFunctionType.RELU
        times = self.random.integers(-100, 100, (units, memory))
        operands = [
            data,
            self.weights([units, self.tensors[data].shape[-1]]),
            self.tensor([units, memory], dtype=state, values=times),
            self.bias(units),
            self.tensor([1, memory * units], dtype=state, variable=True),
        ]
        return self.add("SVDF", operands, [1, units], options, "SVDFOptions")

    def softmax(self, data):
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        out = self.add("SOFTMAX", [data], self.tensors[data].shape, options, "SoftmaxOptions")
        if self.dtype == "int8":
            self.tensors[out].quantization.scale, self.tensors[out].quantization.zeroPoint = [1 / 256], [-128]
        return out

    def reshape(self, data, shape):
        return self.add(
            "RESHAPE", [data, self.tensor([len(shape)], dtype="int32", values=shape, scales=0)], shape
        )

    def bytes(self, outputs):
        """The file."""
        model, graph = schema.ModelT(), schema.SubGraphT()
        graph.tensors, graph.operators, graph.inputs, graph.outputs = (
            self.tensors,
            self.operators,
            self.inputs,
            list(outputs),
        )
        model.version, model.operatorCodes, model.subgraphs, model.buffers = (
            3,
            self.codes,
            [graph],
            self.buffers,
        )
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def remembering(state="int16"):
    """Five SVDF layers, from [1, 32] to four scores in int8.

    With a state of int8, LiteRT 2.3 and tflite-runtime 2.14 write int16 into it, beyond its end. Most processes die of it, the
    others answer nonsense. TensorFlow Lite Micro is right with both.
    """
    file = File("int8")
    data = file.input([1, 32])
    for _ in range(5):
        data = file.recurrent(data, 96, state=state)
    return file.bytes([file.softmax(file.dense(data, 4))])


def convolutional(dtype="int8"):
    """[1, 8, 8, 3] by a convolution, a depthwise one, a linear layer and a softmax to [1, 5]."""
    file = File(dtype)
    data = file.input([1, 8, 8, 3])
    wide = file.conv(data, [1, 6, 6, 16])
    deep = file.depthwise(wide, [1, 4, 4, 16]) if dtype == "int8" else file.conv(wide, [1, 4, 4, 16])
    return file.bytes([file.softmax(file.dense(file.reshape(deep, [1, 256]), 5))])


def person_detection():
    """The form of TensorFlow Lite Micro's person detection: MobileNet v1 0.25 on [1, 96, 96, 1], with weights of ours."""
    file = File("int8")
    data, size = file.conv(file.input([1, 96, 96, 1]), [1, 48, 48, 8], stride=2), 48
    steps = [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1)]
    for channels, stride in steps:
        size //= stride
        data = file.depthwise(data, [1, size, size, file.tensors[data].shape[-1]], stride=stride)
        data = file.conv(data, [1, size, size, channels], kernel=(1, 1))
    for operator in file.operators:
        operator.builtinOptions.padding = schema.Padding.SAME
    return file.bytes([file.softmax(file.dense(file.reshape(data, [1, 9 * 256]), 2))])
