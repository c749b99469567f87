"""Shared memory: what is laid in it arrives whole, and a hostile worker gains nothing by having it."""

import contextlib
import mmap
import os
import random
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import area, ipc
from agent.area import SLOT_BYTES, Areas
from agent.channel import SHARED_BYTES_MIN, Channel
from agent.child import Child
from agent.ipc import Answer, Kind, Place, TensorBytes
from agent.supervisor import Supervisor, WorkerLimits
from edgeml.bundle import write_bundle
from edgeml.errors import BackendError, ManifestError
from edgeml.ids import digest_of, digest_of_file
from edgeml.manifest import Manifest, Measurement, Provenance, RuntimeFamily
from edgeml.runtime import open_session
from edgeml.tensors import DType

from ..waiting import wait_for

WIDTH = 50_000


class Ends:
    """A supervisor's channel and a worker's, with memory between them."""

    def __init__(self):
        descriptor = area.create()
        ours, theirs = Areas(descriptor), Areas(descriptor)
        os.close(descriptor)
        self.socket, other = socket.socketpair()
        self.theirs = theirs
        self.supervisor = Channel(self.socket, ours.requests, ours.answers)
        self.worker = Channel(other, theirs.answers, theirs.requests)
        self.other = other

    def close(self):
        self.supervisor.close()
        self.worker.close()


@pytest.fixture
def ends():
    made = Ends()
    yield made
    made.close()


@pytest.fixture(scope="module")
def doubling(tmp_path_factory):
    """(path, digest) of a model that doubles x float32 [-1, WIDTH]: requests and answers of 200 KB a row."""
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        "doubling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(np.array(2, np.float32), "two")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model = made.SerializeToString()
    session = open_session(model, RuntimeFamily.ONNX)
    manifest = Manifest(
        "doubling", "1.0.0", "onnx-fp32", RuntimeFamily.ONNX, ("generic-x86-64",), session.inputs, session.outputs,
        (), Measurement("", "", 1, 1.0, 1.0, 0), Provenance("", digest_of(model)),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("bundles") / "doubling.edgeml"
    write_bundle(path, manifest, {"model.onnx": model})
    return path, digest_of_file(path)


def request(value, rows=1):
    array = np.full((rows, WIDTH), value, np.float32)
    return (TensorBytes(DType.FLOAT32, array.shape, array.reshape(-1).view(np.uint8).data),)


def values(answer):
    return np.frombuffer(answer.outputs[0].data, np.float32)


SIZES = [SHARED_BYTES_MIN - 1, SHARED_BYTES_MIN, SLOT_BYTES - 3, SLOT_BYTES, SLOT_BYTES + 1]


@pytest.mark.parametrize("size", SIZES)
def test_a_frame_of_tensors_arrives_whole_both_ways_wherever_it_lies(ends, size):
    content = random.Random(size).randbytes(size)
    for sender, receiver, kind in (
        (ends.supervisor, ends.worker, Kind.INFER),
        (ends.worker, ends.supervisor, Kind.ANSWER),
    ):
        parts = [content[:10], content[10:]]
        thread = threading.Thread(target=sender.send, args=(kind, 7, parts))
        thread.start()
        frame = receiver.receive(5.0)
        thread.join()
        assert (frame.kind, frame.request_id) == (kind, 7)
        assert frame.payload == content
        shared = isinstance(frame.payload.obj, mmap.mmap)
        assert shared is (SHARED_BYTES_MIN <= size <= SLOT_BYTES)


def test_a_long_frame_of_json_goes_through_the_socket(ends):
    content = bytes(SHARED_BYTES_MIN)
    thread = threading.Thread(target=ends.worker.send, args=(Kind.TAKEN, 1, [content]))
    thread.start()
    frame = ends.supervisor.receive(5.0)
    thread.join()
    assert frame.payload == content
    assert not isinstance(frame.payload.obj, mmap.mmap)


def test_a_request_is_still_there_for_counting_while_the_next_one_is_laid_down(ends):
    first, second = b"1" * SHARED_BYTES_MIN, b"2" * SHARED_BYTES_MIN
    ends.supervisor.send(Kind.INFER, 5, [first])
    answered = ends.worker.receive(1.0).payload
    ends.supervisor.send(Kind.INFER, 6, [second])
    assert answered == first
    assert ends.worker.receive(1.0).payload == second


@pytest.mark.parametrize("length", [SLOT_BYTES + 1, ipc.PAYLOAD_BYTES_MAX])
def test_a_length_beyond_the_memory_is_refused(ends, length):
    ends.other.send(ipc.encode_header(Kind.ANSWER, 1, length, Place.SHARED))
    with pytest.raises(ManifestError, match="not shared"):
        ends.supervisor.receive(1.0)


def test_a_frame_in_memory_that_nobody_shares_is_refused():
    left, right = socket.socketpair()
    channel = Channel(right)
    left.send(ipc.encode_header(Kind.ANSWER, 1, 10, Place.SHARED))
    with pytest.raises(ManifestError, match="not shared"):
        channel.receive(1.0)
    left.close()
    channel.close()


@settings(max_examples=50)
@given(st.binary(max_size=200), st.integers(0, SLOT_BYTES))
def test_any_bytes_in_shared_memory_are_an_answer_or_a_manifest_error(content, length):
    ends = Ends()
    ends.theirs.answers.write(1, [content])
    ends.other.send(ipc.encode_header(Kind.ANSWER, 1, length, Place.SHARED))
    frame = ends.supervisor.receive(1.0)
    with contextlib.suppress(ManifestError):
        ipc.decode_answer(frame.payload)
    ends.close()


def test_an_answer_that_changes_while_it_is_read_is_an_answer_or_a_manifest_error(ends):
    """Lengths are believed only once they are copied: what is returned always fits its own shape."""
    tensor = TensorBytes(DType.FLOAT32, (1, WIDTH), bytes(4 * WIDTH))
    good = b"".join(ipc.encode_answer(Answer((tensor,), 1.0, None)))
    stop = threading.Event()
    generator = random.Random(0)

    def scribble():
        while not stop.is_set():
            ends.theirs.answers.write(1, [good])
            at = generator.randrange(64)
            ends.theirs.answers.write(1, [good[:at] + generator.randbytes(8)])

    ends.theirs.answers.write(1, [good])
    thread = threading.Thread(target=scribble)
    thread.start()
    header = ipc.encode_header(Kind.ANSWER, 1, len(good), Place.SHARED)
    outcomes = set()
    until_s = time.monotonic() + 60
    turns = 0
    while (turns < 1000 or len(outcomes) < 2) and time.monotonic() < until_s:
        turns += 1
        ends.other.send(header)
        frame = ends.supervisor.receive(1.0)
        try:
            answer = ipc.decode_answer(frame.payload)
        except ManifestError:
            outcomes.add("refused")
            continue
        outcomes.add("answered")
        for one in answer.outputs:
            assert len(one.data) == one.dtype.item_bytes * int(np.prod(one.shape))
    stop.set()
    thread.join()
    assert outcomes == {"refused", "answered"}


def test_nobody_can_change_the_size_of_the_memory():
    descriptor = area.create()
    size = os.fstat(descriptor).st_size
    for other in (0, size - 1, size + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, other)
    assert os.fstat(descriptor).st_size == size
    os.close(descriptor)


@pytest.mark.processes
def test_large_requests_of_changing_sizes_and_values_are_each_answered(supervisor, doubling):
    worker = supervisor.load(*doubling)
    for turn in range(40):
        # 10 KB more than a slot at 45 rows: those go through the socket, in between the others.
        for rows in (1, 3, 45):
            answer = worker.infer(request(float(turn), rows))
            assert answer.outputs[0].shape == (rows, WIDTH)
            assert (values(answer) == 2 * turn).all()


@pytest.mark.processes
def test_threads_with_large_requests_get_their_own_answers(supervisor, doubling):
    worker = supervisor.load(*doubling)
    wrong = []

    def run(value):
        wrong.extend(1 for _ in range(100) if not (values(worker.infer(request(value))) == 2 * value).all())

    threads = [threading.Thread(target=run, args=(float(value),)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.processes
@pytest.mark.parametrize("seed", range(5))
def test_a_worker_killed_in_the_middle_of_large_requests_is_an_error_and_never_a_wrong_answer(
    supervisor, doubling, seed
):
    worker = supervisor.load(*doubling, WorkerLimits(request_timeout_s=5.0))
    expected = worker.infer(request(1.0, 40)).outputs
    killer = threading.Timer(0.02 + random.Random(seed).random() / 20, os.kill, (worker.pid, signal.SIGKILL))
    killer.start()

    def ask_until_it_dies():
        for _ in range(10_000):
            assert worker.infer(request(1.0, 40)).outputs == expected

    with pytest.raises(BackendError, match="SIGKILL"):
        ask_until_it_dies()
    killer.join()
    worker.stop()
    assert (values(supervisor.load(*doubling).infer(request(1.0))) == 2.0).all()


@pytest.mark.processes
def test_without_shared_memory_tensors_go_through_the_socket(forkserver, doubling, monkeypatch):
    def refuse():
        raise PermissionError("no memory for you")

    monkeypatch.setattr(area, "create", refuse)
    supervisor = Supervisor(forkserver)
    worker = supervisor.load(*doubling)
    assert (values(worker.infer(request(3.0))) == 6.0).all()
    supervisor.close()


@pytest.mark.processes
def test_workers_that_come_and_go_leave_no_memory_mapped(forkserver):
    def mapped():
        return Path("/proc/self/maps").read_text().count("edgeml-tensors")

    before = mapped()
    for _ in range(5):
        child = Child(forkserver)
        assert mapped() > before
        child.kill("was stopped")
        child.close()
        del child
    wait_for(lambda: mapped() == before, "what was mapped to go")
