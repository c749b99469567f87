"""Bytes written by an earlier edgeml are read to the same values, and equal values still give the same bytes."""

import importlib.util
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeml import bundle, golden, manifest, monitor
from edgeml.bundle import Bundle, read_verified, write_bundle
from edgeml.ids import digest_of
from edgeml.observer import Observer
from edgeml.runtime import open_session
from edgeml.telemetry import decode_batch

HERE = Path(__file__).parent
V1 = HERE / "v1"
SAMPLE = V1 / "sample.edgeml"


def load_formats():
    spec = importlib.util.spec_from_file_location("golden_regenerate", HERE / "regenerate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.FORMATS


FORMATS = load_formats()


def same(one, other):
    if isinstance(one, golden.Golden):
        return all(
            a.dtype == b.dtype and a.tobytes() == b.tobytes()
            for a, b in zip((*one.inputs, *one.outputs), (*other.inputs, *other.outputs), strict=True)
        )
    return one == other


@pytest.mark.parametrize("name", FORMATS)
def test_stored_bytes_are_read_to_the_value_they_were_written_from(name):
    one = FORMATS[name]
    assert same(one.decode((V1 / name).read_bytes()), one.value)


@pytest.mark.parametrize("name", [name for name, one in FORMATS.items() if one.is_canonical])
def test_equal_values_give_the_stored_bytes(name):
    assert FORMATS[name].encode(FORMATS[name].value) == (V1 / name).read_bytes()


@pytest.mark.parametrize("name", [name for name, one in FORMATS.items() if not one.is_canonical])
def test_what_is_encoded_now_is_read_to_the_same_value(name):
    one = FORMATS[name]
    assert same(one.decode(one.encode(one.value)), one.value)


def test_every_stored_file_is_looked_at():
    stored = {path.name for path in V1.iterdir()}
    assert stored == {*FORMATS, SAMPLE.name, f"{SAMPLE.name}.sha256"}


@pytest.mark.parametrize("name", [name for name in FORMATS if name.endswith(".json")])
def test_json_is_canonical_as_documented(name):
    """docs/bundle-format.md: UTF-8, keys in alphabetical order, no insignificant white space."""
    data = (V1 / name).read_bytes()
    assert msgspec.json.encode(msgspec.json.decode(data), order="sorted") == data


def test_batches_hold_rows_of_one_stream():
    assert [row.seq for row in decode_batch((V1 / "windows.batch").read_bytes()).windows] == [40, 41]
    assert [row.seq for row in decode_batch((V1 / "events.batch").read_bytes()).events] == [1, 2]


class TestTheBundle:
    DIGEST = (V1 / "sample.edgeml.sha256").read_text().strip()

    def test_the_file_has_the_digest_that_was_signed(self):
        with read_verified(SAMPLE, self.DIGEST) as opened:
            opened.verify()
            assert opened.manifest.release == "sample@1.0.0"
            assert opened.manifest.target == "sample/1.0.0/onnx-fp32.edgeml"

    def test_writing_what_was_read_gives_the_same_bytes(self, tmp_path):
        with Bundle(SAMPLE) as opened:
            members = {entry.name: opened.read(entry.name) for entry in opened.manifest.files}
            complete = write_bundle(tmp_path / "again.edgeml", opened.manifest, members)
            assert complete == opened.manifest
        assert (tmp_path / "again.edgeml").read_bytes() == SAMPLE.read_bytes()

    def test_its_members_are_canonical(self):
        with Bundle(SAMPLE) as opened:
            entry = opened.manifest.file(bundle.MONITOR)
            read = monitor.decode(opened.read(bundle.MONITOR))
            assert monitor.digest(read) == entry.sha256 == digest_of(opened.read(bundle.MONITOR))
            assert manifest.decode(manifest.encode(opened.manifest)) == opened.manifest

    def test_its_model_answers_its_golden_vectors_and_its_monitor_counts_them(self):
        with Bundle(SAMPLE) as opened:
            about = opened.manifest
            vectors = golden.decode(opened.read(bundle.GOLDEN), about)
            session = open_session(opened.model(), about.runtime)
            watch = monitor.decode(opened.read(bundle.MONITOR))
        answers = session.run(list(vectors.inputs))
        assert golden.compare(vectors.outputs, answers, about).passed
        observer = Observer(watch, about)
        observer.observe(vectors.inputs, answers)
        sketch = observer.take().sketch
        assert sketch.rows == vectors.samples == 16
        assert all(sum(counts) == 16 for counts in sketch.counts)
        assert np.asarray(sketch.counts[0][:-1]).size == len(watch.columns[0].spacings)
