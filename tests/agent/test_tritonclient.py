"""Somebody else's client of the protocol, unchanged, against the real endpoint with a real worker behind it."""

import asyncio

import numpy as np
import onnx
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from agent.answering import Answering
from agent.roster import Roster
from agent.server import Server
from agent.windows import Windows
from edgeml.bundle import Bundle, write_bundle
from edgeml.clock import SystemClock
from edgeml.ids import ModelName, digest_of, digest_of_file
from edgeml.manifest import Manifest, Measurement, Provenance, RuntimeFamily
from edgeml.runtime import open_session

pytestmark = pytest.mark.processes

KINDS = {
    "FP32": (np.float32, TensorProto.FLOAT),
    "FP16": (np.float16, TensorProto.FLOAT16),
    "FP64": (np.float64, TensorProto.DOUBLE),
    "INT8": (np.int8, TensorProto.INT8),
    "UINT8": (np.uint8, TensorProto.UINT8),
    "INT16": (np.int16, TensorProto.INT16),
    "UINT16": (np.uint16, TensorProto.UINT16),
    "INT32": (np.int32, TensorProto.INT32),
    "INT64": (np.int64, TensorProto.INT64),
    "BOOL": (np.bool_, TensorProto.BOOL),
}
VALUES = np.random.default_rng(5).normal(size=(3, 4)).astype(np.float32)


def echo_bundle(path):
    """Write a bundle with one input and one output of every type; outputs are the inputs."""
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in KINDS],
        "echo",
        [helper.make_tensor_value_info(f"in_{name}", kind, ["batch", 2]) for name, (_, kind) in KINDS.items()],
        [helper.make_tensor_value_info(f"out_{name}", kind, ["batch", 2]) for name, (_, kind) in KINDS.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    session = open_session(data, RuntimeFamily.ONNX)
    manifest = Manifest(
        "echo", "2.0.0", "onnx", RuntimeFamily.ONNX, ("generic-x86-64",), session.inputs, session.outputs, (),
        Measurement("", "", 1, 1.0, 1.0, 0), Provenance("", digest_of(data)),
    )  # fmt: skip
    write_bundle(path, manifest, {"model.onnx": data})
    return path, digest_of_file(path)


@pytest.fixture
def endpoint(supervisor):
    roster = Roster(supervisor)
    serving = roster.seat(ModelName("sample"))
    server = Server(Answering(roster, Windows(60.0), SystemClock()), "127.0.0.1:0")
    server.start()
    yield server.url.removeprefix("http://"), serving, roster
    server.stop()
    roster.close()


@pytest.fixture
def client(endpoint, worker):
    endpoint[1].swap(worker)
    with triton.InferenceServerClient(endpoint[0]) as made:
        yield made


@pytest.fixture
def expected(sample):
    with Bundle(sample[0]) as bundle:
        return open_session(bundle.model(), bundle.manifest.runtime).run([VALUES])[0]


def given(values=VALUES, *, name="x", datatype="FP32", binary=True):
    one = triton.InferInput(name, list(values.shape), datatype)
    one.set_data_from_numpy(values, binary_data=binary)
    return [one]


def test_health_follows_the_model(endpoint, client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("sample")
    assert client.is_model_ready("sample", "1.0.0")
    assert not client.is_model_ready("sample", "9")
    assert not client.is_model_ready("other")
    endpoint[1].swap(None).stop()
    assert client.is_server_live()
    assert not client.is_server_ready()
    assert not client.is_model_ready("sample")


def test_metadata_say_what_serves(client):
    assert client.get_server_metadata()["name"] == "edgeml"
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    described = client.get_model_metadata("sample", "1.0.0")
    assert (described["name"], described["versions"], described["platform"]) == ("sample", ["1.0.0"], "onnx")
    assert described["inputs"][0]["shape"] == [-1, 4]
    assert described["outputs"][0]["datatype"] == "FP32"


@pytest.mark.parametrize("binary_in", [True, False], ids=["bytes in", "JSON in"])
@pytest.mark.parametrize("binary_out", [True, False, None], ids=["bytes out", "JSON out", "all outputs"])
def test_tensors_go_in_and_come_out(client, expected, binary_in, binary_out):
    wanted = None if binary_out is None else [triton.InferRequestedOutput("logits", binary_data=binary_out)]
    result = client.infer("sample", given(binary=binary_in), outputs=wanted, request_id="mine")
    np.testing.assert_allclose(result.as_numpy("logits"), expected, rtol=1e-5)
    answer = result.get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("mine", "sample", "1.0.0")


def test_an_answer_to_a_request_without_id_has_one(client):
    first, second = (client.infer("sample", given()).get_response()["id"] for _ in range(2))
    assert first
    assert first != second


def test_one_connection_answers_many_requests_and_several_at_once(endpoint, client, expected):
    with triton.InferenceServerClient(endpoint[0], concurrency=4) as several:
        waiting = [several.async_infer("sample", given()) for _ in range(12)]
        for one in waiting:
            np.testing.assert_allclose(one.get_result().as_numpy("logits"), expected, rtol=1e-5)


def test_parameters_that_mean_nothing_here_are_ignored(client, expected):
    result = client.infer(
        "sample", given(), priority=3, timeout=1_000_000, parameters={"who": "me"}, headers={"X-Who": "me"},
        query_params={"who": "me"}, response_compression_algorithm="gzip",
    )  # fmt: skip
    np.testing.assert_allclose(result.as_numpy("logits"), expected, rtol=1e-5)


REFUSED = [
    ("shape", lambda: {"inputs": given(VALUES[:, :3].copy())}, "400", "3"),
    ("rank", lambda: {"inputs": given(VALUES[0])}, "400", "shape"),
    ("type", lambda: {"inputs": given(VALUES.astype(np.float64), datatype="FP64")}, "400", "float64"),
    ("name", lambda: {"inputs": given(name="y")}, "400", "the model takes ['x']"),
    ("no input", lambda: {"inputs": []}, "400", "the model takes ['x']"),
    ("output", lambda: {"outputs": [triton.InferRequestedOutput("scores")]}, "400", "no output 'scores'"),
    ("top classes", lambda: {"outputs": [triton.InferRequestedOutput("logits", class_count=2)]}, "400", "classification"),
    ("model", lambda: {"model_name": "other"}, "404", "there are: sample"),
    ("version", lambda: {"model_version": "2"}, "404", "sample@1.0.0 is"),
    ("compression", lambda: {"request_compression_algorithm": "gzip"}, "415", "gzip"),
    ("request id", lambda: {"request_id": "i" * 129}, "400", "length"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "status", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_what_is_wrong_is_said_and_the_worker_lives_on(client, change, status, words):
    asked = {"model_name": "sample", "inputs": given()} | change()
    with pytest.raises(InferenceServerException) as caught:
        client.infer(**asked)
    assert caught.value.status() == status
    assert words in caught.value.message()
    assert client.infer("sample", given()).as_numpy("logits").shape == (3, 3)


def test_shared_memory_is_refused_for_outputs_too(client):
    wanted = triton.InferRequestedOutput("logits")
    wanted.set_shared_memory("region", 36)
    with pytest.raises(InferenceServerException, match="shared memory"):
        client.infer("sample", given(), outputs=[wanted])


@pytest.mark.parametrize("binary", [True, False], ids=["bytes", "JSON"])
def test_every_type_comes_back_as_it_went(endpoint, supervisor, tmp_path, binary):
    path, digest = echo_bundle(tmp_path / "echo.edgeml")
    endpoint[2].seat(ModelName("echo")).swap(supervisor.load(path, digest))
    arrays = {
        name: np.array([[0, 1], [2, 100], [7, 3]]).astype(numpy_type)
        for name, (numpy_type, _) in KINDS.items()
    }
    for name in ("INT8", "INT16", "INT32", "INT64"):
        arrays[name][0] = np.iinfo(arrays[name].dtype).min, np.iinfo(arrays[name].dtype).max
    for name in ("UINT8", "UINT16"):
        arrays[name][0, 1] = np.iinfo(arrays[name].dtype).max
    for name in ("FP32", "FP64"):
        arrays[name][0] = 1 / 3, np.finfo(arrays[name].dtype).smallest_subnormal
    # The client itself refuses to write half precision as JSON.
    inputs = [
        given(array, name=f"in_{name}", datatype=name, binary=binary or name == "FP16")[0]
        for name, array in arrays.items()
    ]
    wanted = [triton.InferRequestedOutput(f"out_{name}", binary_data=binary) for name in reversed(arrays)]
    with triton.InferenceServerClient(endpoint[0]) as client:
        result = client.infer("echo", inputs, outputs=wanted)
    for name, array in arrays.items():
        came = result.as_numpy(f"out_{name}")
        assert came.dtype == array.dtype
        np.testing.assert_array_equal(came, array)


def test_the_asynchronous_client_works_too(endpoint, client, expected):
    async def ask():
        async with triton_aio.InferenceServerClient(endpoint[0]) as client:
            assert await client.is_model_ready("sample")
            one = triton_aio.InferInput("x", list(VALUES.shape), "FP32")
            one.set_data_from_numpy(VALUES)
            return (await client.infer("sample", [one])).as_numpy("logits")

    np.testing.assert_allclose(asyncio.run(ask()), expected, rtol=1e-5)
