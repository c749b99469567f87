"""Both clients against the real endpoint and a real worker: arrays go in and out, feedback counts, connections live."""

import asyncio

import numpy as np
import pytest

from agent.answering import Answering
from agent.roster import Roster
from agent.server import Server
from agent.windows import Windows
from edgeml.async_client import CONNECTIONS_MAX, AsyncClient
from edgeml.bundle import Bundle
from edgeml.client import Client
from edgeml.clock import SystemClock
from edgeml.errors import ConfigError, TransferError
from edgeml.ids import ModelName
from edgeml.runtime import open_session

pytestmark = pytest.mark.processes
VALUES = np.random.default_rng(5).normal(size=(3, 4)).astype(np.float32)


class Threaded:
    """The asynchronous client, driven as the other one is."""

    def __init__(self, url, **options):
        self.loop = asyncio.new_event_loop()
        self.inner = AsyncClient(url, **options)

    def __getattr__(self, name):
        return lambda *given, **named: self.loop.run_until_complete(
            getattr(self.inner, name)(*given, **named)
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
        self.loop.close()


@pytest.fixture(params=[Client, Threaded], ids=["sync", "async"])
def kind(request):
    return request.param


@pytest.fixture
def endpoint(supervisor, worker):
    roster = Roster(supervisor)
    serving = roster.seat(ModelName("sample"))
    serving.swap(worker)
    windows = Windows(60.0)
    server = Server(Answering(roster, windows, SystemClock()), "127.0.0.1:0")
    server.start()
    yield server, serving, windows, roster
    server.stop()
    serving.close()


@pytest.fixture
def client(kind, endpoint):
    with kind(endpoint[0].url) as made:
        yield made


@pytest.fixture
def expected(sample):
    with Bundle(sample[0]) as bundle:
        return open_session(bundle.model(), bundle.manifest.runtime).run([VALUES])[0]


def test_arrays_come_back_with_what_the_agent_says_of_them(client, expected):
    answer = client.infer("sample", {"x": VALUES}, request_id="mine")
    np.testing.assert_allclose(answer.outputs["logits"], expected, rtol=1e-5)
    assert (answer.model, answer.version, answer.request_id) == ("sample", "1.0.0", "mine")
    assert answer.latency_us > 0
    assert answer.predicted is None
    one = client.infer("sample", {"x": VALUES[:1]}, outputs=("logits",))
    assert one.predicted == expected[0].argmax()
    assert one.label == "abc"[one.predicted]
    assert one.request_id


def test_arrays_of_another_byte_order_or_stride_are_the_same_numbers(client, expected):
    for given in (VALUES.astype(">f4"), np.asfortranarray(VALUES), np.repeat(VALUES, 2, axis=1)[:, ::2]):
        answer = client.infer("sample", {"x": given})
        np.testing.assert_allclose(answer.outputs["logits"], expected, rtol=1e-5)


def test_who_serves_and_whether(endpoint, client):
    assert client.models() == ("sample",)
    assert client.model().inputs[0].shape == (-1, 4)
    assert client.ready()
    assert client.ready("sample")
    with pytest.raises(ConfigError, match="there are: sample"):
        client.ready("other")
    endpoint[1].swap(None).stop()
    assert client.models() == ()
    assert not client.ready()
    with pytest.raises(TransferError, match="no model now"):
        client.model()
    with pytest.raises(TransferError, match="no model serves"):
        client.infer("sample", {"x": VALUES})


def test_feedback_is_counted_once(endpoint, client):
    answer = client.infer("sample", {"x": VALUES[:1]})
    assert client.feedback("sample", answer.request_id, (answer.predicted + 1) % 3)
    assert not client.feedback("sample", answer.request_id, answer.predicted)
    assert not client.feedback("sample", "never", 1)
    with pytest.raises(ConfigError, match="no label 'z'"):
        client.feedback("sample", answer.request_id, "z")
    with pytest.raises(ConfigError, match="no such model"):
        client.feedback("other", answer.request_id, 1)
    (window,) = endpoint[2].close(0, 0.0, {})
    assert (window.counters.inferences, window.counters.labelled, window.counters.wrong) == (1, 1, 1)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"x": VALUES.astype(np.float64)}, "float64"),
        ({"x": VALUES[:, :2]}, "shape"),
        ({"y": VALUES}, r"the model takes \['x'\]"),
        ({"x": np.array(["a"])}, "no model takes"),
        ({"x": VALUES.astype(np.complex64)}, "no model takes"),
    ],
)
def test_a_wrong_request_is_the_callers_to_fix(client, inputs, words):
    with pytest.raises(ConfigError, match=words):
        client.infer("sample", inputs)
    assert client.ready()


def test_a_connection_is_kept_and_opened_again_when_the_agent_was_restarted(endpoint, kind, supervisor):
    server, _, windows, roster = endpoint
    with kind(server.url) as client:
        assert client.ready()
        again = Server(Answering(roster, windows, SystemClock()), server.url.removeprefix("http://"))
        server.stop()
        again.start()
        try:
            assert client.infer("sample", {"x": VALUES}).version == "1.0.0"
            assert client.ready()
        finally:
            client.close()
            again.stop()


def test_many_tasks_share_a_few_connections(endpoint, expected):
    async def ask_all():
        async with AsyncClient(endpoint[0].url) as client:
            asked = (client.infer("sample", {"x": VALUES}) for _ in range(2 * CONNECTIONS_MAX))
            answers = await asyncio.gather(*asked)
            return answers, len(client._idle)

    answers, connections = asyncio.run(ask_all())
    for answer in answers:
        np.testing.assert_allclose(answer.outputs["logits"], expected, rtol=1e-5)
    assert 1 <= connections <= CONNECTIONS_MAX


def test_over_a_unix_socket_it_is_the_same(endpoint, kind, tmp_path, expected):
    server = Server(Answering(endpoint[3], endpoint[2], SystemClock()), f"unix:{tmp_path}/agent.sock")
    server.start()
    try:
        with kind(server.url) as client:
            assert client.ready()
            answer = client.infer("sample", {"x": VALUES})
            np.testing.assert_allclose(answer.outputs["logits"], expected, rtol=1e-5)
    finally:
        server.stop()
    assert not (tmp_path / "agent.sock").exists()
