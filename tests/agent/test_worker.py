"""What a worker answers, run in a thread of this process: loading, answering, counting, golden vectors, refusals."""

import socket
import threading

import msgspec
import numpy as np
import pytest

from agent import ipc
from agent.channel import Channel
from agent.health import GoldenRun
from agent.ipc import Kind, LoadRequest, LoadResult, Taken
from agent.worker import InputArrays, Service, tensor_bytes
from edgeml import golden as golden_vectors
from edgeml import monitor as monitor_format
from edgeml.bundle import GOLDEN, MONITOR, Bundle, write_bundle
from edgeml.errors import (
    ArtifactError,
    BackendError,
    ConfigError,
    DigestMismatchError,
    IncompatibleError,
    ManifestError,
)
from edgeml.ids import digest_of_file
from edgeml.tensors import DType, TensorSpec


class Asked:
    """A worker's service in a thread, and its supervisor's end of the socket."""

    def __init__(self):
        ours, theirs = socket.socketpair()
        self.channel, self.other = Channel(ours), Channel(theirs)
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        try:
            Service(self.other).run()
        except EOFError:
            pass
        finally:
            self.other.close()

    def ask(self, kind, parts=()):
        self.channel.send(kind, 5, parts)
        frame = self.channel.receive(20.0)
        assert frame.request_id == 5
        if frame.kind is Kind.FAILURE:
            raise ipc.decode_message(frame.payload, ipc.Failure).error()
        assert frame.kind == kind + 1
        return frame.payload

    def load(self, path, digest):
        request = LoadRequest(str(path), digest, 1)
        return ipc.decode_message(self.ask(Kind.LOAD, ipc.encode_message(request)), LoadResult)

    def infer(self, tensors):
        return ipc.decode_answer(self.ask(Kind.INFER, ipc.encode_tensors(tensors)))

    def golden(self):
        return ipc.decode_message(self.ask(Kind.GOLDEN), GoldenRun)

    def take(self):
        return ipc.decode_message(self.ask(Kind.TAKE), Taken)

    def end(self):
        self.channel.close()
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture
def service():
    made = Asked()
    yield made
    made.end()


@pytest.fixture
def rewritten(sample, tmp_path):
    """Write the sample bundle again with other members or another manifest; return (path, digest)."""

    def make(members=None, without=(), **changes):
        path = tmp_path / "changed.edgeml"
        with Bundle(sample[0]) as bundle:
            kept = {e.name: bundle.read(e.name) for e in bundle.manifest.files if e.name not in without}
            manifest = msgspec.structs.replace(bundle.manifest, **changes)
        write_bundle(path, manifest, kept | (members or {}))
        return path, digest_of_file(path)

    return make


def test_a_loaded_bundle_says_what_it_is(service, sample):
    loaded = service.load(*sample)
    assert loaded.manifest.release == "sample@1.0.0"
    assert loaded.runtime.startswith("onnxruntime ")
    assert loaded.memory_bytes > 1 << 20


def test_an_answer_is_the_models_with_its_class_and_latency(service, sample, ask):
    from edgeml.runtime import open_session

    with Bundle(sample[0]) as bundle:
        session = open_session(bundle.model(), bundle.manifest.runtime)
    service.load(*sample)
    for value in (1.0, -1.0, 3.0):
        expected = session.run([np.full((1, 4), value, np.float32)])[0]
        answer = service.infer(ask(value))
        (output,) = answer.outputs
        assert (output.dtype, output.shape) == (DType.FLOAT32, (1, 3))
        assert output.data == expected.tobytes()
        assert answer.predicted == expected.argmax()
        assert 0 < answer.latency_us < 1e6


def test_a_batch_is_answered_and_has_no_single_class(service, sample, ask):
    service.load(*sample)
    answer = service.infer(ask(1.0, rows=5))
    assert answer.outputs[0].shape == (5, 3)
    assert answer.predicted is None


def test_requests_of_changing_shapes_are_not_mixed_up(service, sample, ask):
    service.load(*sample)
    first = service.infer(ask(1.0))
    service.infer(ask(9.0, rows=3))
    assert service.infer(ask(2.0)).outputs != first.outputs
    assert service.infer(ask(1.0)).outputs == first.outputs


def test_every_sample_is_counted_once_and_golden_vectors_are_not(service, sample, ask):
    service.load(*sample)
    service.golden()
    service.infer(ask(1.0))
    service.infer(ask(1.0, rows=300))
    taken = service.take()
    assert taken.sketch.rows == 301
    assert all(sum(column) == 301 for column in taken.sketch.counts)
    assert taken.memory_bytes > 1 << 20
    assert service.take().sketch.rows == 0


def test_golden_vectors_of_a_sound_bundle_pass(service, sample):
    service.load(*sample)
    run = service.golden()
    assert run.passed
    assert run.agreement == 1.0
    assert run.difference_fraction < 1e-5
    assert run.latency_p50_ms > 0
    assert run.peak_memory_bytes > 1 << 20


def test_golden_vectors_that_the_model_does_not_give_fail(service, sample, rewritten):
    with Bundle(sample[0]) as bundle:
        recorded = golden_vectors.decode(bundle.read(GOLDEN), bundle.manifest)
    wrong = golden_vectors.Golden(recorded.inputs, tuple(-array for array in recorded.outputs))
    service.load(*rewritten({GOLDEN: golden_vectors.encode(wrong)}))
    run = service.golden()
    assert not run.passed
    assert run.agreement < 0.9


def test_a_bundle_without_golden_vectors_or_monitor_serves_and_says_so(service, rewritten, ask):
    service.load(*rewritten(without=(GOLDEN, MONITOR)))
    service.infer(ask())
    taken = service.take()
    assert (taken.sketch, taken.low_confidence) == (None, 0)
    with pytest.raises(ArtifactError, match=r"has no golden\.npz"):
        service.golden()


def test_bytes_that_are_not_the_signed_ones_are_refused_before_loading(service, sample, tmp_path):
    data = bytearray(sample[0].read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / "changed.edgeml"
    path.write_bytes(data)
    with pytest.raises(DigestMismatchError, match="signed metadata states"):
        service.load(path, sample[1])


def test_a_bundle_that_is_missing_is_the_users_to_fix(service, sample, tmp_path):
    with pytest.raises(ConfigError, match="cannot read bundle"):
        service.load(tmp_path / "none.edgeml", sample[1])


def test_a_model_that_the_runtime_refuses_is_a_backend_error(service, rewritten):
    with pytest.raises(BackendError, match="cannot load the model"):
        service.load(*rewritten({"model.onnx": b"no model"}))


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec("x", DType.FLOAT32, (-1, 5)),
        TensorSpec("x", DType.FLOAT64, (-1, 4)),
        TensorSpec("x", DType.FLOAT32, (-1, 4, 1)),
    ],
)
def test_a_manifest_that_describes_another_model_is_refused(service, rewritten, spec):
    with pytest.raises(IncompatibleError, match="inputs are not the ones"):
        service.load(*rewritten(inputs=(spec,), without=(MONITOR,)))


def test_a_monitor_of_another_model_is_refused(service, sample, rewritten):
    with Bundle(sample[0]) as bundle:
        monitor = monitor_format.decode(bundle.read(MONITOR))
    columns = tuple(msgspec.structs.replace(column, tensor="other") for column in monitor.columns)
    changed = monitor_format.encode(msgspec.structs.replace(monitor, columns=columns))
    with pytest.raises(ArtifactError, match="the monitor counts other"):
        service.load(*rewritten({MONITOR: changed}))


def test_nothing_is_counted_where_shapes_are_free(service, rewritten, ask):
    service.load(*rewritten(inputs=(TensorSpec("x", DType.FLOAT32, (-1, -1)),)))
    service.infer(ask())
    assert service.take().sketch is None


def test_a_failed_request_leaves_the_worker_answering(service, sample, ask):
    service.load(*sample)
    wrong = (ipc.TensorBytes(DType.FLOAT32, (1, 5), bytes(20)),)
    with pytest.raises(BackendError, match="onnxruntime"):
        service.infer(wrong)
    with pytest.raises(ManifestError):
        service.ask(Kind.INFER, [b"garbage that is no tensors"])
    with pytest.raises(BackendError, match="is no request"):
        service.ask(Kind.COMPARED)
    assert service.infer(ask()).predicted is not None


def test_a_request_before_a_model_is_refused(service, ask):
    with pytest.raises(BackendError, match="before a model was loaded"):
        service.infer(ask())


def test_stop_ends_the_service(service, sample):
    service.load(*sample)
    service.ask(Kind.STOP)
    service.thread.join(60)
    assert not service.thread.is_alive()


@pytest.mark.parametrize("dtype", DType)
def test_arrays_of_every_type_become_tensors_and_arrays_again(dtype):
    array = np.arange(12).reshape(3, 4).astype(dtype.value)
    payload = memoryview(b"".join(ipc.encode_tensors([tensor_bytes(array), tensor_bytes(array.T)])))
    first, second = InputArrays().view(payload)
    assert first.dtype == second.dtype == array.dtype
    np.testing.assert_array_equal(first, array)
    np.testing.assert_array_equal(second, array.T)


def test_large_arrays_become_tensors_in_c_order_without_a_copy():
    array = np.arange(100_000, dtype=np.float32).reshape(100, 1000)
    assert np.shares_memory(np.frombuffer(tensor_bytes(array).data, np.float32), array)
    assert bytes(tensor_bytes(array.T).data) == np.ascontiguousarray(array.T).tobytes()
    with pytest.raises(IncompatibleError, match="complex128"):
        tensor_bytes(np.zeros(3, complex))
