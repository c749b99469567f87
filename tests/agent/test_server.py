"""The HTTP endpoint over real sockets: the protocol, its binary extension, and everything a client can get wrong."""

import array
import math
import socket
import struct
import sys
import threading
import time

import httpx
import msgspec
import numpy as np
import pytest

from agent import server
from agent.ipc import Answer, TensorBytes
from agent.protocol import BODY_BYTES_MAX, JSON_BYTES_MAX
from agent.server import Server
from agent.serving import NoModelError, Served
from agent.supervisor import check_request
from agent.turnstile import ShedError
from edgeml.errors import BackendError, BudgetError, ConfigError
from edgeml.inference import JSON_LENGTH_HEADER
from edgeml.manifest import Manifest, Measurement, Provenance, RuntimeFamily, ScoreKind, Task
from edgeml.tensors import DType, TensorSpec

MANIFEST = Manifest(
    "echo", "1.0.0", "onnx-fp32", RuntimeFamily.ONNX, ("generic-x86-64",),
    (TensorSpec("x", DType.FLOAT32, (-1, 3)), TensorSpec("n", DType.INT64, (-1,), scale=0.5, zero_point=3)),
    (TensorSpec("y", DType.FLOAT32, (-1, 3)), TensorSpec("m", DType.INT64, (-1,))), (),
    Measurement("", "", 1, 1.0, 1.0, 0), Provenance("", "0" * 64),
    task=Task.CLASSIFICATION, scores=ScoreKind.LOGITS, labels=("a", "b", "c"),
)  # fmt: skip
URL = "/v2/models/echo/infer"


class Echo:
    """A model that gives what it takes, behind the real check of requests."""

    def __init__(self):
        self.loaded = MANIFEST
        self.fails = None
        self.asked = []
        self.labels = []
        self.misfits = []

    def models(self):
        return () if self.loaded is None else (self.loaded.model,)

    def manifest(self, model):
        return self.loaded if model in self.models() else None

    def ready(self, model):
        return model in self.models() and self.fails is None

    async def infer_in_loop(self, model, tensors, request_id, deadline_s):
        return self.infer(model, tensors, request_id, deadline_s)

    def infer(self, model, tensors, request_id, deadline_s):
        assert model == "echo"
        if self.fails is not None:
            raise self.fails
        check_request(tensors, MANIFEST.inputs)
        self.asked.append(request_id)
        return Served(MANIFEST, "0" * 64, Answer(tuple(tensors), 12.34, 1))

    def misfit(self, model, error):
        self.misfits.append(error.counted)

    def feedback(self, model, request_id, label):
        assert model == "echo"
        if isinstance(label, str) and label not in MANIFEST.labels:
            raise ConfigError(f"the model has no label {label!r}")
        self.labels.append((request_id, label))
        return request_id in self.asked


@pytest.fixture(scope="module", params=["quick parser and loop", "pure Python"])
def running(request):
    """A device's endpoint, also where the quick parser and event loop are not to be had (armv7)."""
    echo = Echo()
    with pytest.MonkeyPatch.context() as patched:
        if request.param == "pure Python":
            for missing in ("httptools", "uvloop"):
                patched.setitem(sys.modules, missing, None)
            for chosen in ("uvicorn.protocols.http.auto", "uvicorn.loops.auto"):
                patched.delitem(sys.modules, chosen, raising=False)
        server = Server(echo, "127.0.0.1:0")
        server.start()
        with httpx.Client(base_url=server.url, timeout=10) as client:
            assert client.get("/v2/health/live").status_code == 200
            parser = server._server.config.http_protocol_class.__module__.rpartition(".")[2]
            assert parser == ("h11_impl" if request.param == "pure Python" else "httptools_impl")
            yield echo, client, server
        server.stop()


@pytest.fixture
def echo(running):
    running[0].loaded, running[0].fails = MANIFEST, None
    return running[0]


@pytest.fixture
def client(running):
    return running[1]


def call(x=(1.0, 2.0, 3.0), n=(7,), **more):
    inputs = [
        {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": x},
        {"name": "n", "datatype": "INT64", "shape": [1], "data": n},
    ]
    return {"inputs": inputs} | more


def test_health_and_metadata_follow_the_model(echo, client):
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2").json()["models"] == ["echo"]
    assert client.get("/v2/models/echo/ready").json() == {"name": "echo", "ready": True}
    described = client.get("/v2/models/echo").json()
    assert described == client.get("/v2/models/echo/versions/1.0.0").json()
    assert (described["name"], described["versions"], described["platform"]) == ("echo", ["1.0.0"], "onnx")
    assert described["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, 3], "parameters": {}}
    assert described["inputs"][1]["parameters"] == {"scale": 0.5, "zero_point": 3}
    assert described["parameters"]["labels"] == ["a", "b", "c"]


def test_without_a_model_it_lives_and_is_not_ready(echo, client):
    echo.loaded = None
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").status_code == 503
    assert client.get("/v2").json()["models"] == []
    answer = client.post(URL, json=call())
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"
    assert "no model serves" in answer.json()["error"]


@pytest.mark.parametrize("path", [URL, "/v2/models/echo/versions/1.0.0/infer"])
def test_a_json_request_is_answered_in_json(echo, client, path):
    answer = client.post(path, json=call(id="mine"))
    assert answer.status_code == 200
    assert answer.json() == {
        "model_name": "echo",
        "model_version": "1.0.0",
        "id": "mine",
        "parameters": {"latency_us": 12.3, "predicted": 1, "label": "b"},
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]},
            {"name": "m", "datatype": "INT64", "shape": [1], "data": [7]},
        ],
    }
    assert echo.asked[-1] == "mine"


@pytest.mark.parametrize("loop_bytes_max", [0, 10_000], ids=["in a thread", "in the loop"])
def test_long_requests_and_answers_are_the_same_and_hold_nobody_up(echo, client, monkeypatch, loop_bytes_max):
    threads = []
    real = server._reply
    monkeypatch.setattr(
        server, "_reply", lambda *given: (threads.append(threading.current_thread().name), real(*given))[1]
    )
    monkeypatch.setattr(server, "LOOP_BYTES_MAX", loop_bytes_max)
    answer = client.post(URL, json=call(id="mine"))
    assert answer.json()["outputs"][0]["data"] == [1.0, 2.0, 3.0]
    assert (threads == ["http"]) is (loop_bytes_max == 10_000)


def test_nested_data_and_inputs_in_another_order_are_the_same_request(echo, client):
    body = call(x=[[1, 2.5, 3]])
    body["inputs"].reverse()
    answer = client.post(URL, json=body).json()
    assert answer["outputs"][0]["data"] == [1.0, 2.5, 3.0]
    assert len(answer["id"]) == 32


def test_only_the_outputs_asked_for_come_back(echo, client):
    answer = client.post(URL, json=call(outputs=[{"name": "m"}])).json()
    assert [one["name"] for one in answer["outputs"]] == ["m"]


def test_not_a_number_is_null_in_both_directions(echo, client):
    answer = client.post(URL, json=call(x=[None, 1, 2])).json()
    assert answer["outputs"][0]["data"] == [None, 1.0, 2.0]
    huge = client.post(URL, content=msgspec.json.encode(call(x=[1e39, -1e39, 0])))
    assert huge.json()["outputs"][0]["data"] == [None, None, 0.0]


def test_tensors_travel_as_bytes_in_both_directions(echo, client):
    x = array.array("f", [math.nan, math.inf, -0.0]).tobytes()
    head = msgspec.json.encode(
        {
            "id": "bin",
            "inputs": [
                {"name": "n", "datatype": "INT64", "shape": [1], "data": [5]},
                {
                    "name": "x",
                    "datatype": "FP32",
                    "shape": [1, 3],
                    "parameters": {"binary_data_size": len(x)},
                },
            ],
            "outputs": [{"name": "m"}, {"name": "y", "parameters": {"binary_data": True}}],
        }
    )
    answer = client.post(URL, content=head + x, headers={JSON_LENGTH_HEADER: str(len(head))})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/octet-stream"
    length = int(answer.headers[JSON_LENGTH_HEADER])
    reply = msgspec.json.decode(answer.content[:length])
    assert reply["outputs"][0]["data"] == [5]
    assert reply["outputs"][1]["parameters"] == {"binary_data_size": 12}
    assert answer.content[length:] == x


def test_all_outputs_are_bytes_if_the_request_says_so(echo, client):
    answer = client.post(URL, json=call(parameters={"binary_data_output": True}))
    length = int(answer.headers[JSON_LENGTH_HEADER])
    assert answer.content[length:] == struct.pack("<3fq", 1, 2, 3, 7)


WRONG = [
    ("no JSON", b"{", "does not follow the protocol"),
    ("no object", b"[]", "does not follow the protocol"),
    ("no UTF-8", b'{"inputs": [{"name": "\xff', "does not follow the protocol"),
    ("deep", b'{"inputs": ' + b"[" * 100_000, "does not follow the protocol"),
    ("inputs missing", b"{}", "missing required field `inputs`"),
    ("an input missing", call() | {"inputs": call()["inputs"][:1]}, "the model takes ['x', 'n']"),
    ("an input twice", call() | {"inputs": call()["inputs"][:1] * 2}, "given twice"),
    ("an unknown output", call(outputs=[{"name": "z"}]), "no output 'z'"),
    ("text for numbers", call(x=["1", "2", "3"]), "input x: Expected"),
    ("reals for integers", call(n=[1.5]), "input n: Expected `int`"),
    ("null for integers", call(n=[None]), "input n: Expected `int`"),
    ("text nested", call(x=[["1", "2", "3"]]), "does not follow the protocol"),
    ("integers out of range", call(n=[1 << 70]), "input n"),
    ("nested otherwise", call(x=[[1, 2], [3]]), "not nested as its shape [1, 3] says"),
    ("no data", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3]}]}, "has no data"),
    ("too few numbers", call(x=[1, 2]), "8 bytes of data, its shape needs 12"),
    ("an absurd shape", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1 << 41], "data": []}]}, "inputs"),
    ("an unknown type", {"inputs": [{"name": "x", "datatype": "FP8", "shape": [1], "data": [1]}]}, "FP8"),
    ("a long id", call(id="i" * 129), "length"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "words"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_a_wrong_request_is_a_400_that_says_why(echo, client, body, words):
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    answer = client.post(URL, content=content)
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ("-1", "not a length"),
        ("x", "not a length"),
        ("9" * 30, "not a length"),
        ("999999", "in a body of"),
        ("10", "does not follow"),
    ],
)
def test_a_wrong_json_length_is_a_400(echo, client, stated, words):
    answer = client.post(URL, json=call(), headers={JSON_LENGTH_HEADER: stated})
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_bytes_that_are_missing_or_left_over_are_a_400(echo, client):
    described = {"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
    head = msgspec.json.encode({"inputs": [described, call()["inputs"][1]]})
    for data, words in ((bytes(11), "11 are left"), (bytes(13), "1 bytes follow")):
        answer = client.post(URL, content=head + data, headers={JSON_LENGTH_HEADER: str(len(head))})
        assert answer.status_code == 400
        assert words in answer.json()["error"]


def test_a_body_above_the_limit_is_refused_before_it_is_read(running, echo, client):
    with socket.create_connection(running[2]._listener.socket.getsockname()) as raw:
        raw.sendall(
            b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (URL.encode(), BODY_BYTES_MAX + 1)
        )
        assert raw.recv(100).startswith(b"HTTP/1.1 413 ")

    def endless():
        for _ in range(BODY_BYTES_MAX // (1 << 20) + 1):
            yield bytes(1 << 20)

    assert client.post(URL, content=endless()).status_code == 413
    assert client.post(URL, content=b" " * (JSON_BYTES_MAX + 1)).status_code == 400
    assert client.post(URL, json=call()).status_code == 200


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (NoModelError("it is being restarted"), 503, "1"),
        (BudgetError("too many wait", budget=16, observed=17, unit="requests"), 429, "1"),
        (ShedError("it is too hot", 30), 429, "30"),
        (BackendError("the worker died of SIGSEGV", hint="see the log"), 500, None),
        (ConfigError("wrong"), 400, None),
        (RuntimeError("a secret"), 500, None),
    ],
)
def test_what_goes_wrong_behind_it_has_its_status(echo, client, error, status, retry):
    echo.fails = error
    answer = client.post(URL, json=call())
    assert answer.status_code == status
    assert answer.headers.get("Retry-After") == retry
    assert "secret" not in answer.text
    assert client.get("/v2/health/live").status_code == 200
    assert answer.json()["error"]


def test_unknown_models_versions_paths_and_methods_are_refused_in_json(echo, client):
    for path in ("/v2/models/other", "/v2/models/echo/versions/9", "/v3", "/v2/models/other/ready"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert answer.json()["error"]
    answer = client.get(URL)
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"


def test_feedback_reaches_the_request_it_is_about(echo, client):
    client.post(URL, json=call(id="one"))
    feedback = "/v2/models/echo/feedback"
    assert client.post(feedback, json={"id": "one", "label": "c"}).json() == {"matched": True}
    assert client.post(feedback, json={"id": "one", "label": 2}).status_code == 200
    assert echo.labels[-2:] == [("one", "c"), ("one", 2)]
    assert client.post(feedback, json={"id": "two", "label": 2}).status_code == 404
    for wrong in (
        {"id": "one"},
        {"id": "one", "label": -1},
        {"id": "one", "label": 1.5},
        {"id": "one", "label": "z"},
        [],
    ):
        assert client.post(feedback, json=wrong).status_code == 400


def test_answers_do_not_wait_for_acknowledgements(echo, client):
    client.post(URL, json=call())
    took_s = []
    for _ in range(40):
        started_s = time.perf_counter()
        client.post(URL, json=call())
        took_s.append(time.perf_counter() - started_s)
    # A delayed acknowledgement takes 0.04 s, each time; a busy machine is late now and then.
    assert np.percentile(took_s, 25) < 0.03


def test_it_stops_quickly_even_with_open_connections():
    server = Server(Echo(), "127.0.0.1:0")
    server.start()
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/v2/health/live").status_code == 200
        started_s = time.monotonic()
        server.stop()
        assert time.monotonic() - started_s < 2.5
    assert "http" not in {thread.name for thread in threading.enumerate() if thread is server._thread}


def test_a_long_answer_to_a_short_request_is_written_in_a_thread(echo, client, monkeypatch):
    threads = []
    real = server._reply
    monkeypatch.setattr(
        server, "_reply", lambda *given: (threads.append(threading.current_thread().name), real(*given))[1]
    )

    async def longer(_model, tensors, _request_id, _deadline_s):
        data = bytes(server.LOOP_BYTES_MAX + 4)
        return Served(
            MANIFEST, "0" * 64, Answer((tensors[0], TensorBytes(DType.INT8, (len(data),), data)), 1.0, None)
        )

    monkeypatch.setattr(echo, "infer_in_loop", longer)
    answer = client.post(URL, json=call()).json()
    assert len(answer["outputs"][1]["data"]) == server.LOOP_BYTES_MAX + 4
    assert len(threads) == 1
    assert threads != ["http"]
