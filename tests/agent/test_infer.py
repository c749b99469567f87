"""`edgeml infer` against a real endpoint and a real worker, and against everything else that may be listening."""

import re
import socket
import threading
import time

import msgspec
import numpy as np
import pytest

from agent.answering import Answering
from agent.infer import Question, ask, confidence, tell
from agent.roster import Roster
from agent.samples import read_samples
from agent.server import Server
from agent.windows import Windows
from edgeml.bundle import Bundle
from edgeml.client import Client
from edgeml.clock import SystemClock
from edgeml.errors import BackendError, ConfigError, LinkDownError, ManifestError, TransferError
from edgeml.ids import ModelName
from edgeml.inference import ModelMetadata, ModelParameters, Quantization, TensorMetadata
from edgeml.runtime import open_session


@pytest.fixture
def endpoint(supervisor, worker):
    roster = Roster(supervisor)
    serving = roster.seat(ModelName("sample"))
    serving.swap(worker)
    server = Server(Answering(roster, Windows(60.0), SystemClock()), "127.0.0.1:0")
    server.start()
    yield server.url, serving
    server.stop()
    serving.close()


@pytest.fixture
def samples(tmp_path):
    values = np.random.default_rng(3).normal(size=(40, 4)).astype(np.float32)
    path = tmp_path / "samples.npz"
    np.savez(path, field_x=values, field_y=np.arange(40))
    return path, values


def metadata(dtype="FP32", shape=(-1, 4), names=("x",), quantization=None):
    inputs = tuple(TensorMetadata(name, dtype, shape, quantization or Quantization()) for name in names)
    outputs = (TensorMetadata("y", "FP32", (-1, 3)),)
    return ModelMetadata(
        "m", ("1",), "onnx", inputs, outputs, ModelParameters("classification", "logits", ())
    )


@pytest.mark.processes
def test_every_sample_is_answered_as_the_model_answers_it(endpoint, sample, samples, capsys):
    url, _ = endpoint
    path, values = samples
    report = ask(Question(path, url))
    with Bundle(sample[0]) as bundle:
        scores = open_session(bundle.model(), bundle.manifest.runtime).run([values])[0]
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    expected = shifted.max(axis=1) / shifted.sum(axis=1)
    assert [row.predicted for row in report.rows] == scores.argmax(axis=1).tolist()
    assert [row.label for row in report.rows] == ["abc"[i] for i in scores.argmax(axis=1)]
    np.testing.assert_allclose([row.confidence for row in report.rows], expected, rtol=1e-5)
    assert (report.model, report.version, len(report.rows)) == ("sample", "1.0.0", 40)
    assert 0 < report.model_p50_ms <= report.latency_p50_ms <= report.latency_p95_ms


@pytest.mark.processes
@pytest.mark.parametrize(("rows_max", "lines"), [(None, 40), (0, 0), (7, 7), (100, 40)])
def test_people_get_lines_and_a_summary(endpoint, samples, capsys, rows_max, lines):
    tell(ask(Question(samples[0], endpoint[0], "sample")), rows_max)
    said = capsys.readouterr().out.splitlines()
    answers = [line for line in said if re.fullmatch(r" *\d+  [abc] +\d+\.\d%  +\d+\.\d\d ms", line)]
    assert len(answers) == lines
    assert any("more; --rows all" in line for line in said) is (lines < 40)
    assert sum(int(count) for count in re.findall(r"[abc]: (\d+)", said[-2])) == 40
    assert said[-1].startswith("40 samples, sample 1.0.0: p50 ")


@pytest.mark.processes
def test_an_agent_without_a_model_is_waited_for(endpoint, sample, supervisor, samples):
    url, serving = endpoint
    serving.swap(None).stop()
    started_s = time.monotonic()
    with pytest.raises(TransferError, match="no model now"):
        ask(Question(samples[0], url, wait_s=0.6))
    assert time.monotonic() - started_s >= 0.5
    later = threading.Timer(1.0, lambda: serving.swap(supervisor.load(*sample)))
    later.start()
    assert len(ask(Question(samples[0], url, wait_s=60.0)).rows) == 40
    later.join()


@pytest.mark.processes
def test_refusals_of_the_endpoint_become_the_right_errors(endpoint, samples):
    url, serving = endpoint
    with pytest.raises(ConfigError, match="no such model here; there are: sample"):
        ask(Question(samples[0], url, "other"))
    serving.swap(None).stop()
    with pytest.raises(TransferError, match="no model now"):
        ask(Question(samples[0], url))
    with pytest.raises(TransferError, match="no model serves") as caught:
        ask(Question(samples[0], url, "sample"))
    assert caught.value.exit_code == 4


def test_nobody_listening_is_a_link_that_is_down_with_a_hint(samples):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(LinkDownError, match="no agent answers") as caught:
        ask(Question(samples[0], f"http://127.0.0.1:{port}"))
    assert caught.value.exit_code == 4
    assert "edgeml agent run" in caught.value.hint


@pytest.mark.parametrize("url", ["", "127.0.0.1:8090", "ftp://x", "http://", "http://x:port"])
def test_a_url_that_is_none_is_the_users_to_fix(url):
    with pytest.raises(ConfigError, match="no URL"):
        Client(url)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", ManifestError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", ManifestError),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", BackendError),
        (b"HTTP/1.1 404 No\r\nContent-Length: 4\r\n\r\npage", ConfigError),
        (b"SSH-2.0-OpenSSH\r\n", LinkDownError),
        (b"", LinkDownError),
    ],
)
def test_something_else_that_listens_is_not_taken_for_an_agent(samples, answer, error):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(error):
            ask(Question(samples[0], f"http://127.0.0.1:{listener.getsockname()[1]}"))
        thread.join()


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_the_array_with_the_inputs_name_is_preferred_to_the_first(tmp_path):
    path = save(tmp_path / "a.npz", other=np.zeros((2, 9)), x=np.ones((3, 4)))
    (array,) = read_samples(path, metadata())
    assert array.dtype == np.float32
    assert array.shape == (3, 4)


def test_json_holds_a_bare_array_or_one_for_each_input(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[[1, 2, 3, 4], [5, 6, 7, 8]]")
    assert read_samples(path, metadata())[0].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    path.write_text('{"b": [[5, 6, 7, 8]], "a": [[1, 2, 3, 4]]}')
    first, second = read_samples(path, metadata(names=("a", "b")))
    assert (first.tolist(), second.tolist()) == ([[1, 2, 3, 4]], [[5, 6, 7, 8]])


def test_a_single_sample_needs_no_leading_dimension(tmp_path):
    assert read_samples(save(tmp_path / "a.npz", x=np.zeros(4)), metadata())[0].shape == (1, 4)


def test_reals_are_quantized_for_a_model_that_takes_integers(tmp_path):
    path = save(tmp_path / "a.npz", x=np.array([[0.0, 0.5, -100.0, 100.0]]))
    (array,) = read_samples(path, metadata("INT8", quantization=Quantization(0.5, 3)))
    assert array.dtype == np.int8
    assert array.tolist() == [[3, 4, -128, 127]]
    with pytest.raises(ConfigError, match="is float64, the model takes int8"):
        read_samples(path, metadata("INT8"))


def test_small_integers_of_json_fit_a_model_that_takes_bytes(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[[0, 1, 2, 255]]")
    assert read_samples(path, metadata("UINT8"))[0].dtype == np.uint8
    path.write_text("[[0, 1, 2, 256]]")
    with pytest.raises(ConfigError, match="is int64, the model takes uint8"):
        read_samples(path, metadata("UINT8"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.npz", None, "cannot read"),
        ("text.npz", b"hello", "holds no arrays"),
        ("text.json", b"{", "holds no arrays"),
        ("words.json", b'["a", "b"]', "no arrays of numbers"),
        ("ragged.json", b"[[1, 2], [3]]", "holds no arrays"),
        ("empty.json", b"{}", "no arrays of numbers"),
        ("deep.json", b"[" * 100_000, "holds no arrays"),
        ("other.json", b"[[1, 2, 3]]", "the model takes [-1, 4]"),
        ("nothing.json", b"[]", "the model takes [-1, 4]"),
    ],
)
def test_a_file_that_does_not_fit_is_the_users_to_fix(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_samples(path, metadata())
    assert words in caught.value.message
    assert "\n" not in caught.value.message


def test_pickled_arrays_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ConfigError, match="holds no arrays"):
        read_samples(path, metadata())


def test_inputs_must_have_equally_many_samples_and_none_may_be_missing(tmp_path):
    path = save(tmp_path / "a.npz", a=np.zeros((2, 4)), b=np.zeros((3, 4)))
    with pytest.raises(ConfigError, match="equally many"):
        read_samples(path, metadata(names=("a", "b")))
    with pytest.raises(ConfigError, match="no array c"):
        read_samples(path, metadata(names=("a", "c")))
    with pytest.raises(ConfigError, match="no samples"):
        read_samples(save(tmp_path / "b.npz", x=np.zeros((0, 4))), metadata())


def test_confidence_is_the_highest_probability_or_unknown():
    described = metadata()
    scores = np.array([[0.0, np.log(3.0)]], np.float32)
    assert confidence(scores, described) == pytest.approx(0.75)
    probabilities = msgspec.structs.replace(
        described, parameters=ModelParameters("classification", "probabilities", ())
    )
    assert confidence(np.array([[0.2, 0.8]], np.float32), probabilities) == pytest.approx(0.8)
    neither = msgspec.structs.replace(described, parameters=ModelParameters("classification", "none", ()))
    assert confidence(scores, neither) is None
