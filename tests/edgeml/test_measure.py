"""Measuring a bundle where it runs, the record of it, and the profile of one's own board that is made of records."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from edgeml import bundle, golden, measurement, probe, profile
from edgeml.calibration import calibrate
from edgeml.cli import edgeml
from edgeml.errors import (
    ArtifactError,
    BackendError,
    ConfigError,
    DigestMismatchError,
    IncompatibleError,
    ManifestError,
)
from edgeml.ids import digest_of_file
from edgeml.machine_facts import Condition, Throttling
from edgeml.measure import Order, measure
from edgeml.profile import Architecture, DeviceRuntime, Origin
from edgeml.testing import sample_bundle

pytestmark = pytest.mark.processes
ROOT = Path(__file__).parents[2]
OLD_DEVICE = Path(os.environ.get("EDGEML_TFLITE_RUNTIME_PYTHON") or ROOT / ".venv-tflite" / "bin" / "python")
MLPERF = Path(os.environ.get("EDGEML_MLPERF_TINY", "/nonexistent"))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "sample.edgeml"
    sample_bundle(path)
    return path


@pytest.fixture(scope="module")
def record(packed):
    return measure(Order(packed, runs=40))


def invoke(*arguments):
    return CliRunner().invoke(edgeml, [*map(str, arguments)])


class TestARecord:
    def test_names_what_was_measured_where(self, record, packed):
        assert (record.release, record.variant) == ("sample@1.0.0", "onnx-fp32")
        assert record.bundle_sha256 == digest_of_file(packed)
        assert record.host == probe.host()
        assert record.runtime.startswith("onnxruntime ")
        assert record.machine.machine == os.uname().machine

    def test_has_figures_that_can_be(self, record):
        assert record.runs == 40
        assert 0 < record.latency_p50_ms <= record.latency_p95_ms <= record.latency_p99_ms < 1000
        assert 0 < record.first_call_ms < 10_000
        assert 1 < record.load_ms < 60_000
        assert 20 << 20 < record.peak_memory_bytes < 1 << 30
        assert (record.golden_agreement, record.samples) == (1.0, "golden vectors")

    def test_travels_as_json(self, record):
        data = measurement.encode(record)
        assert measurement.decode(data, "pi.json") == record
        assert measurement.encode(measurement.decode(data, "pi.json")) == data

    @pytest.mark.parametrize(
        "change",
        [
            {"latency_p50_ms": -1.0},
            {"latency_p50_ms": 1e9},
            {"runs": 0},
            {"trend": 0.0},
            {"peak_memory_bytes": 0},
            {"load_ms": -5.0},
            {"bundle_sha256": "short"},
            {"extra": 1},
            {"throttling": "perhaps"},
        ],
    )
    def test_that_cannot_be_is_refused(self, record, change):
        said = json.loads(measurement.encode(record)) | change
        with pytest.raises(ManifestError):
            measurement.decode(json.dumps(said).encode(), "pi.json")

    @pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 100_000, b" " * 100_000])
    def test_that_is_none_is_refused(self, data):
        with pytest.raises(ManifestError):
            measurement.decode(data, "pi.json")

    def test_that_is_too_long_is_told_what_to_give(self):
        with pytest.raises(ManifestError, match="longer than a measurement") as caught:
            measurement.decode(bytes(measurement.RECORD_BYTES_MAX + 1), "data.npz")
        assert "edgeml measure" in caught.value.hint

    def test_of_a_newer_format_is_named(self, record):
        said = json.loads(measurement.encode(record)) | {"format_version": 2}
        with pytest.raises(IncompatibleError):
            measurement.decode(json.dumps(said).encode(), "pi.json")


class TestTheCommand:
    def test_prints_for_people_and_writes_the_record(self, packed, tmp_path):
        result = invoke("measure", packed, "--runs", 20, "--threads", 2, "--out", tmp_path / "pi.json")
        assert result.exit_code == 0, result.output
        assert f"measured on {probe.host()}" in result.stdout
        assert "2 threads, 20 runs" in result.stdout
        assert measurement.decode((tmp_path / "pi.json").read_bytes(), "pi.json").threads == 2

    @pytest.mark.parametrize("out", [".", "/"])
    def test_refuses_a_directory_for_the_record_before_it_measures(self, monkeypatch, packed, out):
        monkeypatch.setattr("edgeml.measure.measure", lambda _: pytest.fail("measured"))
        caught = invoke("measure", packed, "--out", out).exception
        assert isinstance(caught, ConfigError)
        assert "a directory" in caught.message
        assert caught.hint

    def test_feeds_a_users_samples(self, packed, tmp_path):
        np.savez(tmp_path / "mine.npz", evaluation_x=np.zeros((50, 4), np.float32))
        result = invoke("measure", packed, "--runs", 10, "--samples", tmp_path / "mine.npz", "--json")
        assert json.loads(result.stdout)["samples"] == "mine.npz"

    @pytest.mark.parametrize(
        "arrays",
        [
            {"x": np.zeros((5, 3), np.float32)},
            {"x": np.zeros((5, 4))},
            {"other": np.zeros((5, 4), np.float32)},
            {"x": np.zeros((0, 4), np.float32)},
        ],
        ids=["shape", "type", "name", "none"],
    )
    def test_refuses_samples_that_do_not_fit(self, packed, tmp_path, arrays):
        np.savez(tmp_path / "mine.npz", **arrays)
        assert isinstance(
            invoke("measure", packed, "--samples", tmp_path / "mine.npz").exception, ConfigError
        )

    @pytest.mark.parametrize("options", [("--threads", 0), ("--runs", -1), ("--samples", "nowhere.npz")])
    def test_refuses_what_cannot_be_meant(self, packed, options):
        assert isinstance(invoke("measure", packed, *options).exception, ConfigError)


def altered(packed, path, member, change):
    """The same bundle with one member changed, and a manifest that says so."""
    with bundle.Bundle(packed) as opened:
        members = {entry.name: opened.read(entry.name) for entry in opened.manifest.files}
        members[member] = change(members[member], opened.manifest)
        bundle.write_bundle(path, opened.manifest, members)
    return path


def test_a_bundle_that_answers_otherwise_is_not_measured(packed, tmp_path):
    def other(data, manifest):
        recorded = golden.decode(data, manifest)
        return golden.encode(golden.Golden(recorded.inputs, (recorded.outputs[0][::-1].copy(),)))

    with pytest.raises(BackendError, match="does not answer here as recorded") as caught:
        measure(Order(altered(packed, tmp_path / "other.edgeml", bundle.GOLDEN, other)))
    assert "is not the runtime it was verified on (onnxruntime)" in caught.value.hint


def test_a_bundle_that_answers_otherwise_on_its_own_runtime_is_not_told_of_another_one(
    packed, tmp_path, record
):
    with bundle.Bundle(packed) as opened:
        members = {entry.name: opened.read(entry.name) for entry in opened.manifest.files}
        verified = msgspec.structs.replace(opened.manifest.measurement, runtime=record.runtime)
        manifest = msgspec.structs.replace(opened.manifest, measurement=verified)
        recorded = golden.decode(members[bundle.GOLDEN], manifest)
    other = golden.Golden(recorded.inputs, (recorded.outputs[0][::-1].copy(),))
    members[bundle.GOLDEN] = golden.encode(other)
    bundle.write_bundle(tmp_path / "other.edgeml", manifest, members)
    with pytest.raises(BackendError, match="does not answer here as recorded") as caught:
        measure(Order(tmp_path / "other.edgeml"))
    assert f"it was verified on {record.runtime} as well" in caught.value.hint


def test_a_bundle_whose_bytes_changed_is_not_measured(packed, tmp_path):
    data = bytearray(packed.read_bytes())
    data[data.index(b"MatMul")] ^= 1
    (tmp_path / "flipped.edgeml").write_bytes(data)
    with pytest.raises((DigestMismatchError, ArtifactError)):
        measure(Order(tmp_path / "flipped.edgeml"))


def test_a_device_measures_without_the_workstations_libraries(packed):
    code = (
        "import sys\n"
        "from importlib.abc import MetaPathFinder\n"
        "class Gone(MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.partition('.')[0] in {'torch', 'onnx', 'rich', 'sklearn', 'converters', 'fleet'}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Gone())\n"
        "from edgeml.measure import Order, measure\n"
        "from pathlib import Path\n"
        f"print(measure(Order(Path({str(packed)!r}), runs=5)).runs)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.strip() == "5", done.stderr


@pytest.mark.skipif(
    not OLD_DEVICE.exists() or not MLPERF.is_dir(), reason="needs .venv-tflite and EDGEML_MLPERF_TINY"
)
def test_a_device_with_tflite_runtime_measures_a_tflite_bundle(tmp_path):
    import converters
    from converters.assemble import ReleaseName
    from converters.existing import PackagingOrder

    order = PackagingOrder(
        model=MLPERF / "image_classification" / "pretrainedResnet.tflite",
        profiles=(profile.load("raspberry-pi-4"),),
        release=ReleaseName("resnet", "1.0.0"),
        out=tmp_path,
    )
    path = converters.package(order).bundle.path
    done = subprocess.run(
        [OLD_DEVICE, "-m", "edgeml", "measure", path, "--runs", "5", "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert measurement.decode(done.stdout.encode(), "old").runtime.startswith("tflite-runtime 2")


def board(record, **changes):
    """The record as a Raspberry Pi would have written it."""
    machine = msgspec.structs.replace(
        record.machine,
        machine="aarch64",
        processor="Some Board 4",
        cores=4,
        extensions=("asimd", "asimddp"),
        memory_bytes=4 << 30,
        clock_max_mhz=1800.0,
    )
    fields = {"host": "aarch64 Some Board 4 (4 cores)", "machine": machine, "throttling": Throttling.NO}
    return msgspec.structs.replace(record, **(fields | changes))


class TestCalibrating:
    def test_takes_what_the_board_says_and_keeps_the_rest(self, record):
        estimated = profile.load("raspberry-pi-4")
        mine = calibrate(estimated, [board(record)], "my-board")
        assert (mine.name, mine.architecture, mine.extensions) == (
            "my-board",
            Architecture.AARCH64,
            ("asimd", "asimddp"),
        )
        assert (mine.clock.value, mine.clock.origin) == (1800.0, Origin.MEASURED)
        assert (mine.cores.value, mine.memory.value) == (4, 4 << 30)
        assert "Some Board 4" in mine.clock.source
        assert "onnxruntime" in mine.clock.source
        assert mine.storage == estimated.storage
        assert "p50" in mine.notes

    def test_adds_a_runtime_that_was_seen_there(self, record):
        without = msgspec.structs.replace(
            profile.load("raspberry-pi-4"), runtimes=(DeviceRuntime.TFLITE_RUNTIME,)
        )
        assert calibrate(without, [board(record)], "mine").runtimes == (
            DeviceRuntime.TFLITE_RUNTIME,
            DeviceRuntime.ONNXRUNTIME,
        )

    def test_gives_a_profile_that_can_be_read_from_the_command(self, record, tmp_path):
        (tmp_path / "pi.json").write_bytes(measurement.encode(board(record)))
        result = invoke("profiles", "calibrate", "raspberry-pi-4", tmp_path / "pi.json")
        assert result.exit_code == 0, result.output
        (tmp_path / "mine.toml").write_text(result.stdout)
        assert profile.load(str(tmp_path / "mine.toml")).name == "my-board"
        again = invoke("profiles", "calibrate", "raspberry-pi-4", tmp_path / "pi.json")
        assert again.stdout == result.stdout

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"host": "aarch64 Another (4 cores)"}, "the measurements are of"),
            ({"throttling": Throttling.LIKELY, "after": Condition(600.0, "", 90.0)}, "slowed down"),
        ],
    )
    def test_refuses_records_that_do_not_belong_together(self, record, changes, said):
        with pytest.raises(ConfigError, match=said):
            calibrate(profile.load("raspberry-pi-4"), [board(record), board(record, **changes)], "mine")

    def test_refuses_another_architecture_no_records_and_bad_names(self, record):
        pi = profile.load("raspberry-pi-4")
        for records, name in (
            ([board(record, machine=msgspec.structs.replace(record.machine, machine="x86_64"))], "mine"),
            ([], "mine"),
            ([board(record)], "My Board"),
        ):
            with pytest.raises(ConfigError):
                calibrate(pi, records, name)


def test_where_numpy_is_missing_the_command_says_what_to_install(monkeypatch, packed):
    monkeypatch.setattr("edgeml.cli.util.find_spec", lambda name: None)
    error = invoke("measure", packed).exception
    assert error.exit_code == 2
    assert "numpy" in error.message
    assert "edgeml-fleet[agent]" in error.hint
