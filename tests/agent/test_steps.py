"""A bundle with steps, served by a real worker process behind the real endpoint."""

import msgspec
import numpy as np
import pytest

from agent.answering import Answering
from agent.ipc import TensorBytes
from agent.roster import Roster
from agent.server import Server
from agent.windows import Windows
from edgeml import golden, monitor
from edgeml.bundle import GOLDEN, MONITOR, Bundle, write_bundle
from edgeml.client import Client
from edgeml.clock import SystemClock
from edgeml.errors import ConfigError, IncompatibleError
from edgeml.ids import ModelName, digest_of_file
from edgeml.kernels import softmax
from edgeml.pipeline import Pipeline
from edgeml.reference import build_monitor
from edgeml.runtime import open_session
from edgeml.steps import Normalise, Preparation, Processing, Reshape, Softmax, TopK
from edgeml.tensors import BATCH, DType, TensorSpec

VOLTS = TensorSpec("volts", DType.INT16, (BATCH, 2, 2), "NTC")
PROCESSING = Processing(
    before=(Preparation("x", VOLTS, (Normalise(0.001, (0.5, -0.5), (1.0, 2.0)), Reshape((4,)))),),
    after=(Softmax("logits"), TopK("logits", 2)),
    results=("logits", "classes"),
)
SAMPLES = np.random.default_rng(3).integers(-2000, 2000, (64, 2, 2)).astype(np.int16)


def prepared(samples):
    """The steps before the model, by hand."""
    real = (samples.astype(np.float64) * 0.001 - [0.5, -0.5]) / [1.0, 2.0]
    return real.astype(np.float32).reshape(-1, 4)


@pytest.fixture(scope="module")
def stepped(sample, tmp_path_factory):
    """(path, digest, session) of the sample model with steps, a monitor and golden vectors of them."""
    path = tmp_path_factory.mktemp("stepped") / "stepped.edgeml"
    with Bundle(sample[0]) as bundle:
        manifest = msgspec.structs.replace(bundle.manifest, processing=PROCESSING)
        model = bundle.model()
    session = open_session(model, manifest.runtime)
    answers = Pipeline(manifest).answer(session.run, [SAMPLES])
    logits = session.run([prepared(SAMPLES)])[0]
    watch = build_monitor(manifest.watched, {"volts": SAMPLES}, {"logits": logits})
    recorded = golden.Golden((SAMPLES[:16],), tuple(array[:16] for array in answers))
    members = {"model.onnx": model, MONITOR: monitor.encode(watch), GOLDEN: golden.encode(recorded)}
    write_bundle(path, manifest, members)
    return path, digest_of_file(path), session


@pytest.fixture
def worker(supervisor, stepped, limits):
    return supervisor.load(*stepped[:2], limits)


def ask(array):
    return [TensorBytes(DType(array.dtype.name), array.shape, array.tobytes())]


def test_what_goes_in_and_out_is_before_and_after_the_steps(worker, stepped):
    answer = worker.infer(ask(SAMPLES[:1]))
    logits = stepped[2].run([prepared(SAMPLES[:1])])[0]
    odds, classes = answer.outputs
    np.testing.assert_allclose(np.frombuffer(odds.data, np.float32), softmax(logits)[0], rtol=1e-4)
    assert (classes.dtype, classes.shape) == (DType.INT64, (1, 2))
    assert np.frombuffer(classes.data, np.int64)[0] == answer.predicted == logits.argmax()


def test_tensors_of_the_bare_model_are_refused_before_they_reach_the_worker(worker):
    with pytest.raises(ConfigError, match="volts is float32, the model takes int16"):
        worker.infer(ask(prepared(SAMPLES[:1])))


def test_golden_vectors_prove_the_steps(worker, supervisor, stepped, tmp_path, limits):
    assert worker.golden().passed
    other = Preparation("x", VOLTS, (Normalise(0.001, (0.6, -0.5), (1.0, 1.0)), Reshape((4,))))
    with Bundle(stepped[0]) as bundle:
        members = {entry.name: bundle.read(entry.name) for entry in bundle.manifest.files}
        changed = msgspec.structs.replace(
            bundle.manifest, processing=msgspec.structs.replace(PROCESSING, before=(other,))
        )
    path = tmp_path / "other.edgeml"
    write_bundle(path, changed, members)
    assert not supervisor.load(path, digest_of_file(path), limits).golden().passed


def test_drift_is_counted_on_what_users_send(worker):
    worker.infer(ask(SAMPLES))
    taken = worker.take()
    assert taken.sketch.rows == len(SAMPLES)
    # Counts of the reference itself: nothing lies outside of it, up to the largest value of each column.
    assert all(sum(column) == len(SAMPLES) for column in taken.sketch.counts)
    assert [column[0] for column in taken.sketch.counts[:-5]] == [0] * (len(taken.sketch.counts) - 5)


def test_a_step_that_the_worker_does_not_know_is_refused_at_load(supervisor, stepped, tmp_path, limits):
    import zipfile

    path = tmp_path / "newer.edgeml"
    with zipfile.ZipFile(stepped[0]) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename == "manifest.json":
                data = data.replace(b'"kind":"softmax"', b'"kind":"sharpen"')
            new.writestr(info, data)
    with pytest.raises(IncompatibleError, match="'sharpen', which this edgeml does not know"):
        supervisor.load(path, digest_of_file(path), limits)


def test_a_client_over_http_sees_what_the_manifest_says(supervisor, stepped, limits):
    roster = Roster(supervisor)
    roster.seat(ModelName("sample")).swap(supervisor.load(*stepped[:2], limits))
    server = Server(Answering(roster, Windows(60.0), SystemClock()), "127.0.0.1:0")
    server.start()
    try:
        with Client(server.url) as client:
            about = client.model(None)
            answer = client.infer("sample", {"volts": SAMPLES[:1]})
    finally:
        server.stop()
        roster.close()
    assert [(one.name, one.datatype, one.shape) for one in about.inputs] == [("volts", "INT16", (-1, 2, 2))]
    assert [(one.name, one.datatype, one.shape) for one in about.outputs] == [
        ("logits", "FP32", (-1, 3)),
        ("classes", "INT64", (-1, 2)),
    ]
    assert about.parameters.scores == "probabilities"
    assert list(answer.outputs) == ["logits", "classes"]
    assert abs(answer.outputs["logits"].sum() - 1) < 1e-5
    assert answer.label == "abc"[answer.outputs["classes"][0, 0]]
    assert answer.labels == {"classes": tuple("abc"[one] for one in answer.outputs["classes"].ravel())}
