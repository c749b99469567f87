"""The sampler: from a request to a row, as exact bytes; nothing at all unless the settings ask for it."""

import math

import msgspec
import numpy as np
import pytest

from agent.answering import Answering
from agent.buffer import Buffer, BufferLimits
from agent.confidence import confidence
from agent.config import SamplesConfig, load
from agent.ipc import TensorBytes
from agent.roster import Roster
from agent.sampler import Sampler
from agent.selection import Select
from agent.uplink import Uplink
from agent.windows import Windows
from edgeml.columns import probabilities, to_real
from edgeml.errors import ConfigError
from edgeml.ids import DeviceId, TenantId
from edgeml.manifest import ScoreKind
from edgeml.telemetry import DropReason, Event, Stream, Why, decode_batch, encode_row
from edgeml.tensors import DType, TensorSpec
from edgeml.testing import FakeClock

CONFIG = SamplesConfig(bytes_per_day=1_000_000, select=Select.BOTH, rows_per_hour=3600.0, confidence_max=1.0)


@pytest.mark.parametrize(
    ("dtype", "scale", "zero"),
    [("float32", None, None), ("float16", None, None), ("float64", None, None), ("int8", 0.1, -3), ("uint8", 1 / 256, 0), ("int16", 0.01, 5)],
)  # fmt: skip
@pytest.mark.parametrize("kind", ScoreKind)
def test_confidence_is_what_windows_count(dtype, scale, zero, kind):
    source = np.random.default_rng(1)
    for _ in range(20):
        values = source.normal(0, 3, (1, 7)) if scale is None else source.integers(0, 100, (1, 7))
        array = np.abs(values).astype(dtype) if kind is ScoreKind.PROBABILITIES else values.astype(dtype)
        spec = TensorSpec("y", DType(dtype), (-1, 7), scale=scale, zero_point=zero)
        found = confidence(TensorBytes(DType(dtype), array.shape, array.tobytes()), spec, kind)
        if kind is ScoreKind.NONE:
            assert found is None
            continue
        expected = float(probabilities(to_real(array, spec), kind).max())
        assert found == pytest.approx(min(1.0, max(0.0, expected)), abs=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_have_no_confidence(bad):
    array = np.array([1.0, bad], np.float32)
    spec = TensorSpec("y", DType.FLOAT32, (-1, 2))
    assert confidence(TensorBytes(DType.FLOAT32, (1, 2), array.tobytes()), spec, ScoreKind.LOGITS) is None


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def answering(supervisor, worker, clock):
    """A real worker behind a sampler."""
    roster = Roster(supervisor)
    roster.seat(worker.manifest.model).swap(worker)
    sampler = Sampler(CONFIG, clock, "seed")
    made = Answering(roster, Windows(60.0), clock, sampler=sampler)
    made.sampler = sampler
    yield made
    roster.close()


def test_a_request_becomes_a_row_with_its_bytes(answering, worker, ask, clock):
    model = worker.manifest.model
    for value in (1.0, 2.0, 3.0):
        answering.infer(model, ask(value), f"r{value:g}")
    asked_at_ms = clock.now_ms()
    assert answering.sampler.take().samples == ()
    clock.advance(3600.0)
    taken = answering.sampler.take()
    assert {one.why for one in taken.samples} == set(Why)
    for sample in taken.samples:
        assert (sample.release, sample.digest) == (worker.manifest.release, worker.digest)
        [tensor] = sample.inputs
        assert (tensor.name, tensor.dtype, tensor.shape) == ("x", DType.FLOAT32, (1, 4))
        value = float(sample.request[1:])
        assert np.frombuffer(tensor.unpack(), np.float32).tolist() == [value] * 4
        assert sample.at_ms == asked_at_ms
        assert 0.0 < sample.confidence <= 1.0
        assert sample.predicted in {0, 1, 2}
    [hard] = [one for one in taken.samples if one.why is Why.UNCERTAIN]
    # The model is linear: the smaller the input, the closer the scores.
    assert hard.request == "r1"
    assert answering.sampler.take().samples == ()


def test_requests_of_several_samples_are_not_sampled(answering, worker, ask, clock):
    answering.infer(worker.manifest.model, ask(1.0, rows=3), "r")
    clock.advance(86_400.0)
    assert answering.sampler.take().samples == ()


def test_what_is_too_long_is_counted(supervisor, worker, ask, clock):
    sampler = Sampler(msgspec.structs.replace(CONFIG, row_bytes_max=50, select=Select.RANDOM), clock, "s")
    roster = Roster(supervisor)
    roster.seat(worker.manifest.model).swap(worker)
    Answering(roster, Windows(60.0), clock, sampler=sampler).infer(worker.manifest.model, ask(), "r")
    clock.advance(86_400.0)
    taken = sampler.take()
    assert (taken.samples, taken.too_long) == ((), 1)
    assert sampler.take().too_long == 0
    buffer = Buffer(":memory:", "b1")
    buffer.refuse_new(Stream.SAMPLES, taken.too_long)
    buffer.flush()
    loss = buffer.loss(Stream.SAMPLES)
    assert (loss.produced, loss.dropped, loss.reasons.count(DropReason.TOO_LONG)) == (1, 1, 1)
    buffer.close()
    roster.close()


def sample_rows(answering, worker, ask, clock, count):
    rows = []
    while len(rows) < count:
        answering.infer(worker.manifest.model, ask(float(len(rows))), f"r{len(rows)}")
        clock.advance(3600.0)
        rows += answering.sampler.take().samples
    return rows


def test_samples_are_sent_last_and_given_up_first(answering, worker, ask, clock):
    rows = sample_rows(answering, worker, ask, clock, 30)
    buffer = Buffer(":memory:", "b1", BufferLimits(rows_max=40))
    for row in rows:
        buffer.append(row)
    for index in range(40):
        buffer.append(Event(seq=0, kind="k", at_ms=index))
    buffer.flush()
    assert buffer.loss(Stream.EVENTS).dropped == 0
    assert buffer.loss(Stream.SAMPLES).reasons.evicted == len(rows)
    for row in rows:
        assert len(encode_row(row)) < 1000
    uplink = Uplink(buffer, TenantId("acme"), DeviceId("cam-1"))
    buffer.append(rows[0])
    sent = [decode_batch(one.payload) for one in uplink.due(0.0, link_up=True)]
    assert [(len(one.events), len(one.samples)) for one in sent] == [(40, 0)]
    assert buffer.loss(Stream.EVENTS).dropped == 0
    buffer.close()


def config_text(samples):
    return (
        f'device = "cam-1"\nprofile = "generic-x86-64"\nstorage = "state"\n[telemetry.samples]\n{samples}\n'
    )


def test_nothing_is_sampled_unless_it_is_asked_for(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text(config_text(""))
    assert load(path).telemetry.samples.bytes_per_day == 0
    path.write_text(config_text('bytes_per_day = 1000000\nselect = "uncertain"'))
    assert load(path).telemetry.samples.select is Select.UNCERTAIN


@pytest.mark.parametrize(
    "wrong",
    ["bytes_per_day = -1", 'select = "all"', "row_bytes_max = 81921", "row_bytes_max = 0", "rows_per_hour = 0", "confidence_max = 1.5"],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(tmp_path, wrong):
    path = tmp_path / "agent.toml"
    path.write_text(config_text(wrong))
    with pytest.raises(ConfigError):
        load(path)
