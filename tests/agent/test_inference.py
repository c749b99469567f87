"""Messages of the protocol: what a client writes the agent reads to the same arrays, and no answer breaks the reader."""

import contextlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from agent.ipc import Answer, TensorBytes
from agent.protocol import decode_call, encode_reply
from agent.serving import Served
from edgeml.errors import EdgemlError, ManifestError
from edgeml.inference import JSON_LENGTH_HEADER, Response, infer_request, read_prediction
from edgeml.manifest import Manifest, Measurement, Provenance, RuntimeFamily
from edgeml.tensors import DType, TensorSpec

ARRAYS = st.sampled_from([one.value for one in DType]).flatmap(
    lambda name: hnp.arrays(np.dtype(name), hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
)


def manifest(arrays):
    specs = tuple(TensorSpec(f"t{i}", DType(one.dtype.name), one.shape) for i, one in enumerate(arrays))
    return Manifest(
        "m", "1", "v", RuntimeFamily.ONNX, ("p",), specs, specs, (),
        Measurement("", "", 1, 1.0, 1.0, 0), Provenance("", "0" * 64),
    )  # fmt: skip


def reply_to(arrays, wanted=()):
    """Let the agent's own codec read a request about these arrays and answer with them."""
    named = {f"t{i}": one for i, one in enumerate(arrays)}
    request = infer_request("m", named, "mine", wanted)
    described = manifest(arrays)
    call = decode_call(request.body, int(request.headers[JSON_LENGTH_HEADER]), described)
    tensors = tuple(TensorBytes(one.dtype, one.shape, bytes(one.data)) for one in call.tensors)
    reply = encode_reply(Served(described, "0" * 64, Answer(tensors, 2.5, None)), call)
    return Response(200, reply.body, reply.json_length)


@given(st.lists(ARRAYS, min_size=1, max_size=4))
def test_arrays_survive_the_way_there_and_back(arrays):
    answer = read_prediction(reply_to(arrays))
    assert answer.request_id == "mine"
    assert list(answer.outputs) == [f"t{i}" for i in range(len(arrays))]
    for given_, came in zip(arrays, answer.outputs.values(), strict=True):
        assert (came.dtype, came.shape) == (given_.dtype, given_.shape)
        assert came.tobytes() == given_.tobytes()


def test_only_the_outputs_that_are_wanted_come():
    arrays = [np.arange(3, dtype=np.float32), np.arange(2, dtype=np.int64)]
    assert list(read_prediction(reply_to(arrays, ("t1",))).outputs) == ["t1"]


@given(st.data())
def test_no_changed_answer_raises_anything_but_our_errors(data):
    whole = reply_to([np.arange(3, dtype=np.float32), np.zeros((2, 0), np.int8)])
    body = bytearray(whole.body)
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(st.integers(0, whole.json_length - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(EdgemlError):
        read_prediction(Response(200, bytes(body), whole.json_length))


@pytest.mark.parametrize("shape", [(-1, 1), (-3, -1), (10**30,), (1 << 62, 4), (2,), (0,)])
def test_a_shape_that_does_not_fit_its_bytes_is_refused(shape):
    whole = reply_to([np.arange(3, dtype=np.float32)])
    head = msgspec.json.decode(whole.body[: whole.json_length])
    head["outputs"][0]["shape"] = shape
    changed = msgspec.json.encode(head) if max(map(abs, shape)) < 1 << 63 else None
    if changed is None:
        head["outputs"][0]["shape"] = [12345]
        changed = msgspec.json.encode(head).replace(b"12345", str(shape[0]).encode())
    with pytest.raises(ManifestError):
        read_prediction(Response(200, changed + whole.body[whole.json_length :], len(changed)))


@pytest.mark.parametrize(
    ("timeout_s", "expected_us"), [(None, 0), (0.05, 50_000), (2.0, 2_000_000), (0.0, 1), (1e-9, 1)]
)
@pytest.mark.parametrize("wanted", [(), ("t0",)], ids=["all", "one"])
def test_the_agent_hears_how_long_a_client_waits(timeout_s, expected_us, wanted):
    array = np.arange(3, dtype=np.float32)
    request = infer_request("m", {"t0": array}, "", wanted, timeout_s)
    call = decode_call(request.body, int(request.headers[JSON_LENGTH_HEADER]), manifest([array]))
    assert call.timeout_us == expected_us
    assert all(output.binary for output in call.wanted)
