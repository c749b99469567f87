"""C++ source for TensorFlow Lite Micro: it compiles, holds the file byte for byte, and is refused where the chip would fail."""

import json
import re
import shutil
import subprocess

import pytest
from ai_edge_litert import schema_py_generated as schema

from converters.estimate.tflite_graph import read_tflite
from converters.steps.c_source import OPERATORS, refusals, write_c_source
from edgeml.errors import BackendError
from edgeml.guest import Guest

from .guests import needs, python_of
from .tflite_file import File, convolutional

COMPILER = shutil.which("g++") or shutil.which("clang++")
compiles = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
MODEL = convolutional()


def written(folder, source):
    (folder / f"{source.name}.h").write_text(source.header)
    (folder / f"{source.name}.cc").write_text(source.source)
    return folder / f"{source.name}.cc"


def checked(folder, file, *more):
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{folder}", *more]
    return subprocess.run([COMPILER, *flags, file], check=False, capture_output=True, text=True, cwd=folder)


@compiles
@pytest.mark.parametrize("name", ["digits", "Wake-Word 2.0", "2fast", "class"])
def test_it_compiles_without_tensorflow_lite_micro(name, tmp_path):
    done = checked(tmp_path, written(tmp_path, write_c_source(MODEL, name)), "-fsyntax-only")
    assert done.returncode == 0, done.stderr


@compiles
def test_a_program_reads_the_file_back_byte_for_byte(tmp_path):
    source = write_c_source(MODEL, "net")
    file = written(tmp_path, source)
    main = tmp_path / "main.cc"
    main.write_text(
        '#include <cstdio>\n#include "net_model.h"\nint main() {\n'
        "  static_assert(net_model::kInput0Elements == 192);\n"
        "  static_assert(sizeof(net_model::Input0Type) == 1 && net_model::kInput0ZeroPoint == 0);\n"
        "  static_assert(net_model::kInput0Shape[3] == 3 && net_model::kOutput0ZeroPoint == -128);\n"
        "  static_assert(net_model::kOutput0Scale == 1.0F / 256);\n"
        "  if (reinterpret_cast<std::uintptr_t>(net_model::kData) % 16) return 1;\n"
        "  return std::fwrite(net_model::kData, 1, net_model::kLengthBytes, stdout) != net_model::kLengthBytes;\n}\n"
    )
    done = checked(tmp_path, file, main, "-o", tmp_path / "program")
    assert done.returncode == 0, done.stderr
    assert subprocess.run([tmp_path / "program"], check=True, capture_output=True).stdout == MODEL


@compiles
def test_the_resolver_compiles_against_a_header_of_that_form(tmp_path):
    """The real header needs the whole of TensorFlow; this one declares the same functions and nothing else."""
    declared = "\n".join(f"  TfLiteStatus {function}();" for function in sorted(set(OPERATORS.values())))
    header = tmp_path / "tensorflow/lite/micro/micro_mutable_op_resolver.h"
    header.parent.mkdir(parents=True)
    header.write_text(
        "#pragma once\nenum TfLiteStatus { kTfLiteOk, kTfLiteError };\nnamespace tflite {\n"
        f"template <unsigned int count>\nclass MicroMutableOpResolver {{\n public:\n{declared}\n}};\n}}\n"
    )
    file = written(tmp_path, write_c_source(MODEL, "net"))
    assert checked(tmp_path, file, "-fsyntax-only").returncode == 0
    assert (
        "AddOperators"
        in subprocess.run(
            [COMPILER, "-E", f"-I{tmp_path}", file], check=True, capture_output=True, text=True
        ).stdout.partition("kData[kLengthBytes] = {")[2]
    )


def test_exactly_the_models_operators_are_added():
    source = write_c_source(MODEL, "net")
    assert source.operators == ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "RESHAPE", "SOFTMAX")
    assert re.findall(r"resolver\.(\w+)\(", source.source) == [
        "AddConv2D", "AddDepthwiseConv2D", "AddFullyConnected", "AddReshape", "AddSoftmax",
    ]  # fmt: skip
    assert "MicroMutableOpResolver<5>" in source.header
    assert f"kArenaSuggestedBytes = {source.arena.suggested_bytes};" in source.header


def test_same_file_same_source():
    assert write_c_source(MODEL, "net") == write_c_source(MODEL, "net")


def test_names_in_the_file_are_not_written_into_the_source():
    file = File("int8")
    data = file.input([1, 4])
    file.tensors[data].name = b"*/\n#error injected\n/*"
    source = write_c_source(file.bytes([file.dense(data, 3)]), "net")
    assert "injected" not in source.header + source.source


@pytest.mark.parametrize(
    ("native", "function"),
    [
        ("CONV_2D", "AddConv2D"), ("PADV2", "AddPadV2"), ("L2_POOL_2D", "AddL2Pool2D"), ("SVDF", "AddSvdf"),
        ("BATCH_TO_SPACE_ND", "AddBatchToSpaceNd"), ("UNIDIRECTIONAL_SEQUENCE_LSTM", "AddUnidirectionalSequenceLSTM"),
        ("CIRCULAR_BUFFER", "AddCircularBuffer"), ("RELU6", "AddRelu6"), ("SELECT_V2", "AddSelectV2"),
    ],
)  # fmt: skip
def test_functions_are_called_as_the_resolver_calls_them(native, function):
    assert OPERATORS[native] == function


def test_every_operator_exists_in_the_schema_or_is_a_custom_one():
    known = {name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    assert {native for native in OPERATORS if native.isupper()} - known == {"CIRCULAR_BUFFER"}


def hybrid():
    file = File("float32")
    data = file.input([1, 4])
    return file.bytes([file.dense(data, 3, file.tensor([3, 4], dtype="int8", values=[[1] * 4] * 3))])


def unknown():
    file = File("float32")
    return file.bytes([file.add("GELU", [file.input([1, 4])], [1, 4])])


def custom():
    file = File("float32")
    return file.bytes([file.add("CUSTOM", [file.input([1, 4])], [1, 4], custom=b"FlexErf")])


def free():
    file = File("float32")
    return file.bytes([file.add("RELU", [file.input([1, 1, 4], signature=[1, -1, 4])], [1, 1, 4])])


def stored_by_channel():
    """Float weights stored as int8 with a scale a channel: 4, 40 and 400 on LiteRT, 4, 4 and 4 on TensorFlow Lite Micro."""
    file = File("float32")
    data = file.input([1, 4])
    small = file.tensor([3, 4], dtype="int8", values=[[1] * 4] * 3)
    scales = schema.QuantizationParametersT()
    scales.scale, scales.zeroPoint = [1.0, 10.0, 100.0], [0, 0, 0]
    file.tensors[small].quantization = scales
    return file.bytes([file.dense(data, 3, file.add("DEQUANTIZE", [small], [3, 4]))])


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (hybrid, "hybrid"),
        (unknown, "no operator GELU"),
        (custom, "FlexErf"),
        (free, "free"),
        (stored_by_channel, "first for all"),
    ],
)
def test_what_the_chip_would_refuse_is_refused_by_name(model, said):
    assert any(said in one for one in refusals(read_tflite(model())))
    with pytest.raises(BackendError) as caught:
        write_c_source(model(), "net")
    assert "static int8" in caught.value.hint


def test_a_model_that_it_takes_has_no_refusals():
    assert refusals(read_tflite(MODEL)) == ()
    assert refusals(read_tflite(convolutional("float32"))) == ()


@needs(Guest.TFLITE_MICRO)
def test_the_real_interpreter_does_get_weights_by_channel_wrong(tmp_path):
    (tmp_path / "model.tflite").write_bytes(stored_by_channel())
    code = (
        "import sys, numpy as np\nfrom tflite_micro import runtime\nit = runtime.Interpreter.from_file(sys.argv[1])\n"
        "it.set_input(np.ones((1, 4), 'float32'), 0)\nit.invoke()\nprint(it.get_output(0).ravel().tolist())"
    )
    said = subprocess.run(
        [python_of(Guest.TFLITE_MICRO), "-c", code, tmp_path / "model.tflite"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert json.loads(said.splitlines()[-1]) == [4.0, 4.0, 4.0]
