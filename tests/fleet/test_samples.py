"""Samples at the fleet: stored once, bounded, and given out as arrays that are what the device saw."""

import zlib

import msgspec
import numpy as np
import pytest
import sqlalchemy as sa

from edgeml import telemetry
from edgeml.errors import ConfigError, ManifestError
from edgeml.ids import DeviceId, ReleaseId, TenantId
from edgeml.telemetry import Batch, Sample, SampledTensor, Stream, Why, encode_batch
from edgeml.tensors import DType
from edgeml.transport import Message
from edgeml.twin import Ack, decode
from fleet import ingest, samples, schema, telemetry_store
from fleet.ingest import RowsHeard
from fleet.samples import Filter
from fleet.samples_export import export
from fleet.store import Store

CAM = DeviceId("cam-1")
DIGITS, OTHER = ReleaseId("digits@1.0.0"), ReleaseId("digits2@1.0.0")
DIGEST = "a" * 64
NOW_MS = 1_800_000_000_000
ALL = Filter()


def tensor(value, name="x", shape=(1, 2, 3), dtype="float32"):
    array = np.full(shape, value, dtype)
    return SampledTensor(name, DType(dtype), shape, zlib.compress(array.tobytes()))


def sample(seq, **more):
    given = {
        "seq": seq, "release": DIGITS, "digest": DIGEST, "request": f"r{seq}", "inputs": (tensor(seq),), "at_ms": NOW_MS - 5,
        "why": Why.UNCERTAIN, "predicted": 3, "confidence": 0.4,
    }  # fmt: skip
    return Sample(**{**given, **more})


def heard(*rows, device=CAM, boot="b1"):
    return RowsHeard(DeviceId(device), Stream.SAMPLES, Batch(boot, samples=tuple(rows)))


@pytest.fixture
def store(tmp_path):
    opened = Store(f"sqlite:///{tmp_path / 'fleet.db'}")
    yield opened
    opened.close()


def keep(store, *batches, now_ms=NOW_MS):
    with store.write() as connection:
        return telemetry_store.store_rows(connection, batches, now_ms).added


def found(store, wanted=ALL, count=100):
    with store.read() as connection:
        return list(samples.newest_samples(connection, wanted, count))


def test_samples_are_stored_once_and_come_back_as_they_were(store):
    rows = [sample(1), sample(2, why=Why.RANDOM, predicted=None, confidence=None)]
    assert keep(store, heard(*rows)) == 2
    assert keep(store, heard(*rows, sample(3)), heard(sample(1), boot="b2")) == 2
    stored = found(store)
    assert [(one.boot, one.sample.seq) for one in stored] == [("b2", 1), ("b1", 3), ("b1", 2), ("b1", 1)]
    assert [one.sample for one in stored[2:]] == rows[::-1]


def test_a_device_and_all_devices_have_a_bound_and_the_oldest_go(store, monkeypatch):
    size = len(telemetry.encode_row(sample(1)))
    monkeypatch.setattr(samples, "DEVICE_BYTES_MAX", 3 * size + 10)
    monkeypatch.setattr(samples, "TOTAL_BYTES_MAX", 5 * size + 10)
    for seq in range(1, 6):
        keep(store, heard(sample(seq)))
    assert [one.sample.seq for one in found(store)] == [5, 4, 3]
    for seq in range(1, 6):
        keep(store, heard(sample(seq), device="cam-2"))
    assert [(one.device, one.sample.seq) for one in found(store)] == [
        ("cam-2", 5), ("cam-2", 4), ("cam-2", 3), ("cam-1", 5), ("cam-1", 4),
    ]  # fmt: skip


def test_what_is_old_is_pruned(store):
    keep(store, heard(sample(1)), now_ms=NOW_MS - 1000)
    keep(store, heard(sample(2)))
    with store.write() as connection:
        assert telemetry_store.prune(connection, NOW_MS) == 1
    assert [one.sample.seq for one in found(store)] == [2]


def test_filters_find_what_they_say(store):
    keep(store, heard(sample(1), sample(2, release=OTHER)), now_ms=NOW_MS - 1000)
    keep(store, heard(sample(1), device="cam-2"))

    def names(**wanted):
        return [(one.device, one.sample.release) for one in found(store, Filter(**wanted))]

    assert names(device=CAM) == [(CAM, OTHER), (CAM, DIGITS)]
    assert names(model="digits") == [("cam-2", DIGITS), (CAM, DIGITS)]
    assert names(model="digit%") == []
    assert names(release=OTHER) == [(CAM, OTHER)]
    assert names(since_ms=NOW_MS) == [("cam-2", DIGITS)]
    assert len(found(store, count=2)) == 2
    with store.read() as connection:
        counts = samples.count_samples(connection, Filter(device=CAM))
    assert {(one.release, one.uncertain, one.random) for one in counts} == {(DIGITS, 1, 0), (OTHER, 1, 0)}
    assert counts[-1].stored_bytes == len(telemetry.encode_row(sample(1)))


def test_a_database_of_before_gets_the_table(tmp_path):
    url = f"sqlite:///{tmp_path / 'fleet.db'}"
    first = Store(url)
    with first.write() as connection:
        schema.samples.drop(connection)
    first.close()
    again = Store(url)
    assert keep(again, heard(sample(1))) == 1
    again.close()


def test_the_file_holds_what_the_device_saw(store, tmp_path):
    image = SampledTensor("image", DType.UINT8, (1, 2, 2), zlib.compress(bytes([1, 2, 3, 4])))
    gain = SampledTensor("gain", DType.INT16, (1,), zlib.compress(np.array([-7], "<i2").tobytes()))
    keep(
        store,
        heard(
            sample(1, inputs=(image, gain)), sample(2, inputs=(image, gain), predicted=None, confidence=None)
        ),
    )
    out = tmp_path / "samples.npz"
    done = export(found(store), out)
    assert (done.samples, done.inputs) == (2, {"image": "uint8 [2, 2, 2]", "gain": "int16 [2]"})
    with np.load(out, allow_pickle=False) as file:
        assert file["image"].tolist() == [[[1, 2], [3, 4]]] * 2
        assert file["gain"].tolist() == [-7, -7]
        assert file["sample_seq"].tolist() == [2, 1]
        assert file["sample_predicted"].tolist() == [-1, 3]
        assert np.isnan(file["sample_confidence"][0])
        assert file["sample_device"].tolist() == [CAM, CAM]
        assert file["sample_why"].tolist() == ["uncertain", "uncertain"]


@pytest.mark.parametrize(
    ("rows", "name", "words"),
    [
        ([], "s.npz", "no such samples"),
        ([sample(1), sample(2, inputs=(tensor(1, shape=(1, 9)),))], "s.npz", "different inputs"),
        ([sample(1)], "s.csv", "does not end in"),
        ([sample(1, inputs=(tensor(1, name="sample_seq"),))], "s.npz", "name that this file needs"),
    ],
)
def test_what_cannot_be_one_file_is_the_users_to_fix(store, tmp_path, rows, name, words):
    if rows:
        keep(store, heard(*rows))
    with pytest.raises(ConfigError, match=words):
        export(found(store), tmp_path / name)
    assert not (tmp_path / name).exists()


def read(row):
    message = Message("em/v1/main/d/cam-1/tele/samples", encode_batch(Batch("b1", samples=(row,))))
    return ingest.read(message, TenantId("main"))


def test_a_good_sample_is_heard():
    assert read(sample(1)).batch.samples == (sample(1),)


ZEROS = zlib.compress(bytes(1 << 22))
BAD = {
    "no inputs": {"inputs": ()},
    "too many inputs": {"inputs": (tensor(1),) * 65},
    "no zlib": {"inputs": (SampledTensor("x", DType.INT8, (1,), b"junk"),)},
    "too short": {"inputs": (SampledTensor("x", DType.INT8, (2,), zlib.compress(b"1")),)},
    "too long": {"inputs": (SampledTensor("x", DType.INT8, (2,), zlib.compress(b"123")),)},
    "a bomb": {"inputs": (SampledTensor("x", DType.INT8, (1 << 22,), ZEROS),)},
    "a bomb that lies": {"inputs": (SampledTensor("x", DType.INT8, (1,), ZEROS),)},
    "absurd shape": {"inputs": (SampledTensor("x", DType.INT8, (1 << 62, 1 << 62), b""),)},
    "negative shape": {"inputs": (SampledTensor("x", DType.INT8, (-1, -1), zlib.compress(b"1")),)},
    "rank": {"inputs": (SampledTensor("x", DType.INT8, (1,) * 9, zlib.compress(b"1")),)},
    "confidence": {"confidence": 1.5},
    "predicted": {"predicted": -1},
    "release": {"release": ReleaseId("no release")},
    "digest": {"digest": "xyz"},
    "request": {"request": "r" * 129},
    "name": {"inputs": (tensor(1, name=""),)},
    "time": {"at_ms": -1},
}


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_true_is_refused(bad):
    with pytest.raises(ManifestError):
        read(sample(1, **BAD[bad]))


def test_samples_among_other_rows_are_refused():
    batch = Batch("b1", samples=(sample(1),))
    message = Message("em/v1/main/d/cam-1/tele/windows", encode_batch(batch))
    with pytest.raises(ManifestError):
        ingest.read(message, TenantId("main"))


def test_a_controller_stores_and_acknowledges_samples(world):
    (cam,) = world.enrol("cam-1")
    cam.come()
    payload = encode_batch(Batch("b1", samples=(sample(1), sample(2))))
    for _ in range(2):
        cam.link.publish(Message("em/v1/main/d/cam-1/tele/samples", payload))
        world.step()
    with world.store.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(schema.samples)) == 2
    acks = [decode(one.payload, Ack) for one in said(cam)]
    assert [(one.stream, one.boot, one.seq) for one in acks] == [("samples", "b1", 2)] * 2


def said(cam):
    while (arrival := cam.link.receive(0)) is not None:
        if isinstance(arrival, Message) and arrival.topic.endswith("/ack"):
            yield arrival


def test_wire_rows_are_what_is_stored(store):
    row = sample(7)
    keep(store, heard(row))
    with store.read() as connection:
        body = connection.scalar(sa.select(schema.samples.c.body))
    assert msgspec.json.decode(body, type=Sample) == row
