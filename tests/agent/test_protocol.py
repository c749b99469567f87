"""The Open Inference Protocol's bytes: whatever comes is read or refused, and every type survives JSON."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agent.ipc import Answer, TensorBytes
from agent.protocol import decode_call, decode_feedback, encode_reply
from agent.serving import Served
from edgeml.errors import ConfigError
from edgeml.manifest import Manifest, Measurement, Provenance, RuntimeFamily
from edgeml.tensors import DType, TensorSpec

MANIFEST = Manifest(
    "echo", "1.0.0", "onnx-fp32", RuntimeFamily.ONNX, ("generic-x86-64",), (TensorSpec("x", DType.FLOAT32, (-1, 3)),),
    (TensorSpec("y", DType.FLOAT32, (-1, 3)),), (), Measurement("", "", 1, 1.0, 1.0, 0), Provenance("", "0" * 64),
)  # fmt: skip


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_bytes_are_a_call_or_a_config_error(body, json_length):
    for decode in (lambda: decode_call(body, json_length, MANIFEST), lambda: decode_feedback(body)):
        try:
            decode()
        except ConfigError:
            continue


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["name", "data", "shape"]), inner, max_size=3)
    ),
    max_leaves=15,
)


@given(
    json_values,
    st.sampled_from(["FP32", "FP16", "FP64", "BOOL", "INT8", "UINT8", "INT64"]),
    st.lists(st.integers(0, 4), max_size=3),
)
def test_any_data_of_any_type_is_a_tensor_or_a_config_error(data, datatype, shape):
    body = msgspec.json.encode(
        {"inputs": [{"name": "x", "datatype": datatype, "shape": shape, "data": data}]}
    )
    one = msgspec.structs.replace(
        MANIFEST, inputs=(TensorSpec("x", DType.from_protocol_name(datatype), tuple(shape)),)
    )
    try:
        found = decode_call(body, len(body), one)
    except ConfigError:
        return
    assert isinstance(found.tensors[0].data, bytes)


@given(st.sampled_from(DType), st.integers(0, 20), st.data())
def test_every_type_survives_json(dtype, count, data):
    raw = data.draw(st.binary(min_size=count * dtype.item_bytes, max_size=count * dtype.item_bytes))
    if dtype is DType.BOOL:
        raw = bytes(byte & 1 for byte in raw)
    spec = TensorSpec("x", dtype, (count,))
    manifest = msgspec.structs.replace(MANIFEST, inputs=(spec,), outputs=(spec,))
    request = msgspec.json.encode(
        {
            "inputs": [
                {
                    "name": "x",
                    "datatype": dtype.protocol_name,
                    "shape": [count],
                    "data": [0] * count if dtype is not DType.BOOL else [False] * count,
                }
            ]
        }
    )
    decoded = decode_call(request, len(request), manifest)
    served = Served(manifest, "0" * 64, Answer((TensorBytes(dtype, (count,), raw),), 1.0, None))
    values = msgspec.json.decode(encode_reply(served, decoded).body)["outputs"][0]["data"]
    again = msgspec.json.encode(
        {"inputs": [{"name": "x", "datatype": dtype.protocol_name, "shape": [count], "data": values}]}
    )
    tensor = decode_call(again, len(again), manifest).tensors[0]
    if None not in values:
        assert tensor.data == raw
