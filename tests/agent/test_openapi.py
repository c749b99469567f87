"""The document at /openapi.json is one, names every route, and answers of the real endpoint are what it says."""

import json

import httpx
import msgspec
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from agent.answering import Answering
from agent.protocol import BODY_BYTES_MAX
from agent.roster import Roster
from agent.server import OPENAPI, Server, make_app
from agent.windows import Windows
from edgeml.clock import SystemClock
from edgeml.errors import BackendError, BudgetError
from edgeml.ids import ModelName
from edgeml.inference import JSON_LENGTH_HEADER, infer_request

DOCUMENT = json.loads(OPENAPI.read_text())
MODEL = "/v2/models/{name}"
VERSION = MODEL + "/versions/{version}"
BODY = {"id": "one", "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}


def test_it_is_an_openapi_document():
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_it_names_the_routes_with_their_methods_and_no_others():
    served = {
        (route.path, method.lower())
        for route in make_app(None, str).routes
        for method in route.methods - {"HEAD"}
    }
    described = {
        (path, method) for path, item in DOCUMENT["paths"].items() for method in item.keys() - {"parameters"}
    }
    assert described == served


def resolved(node):
    """Follow a reference to a response."""
    if "$ref" not in node:
        return node
    found = DOCUMENT
    for part in node["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found


def strict(node):
    """Let a schema allow no property that it does not name, so that none is forgotten in the document."""
    if isinstance(node, list):
        return [strict(one) for one in node]
    if not isinstance(node, dict):
        return node
    closed = {"additionalProperties": False} if node.get("type") == "object" and "properties" in node else {}
    return {key: strict(value) for key, value in node.items()} | closed


def holds(content, schema):
    root = strict(DOCUMENT) | {"$schema": Draft202012Validator.META_SCHEMA["$id"], **strict(schema)}
    Draft202012Validator(root).validate(content)


def check(answer, path, method):
    """Hold an answer against what the document says of its route, status and type."""
    said = resolved(DOCUMENT["paths"][path][method]["responses"][str(answer.status_code)])
    kind = answer.headers["Content-Type"].partition(";")[0]
    schema = said["content"][kind].get("schema")
    for name in said.get("headers", {}):
        if name == "Retry-After":
            assert answer.headers[name].isdecimal()
    if kind == "application/json":
        holds(answer.json(), schema)
    return answer


@pytest.fixture
def running(supervisor, worker):
    roster = Roster(supervisor)
    serving = roster.seat(ModelName("sample"))
    serving.swap(worker)
    answering = Answering(roster, Windows(60.0), SystemClock())
    server = Server(answering, "127.0.0.1:0", metrics=lambda: "# nothing\n")
    server.start()
    with httpx.Client(base_url=server.url, timeout=10) as client:
        yield client, serving, answering
    server.stop()
    serving.close()


@pytest.mark.processes
def test_answers_are_what_it_says(running):
    client, _, _ = running
    assert check(client.get("/openapi.json"), "/openapi.json", "get").json() == DOCUMENT
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/metrics"):
        assert check(client.get(path), path, "get").status_code == 200
    for given, path in (("/v2/models/sample", MODEL), ("/v2/models/sample/versions/1.0.0", VERSION)):
        assert check(client.get(given), path, "get").status_code == 200
        assert check(client.get(f"{given}/ready"), f"{path}/ready", "get").status_code == 200
        assert check(client.post(f"{given}/infer", json=BODY), f"{path}/infer", "post").status_code == 200
    feedback = "/v2/models/sample/feedback"
    for label, status in ((1, 200), (1, 404), ("z", 400)):
        answer = client.post(feedback, json={"id": "one", "label": label})
        assert check(answer, f"{MODEL}/feedback", "post").status_code == status


@pytest.mark.processes
def test_a_binary_answer_is_what_it_says(running):
    request = infer_request("sample", {"x": np.zeros((1, 4), np.float32)})
    answer = running[0].post("/v2/models/sample/infer", content=request.body, headers=dict(request.headers))
    check(answer, f"{MODEL}/infer", "post")
    head = msgspec.json.decode(answer.content[: int(answer.headers[JSON_LENGTH_HEADER])])
    holds(head, {"$ref": "#/components/schemas/InferenceResponse"})


def test_requests_that_are_answered_are_what_it_says_and_some_that_are_not():
    asked = msgspec.json.decode(infer_body())
    holds(asked, {"$ref": "#/components/schemas/InferenceRequest"})
    holds(BODY, {"$ref": "#/components/schemas/InferenceRequest"})
    wrong = BODY | {"inputs": [BODY["inputs"][0] | {"datatype": "FP8"}]}
    errors = Draft202012Validator(DOCUMENT | {"$ref": "#/components/schemas/InferenceRequest"}).iter_errors(
        wrong
    )
    assert next(errors, None) is not None


def infer_body():
    request = infer_request("sample", {"x": np.zeros((1, 4), np.float32)}, "mine", ("logits",))
    return request.body[: int(request.headers[JSON_LENGTH_HEADER])]


@pytest.mark.processes
def test_refusals_are_what_it_says(running, monkeypatch):
    client, serving, answering = running
    url, path = "/v2/models/sample/infer", f"{MODEL}/infer"
    for answer, status in (
        (client.post(url, json=BODY | {"inputs": []}), 400),
        (client.post("/v2/models/other/infer", json=BODY), 404),
        (client.post(url, content=b"{}", headers={"Content-Encoding": "gzip"}), 415),
        (client.post(url, content=bytes(BODY_BYTES_MAX + 1)), 413),
    ):
        assert check(answer, path, "post").status_code == status
    assert check(client.get("/v2/models/other"), MODEL, "get").status_code == 404
    for error, status in (
        (BudgetError("too many wait", budget=16, observed=17, unit="requests"), 429),
        (BackendError("the worker died of SIGSEGV"), 500),
    ):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(answering, "infer_in_loop", fail)
        assert check(client.post(url, json=BODY), path, "post").status_code == status
    monkeypatch.undo()
    serving.swap(None).stop()
    for given, path_, method in (
        ("/v2/health/ready", "/v2/health/ready", "get"),
        ("/v2/models/sample", MODEL, "get"),
        ("/v2/models/sample/ready", f"{MODEL}/ready", "get"),
        (url, path, "post"),
        ("/v2/models/sample/feedback", f"{MODEL}/feedback", "post"),
    ):
        answer = client.request(method, given, json=BODY if method == "post" else None)
        assert check(answer, path_, method).status_code == 503
