"""Frames: what goes in comes out, and any other bytes are refused."""

import contextlib
import math
import socket
import struct
import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import ipc
from agent.channel import BUFFER_BYTES, PATIENCE_NS, PAUSE_MAX, SOON_NS, TAKEN_AWAY_NS, Channel, Patience
from agent.health import GoldenRun
from agent.ipc import Answer, Failure, Kind, LoadRequest, LoadResult, Place, Taken, TensorBytes
from edgeml import errors
from edgeml.errors import BackendError, BudgetError, EdgemlError, ManifestError
from edgeml.tensors import DType

JSON_KINDS = (LoadRequest, LoadResult, Taken, Failure, GoldenRun)
ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, EdgemlError) and kind is not BudgetError
]


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(DType))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=5)))
    size = dtype.item_bytes * math.prod(shape)
    return TensorBytes(dtype, shape, draw(st.binary(min_size=size, max_size=size)))


def joined(parts):
    return memoryview(b"".join(parts))


@pytest.fixture
def channels():
    pair = [Channel(end) for end in socket.socketpair()]
    yield pair
    for channel in pair:
        channel.close()


@given(st.lists(tensors(), max_size=5))
def test_tensors_survive_and_their_data_are_aligned(given_tensors):
    payload = joined(ipc.encode_tensors(given_tensors))
    assert ipc.decode_tensors(payload) == tuple(given_tensors)
    layout = ipc.read_layout(payload)
    assert len(payload) % 8 == 0
    assert all(first % 8 == 0 for first, _ in layout.spans)


@given(st.lists(tensors(), max_size=3), st.floats(0, 1e9), st.none() | st.integers(0, 1000))
def test_an_answer_survives(outputs, latency_us, predicted):
    answer = Answer(tuple(outputs), latency_us, predicted)
    assert ipc.decode_answer(joined(ipc.encode_answer(answer))) == answer


@given(st.sampled_from(Kind), st.integers(0, 0xFFFFFFFF), st.integers(0, ipc.PAYLOAD_BYTES_MAX))
def test_a_header_survives(kind, request_id, length):
    for place in Place if kind in ipc.SHAREABLE else (Place.BEHIND,):
        header = ipc.encode_header(kind, request_id, length, place)
        assert len(header) == ipc.HEADER_BYTES
        assert ipc.decode_header(header) == (kind, place, request_id, length)


@pytest.mark.parametrize("kind", sorted(set(Kind) - ipc.SHAREABLE))
def test_json_never_lies_in_shared_memory(kind):
    """It is parsed where it lies, and the other end could change it meanwhile."""
    header = bytearray(ipc.encode_header(kind, 1, 10))
    header[3] |= Place.SHARED
    with pytest.raises(ManifestError, match="something else than a header"):
        ipc.decode_header(header)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_manifest_error(data):
    for decode in (
        ipc.decode_header,
        lambda raw: ipc.decode_tensors(memoryview(raw)),
        lambda raw: ipc.decode_answer(memoryview(raw)),
        *(lambda raw, kind=kind: ipc.decode_message(memoryview(raw), kind) for kind in JSON_KINDS),
    ):
        with contextlib.suppress(ManifestError):
            decode(data)


@given(st.lists(tensors(), min_size=1, max_size=3), st.data())
def test_changed_tensors_are_a_value_or_a_manifest_error(given_tensors, data):
    payload = bytearray(b"".join(ipc.encode_tensors(given_tensors)))
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = payload[: data.draw(st.integers(0, len(payload)))]
    for one in (payload, cut):
        try:
            found = ipc.decode_tensors(memoryview(one))
        except ManifestError:
            continue
        assert sum(len(tensor.data) for tensor in found) <= len(one)


def heads(*parts):
    body = b"".join(parts)
    return memoryview(struct.pack("<II", len(parts), len(body)) + body)


@pytest.mark.parametrize(
    "payload",
    [
        heads(struct.pack("<BB6xQQ", 0, 2, 1 << 63, 1 << 63)),
        heads(struct.pack("<BB6xQQ", 0, 2, 0, 1 << 63)),
        heads(struct.pack("<BB6x", 99, 0)),
        heads(struct.pack("<BB6x", 0, 200)),
        memoryview(struct.pack("<II", 0xFFFFFFFF, 0)),
        memoryview(struct.pack("<II", 1, 0xFFFFFFFF)),
        memoryview(struct.pack("<II", 0, 8) + bytes(8)),
    ],
)
def test_absurd_dimensions_types_and_counts_are_refused(payload):
    with pytest.raises(ManifestError):
        ipc.decode_tensors(payload)


def test_too_many_tensors_or_dimensions_are_never_sent():
    flat = TensorBytes(DType.BOOL, (1,), b"\1")
    with pytest.raises(ValueError, match="more than"):
        ipc.encode_heads([flat] * (ipc.TENSORS_MAX + 1))
    with pytest.raises(ValueError, match="more than"):
        ipc.encode_heads([TensorBytes(DType.BOOL, (1,) * 9, b"\1")])


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_keeps_class_message_and_hint_on_its_way(kind):
    failure = ipc.decode_message(joined(ipc.encode_message(Failure.of(kind("no", hint="do")))), Failure)
    error = failure.error()
    assert (type(error), error.message, error.hint) == (kind, "no", "do")


def test_a_budget_error_keeps_its_figures():
    error = Failure.of(BudgetError("no", budget=1.5, observed=2.5, unit="ms")).error()
    assert isinstance(error, BudgetError)
    assert (error.budget, error.observed, error.unit) == (1.5, 2.5, "ms")


def test_a_foreign_error_becomes_one_line_of_a_backend_error():
    error = Failure.of(RuntimeError("first\nsecond")).error()
    assert type(error) is BackendError
    assert error.message == "the worker failed: RuntimeError first"


@pytest.mark.parametrize("kind", ["Exception", "ClassVar", "annotations", "__doc__", "nonsense"])
def test_a_worker_cannot_choose_another_class_than_an_error_of_edgeml(kind):
    assert type(Failure(kind, "no").error()) is BackendError


@pytest.mark.parametrize("size", [0, 1, 1000, BUFFER_BYTES - ipc.HEADER_BYTES, BUFFER_BYTES, 5_000_001])
def test_a_frame_of_any_size_arrives_whole(channels, size):
    ours, theirs = channels
    parts = [bytes(range(256)) * (size // 256), b"x" * (size % 256)]
    sender = threading.Thread(target=ours.send, args=(Kind.INFER, 7, parts))
    sender.start()
    frame = theirs.receive(5.0)
    sender.join()
    assert (frame.kind, frame.request_id) == (Kind.INFER, 7)
    assert frame.payload == b"".join(parts)


def test_frames_that_arrive_together_and_in_pieces_are_told_apart():
    left, right = socket.socketpair()
    channel = Channel(right)
    stream = b"".join(ipc.encode_header(Kind.TAKE, i, 3) + bytes([i] * 3) for i in range(20))
    left.sendall(stream[:50])
    timer = threading.Timer(0.05, left.sendall, (stream[50:],))
    timer.start()
    for i in range(20):
        frame = channel.receive(2.0)
        assert (frame.request_id, bytes(frame.payload)) == (i, bytes([i] * 3))
    timer.join()
    left.close()
    channel.close()


def test_a_closed_end_a_silent_end_and_a_deaf_end_are_told_apart(channels):
    ours, theirs = channels
    with pytest.raises(TimeoutError):
        ours.receive(0.05)
    with pytest.raises(TimeoutError):
        ours.send(Kind.INFER, 1, [bytes(10 << 20)], 0.05)
    theirs.close()
    with pytest.raises((EOFError, OSError)):
        ours.receive(0.05)


def test_a_trickling_end_runs_into_the_timeout():
    left, right = socket.socketpair()
    channel = Channel(right)
    stop = threading.Event()

    def trickle():
        left.send(ipc.encode_header(Kind.TAKEN, 1, 1000))
        while not stop.wait(0.02):
            left.send(b"x")

    thread = threading.Thread(target=trickle)
    thread.start()
    with pytest.raises(TimeoutError):
        channel.receive(0.2)
    stop.set()
    thread.join()
    left.close()
    channel.close()


def test_memory_is_given_to_bytes_that_came_not_to_bytes_that_were_announced():
    left, right = socket.socketpair()
    channel = Channel(right)
    left.send(ipc.encode_header(Kind.TAKEN, 1, ipc.PAYLOAD_BYTES_MAX) + bytes(1000))
    left.close()
    with pytest.raises(EOFError):
        channel.receive(1.0)
    assert len(channel._buffer) == BUFFER_BYTES
    channel.close()


def test_a_frame_longer_than_the_limit_is_neither_sent_nor_received(channels):
    ours, _ = channels
    with pytest.raises(ValueError, match="more than"):
        ours.send(Kind.INFER, 1, [bytes(ipc.PAYLOAD_BYTES_MAX + 1)])
    header = struct.pack("<4sIQ", bytes((*b"em", ipc.VERSION, Kind.INFER)), 1, ipc.PAYLOAD_BYTES_MAX + 1)
    with pytest.raises(ManifestError, match="more than"):
        ipc.decode_header(header)


def test_messages_refuse_fields_they_do_not_know():
    raw = msgspec.json.encode({"path": "p", "digest": "d", "threads": 1, "more": 2})
    with pytest.raises(ManifestError):
        ipc.decode_message(memoryview(raw), LoadRequest)


def test_frames_are_looked_for_only_while_they_come_soon_and_where_the_other_end_can_run():
    patience = Patience(2)
    assert not patience.looks()
    patience.slept(SOON_NS - 1)
    assert patience.looks()
    patience.slept(SOON_NS)
    assert not patience.looks()
    alone = Patience(1)
    alone.slept(1)
    assert not alone.looks()


def pause_after(patience, *looked_ns):
    for duration_ns in looked_ns:
        patience.looked(duration_ns)
    return next(i for i in range(PAUSE_MAX + 2) if patience.looks())


def test_looking_in_vain_is_tried_less_and_less_often_and_again_when_it_pays():
    patience = Patience(2)
    patience.slept(1)
    assert [pause_after(patience, PATIENCE_NS) for _ in range(4)] == [1, 3, 7, 15]
    assert pause_after(patience, *[1] * 4) == 0
    assert pause_after(patience, PATIENCE_NS) == 1
    assert max(pause_after(patience, PATIENCE_NS) for _ in range(20)) == PAUSE_MAX


def test_where_another_process_takes_the_processor_away_looking_stops_for_long():
    patience = Patience(2)
    patience.slept(1)
    assert pause_after(patience, TAKEN_AWAY_NS + 1) == PAUSE_MAX


def test_a_channel_that_looks_and_one_that_sleeps_receive_the_same(channels):
    ours, theirs = channels
    for processors in (1, 2):
        theirs._patience = Patience(processors)
        theirs._patience.slept(1)
        assert theirs._patience.looks() is (processors > 1)
        for pause_s in (0.0, 0.00005, 0.005):
            thread = threading.Timer(pause_s, ours.send, (Kind.INFER, 7, [b"frame"]))
            thread.start()
            frame = theirs.receive(2.0)
            thread.join()
            assert frame.payload == b"frame"
    theirs._patience.slept(1)
    ours.close()
    with pytest.raises((EOFError, OSError)):
        theirs.receive(1.0)
