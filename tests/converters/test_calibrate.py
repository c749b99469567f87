"""What a device measured comes back: as a figure of that very file, and as rates of a profile."""

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

import converters
from converters.assemble import ReleaseName
from converters.calibrate_command import calibrate, fitted
from converters.cli import convert as command
from converters.order import ConversionOrder, DeviceMeasurement, Limits
from converters.readable import read
from edgeml import measurement, profile
from edgeml.bundle import Bundle
from edgeml.errors import ConfigError
from edgeml.machine_facts import Throttling
from edgeml.measure import Order, measure

pytestmark = [pytest.mark.torch, pytest.mark.processes]


@pytest.fixture(scope="module")
def bench(linear, tmp_path_factory):
    """Converts the linear model for one board; more figures of that board may be given."""
    folder = tmp_path_factory.mktemp("bench")

    def run(*measurements, **limits):
        return converters.convert(
            ConversionOrder(
                source=f"{linear}/net.py:model", data=linear / "data.npz", profiles=(profile.load("raspberry-pi-4"),),
                release=ReleaseName("net", "1.0.0"), limits=Limits(max_drop=0.02, **limits), out=folder / "out",
                work=folder / "work", measurements=measurements,
            )
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def record(bench):
    """A measurement of what is chosen, made here."""
    path = Path(bench().bundles[0].path)
    made = measure(Order(path, threads=1, runs=20))
    # Whether this machine was slowed down just now is not what is tested.
    return path, msgspec.structs.replace(made, throttling=Throttling.NO)


def figure(conversion, variant="onnx-int8-s8s8"):
    row = next(one for one in conversion.report.candidates if one.variant == variant)
    return row.verdicts[0].latency_ms, row.verdicts[0].latency_basis


def test_without_a_measurement_a_board_has_an_estimate(bench):
    assert figure(bench())[1] == "estimated"


def test_a_measurement_of_the_same_file_stands_for_the_estimate(bench, record):
    slow = msgspec.structs.replace(record[1], latency_p50_ms=123.0)
    conversion = bench(DeviceMeasurement("raspberry-pi-4", slow))
    assert figure(conversion) == (123.0, "measured on the device")
    assert figure(conversion, "onnx-fp32")[1] == "estimated"


def test_a_measurement_of_another_file_says_nothing(bench, record):
    other = msgspec.structs.replace(record[1], model_sha256=record[1].bundle_sha256)
    assert figure(bench(DeviceMeasurement("raspberry-pi-4", other)))[1] == "estimated"


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"threads": 4}, "is of 4 threads"), ({"throttling": Throttling.LIKELY}, "was slowed down")],
)
def test_a_measurement_that_no_profile_is_made_of_stands_for_no_estimate(bench, record, changes, words):
    path, made = record
    spoilt = msgspec.structs.replace(made, **changes)
    with pytest.raises(ConfigError, match=words) as caught:
        bench(DeviceMeasurement("raspberry-pi-4", spoilt))
    assert caught.value.hint
    with pytest.raises(ConfigError, match=words):
        fitted(profile.load("host"), [spoilt], {made.model_sha256: read(str(path)).graph}, "mine")


def test_a_limit_is_held_against_what_was_measured(bench, record):
    slow = msgspec.structs.replace(record[1], latency_p50_ms=123.0)
    conversion = bench(DeviceMeasurement("raspberry-pi-4", slow), max_latency_ms=100.0)
    assert conversion.bundles[0].variant != "onnx-int8-s8s8"


class TestTheCommands:
    def test_the_option_reads_the_file(self, linear, record, tmp_path):
        (tmp_path / "pi.json").write_bytes(measurement.encode(record[1]))
        words = [
            f"{linear}/net.py:model", "--data", str(linear / "data.npz"), "--profile", "raspberry-pi-4", "--name", "net", "--version", "1.0.0",
            "--max-drop", "2%", "--out", str(tmp_path), "--work", str(tmp_path / "work"), "--measured", f"raspberry-pi-4={tmp_path / 'pi.json'}",
        ]  # fmt: skip
        result = CliRunner().invoke(command, words)
        assert result.exception is None
        assert "measured on the device" in result.stdout

    @pytest.mark.parametrize("text", ["pi.json", "raspberry-pi-4=", "raspberry-pi-4=missing.json"])
    def test_an_option_that_names_nothing_is_refused(self, linear, tmp_path, text):
        words = [
            f"{linear}/net.py:model", "--data", str(linear / "data.npz"), "--profile", "raspberry-pi-4", "--name", "net", "--version", "1.0.0",
            "--measured", text,
        ]  # fmt: skip
        assert isinstance(CliRunner().invoke(command, words).exception, ConfigError)

    def test_a_measurement_for_another_profile_is_refused(self, bench, record):
        with pytest.raises(ConfigError, match="no profile of this conversion"):
            bench(DeviceMeasurement("raspberry-pi-5", record[1]))

    def test_rates_are_corrected_by_how_far_the_estimate_was_off(self, record, tmp_path):
        path, made = record
        here = msgspec.structs.replace(made, throttling=type(made.throttling).UNKNOWN)
        (tmp_path / "here.json").write_bytes(measurement.encode(here))
        words = ["generic-x86-64", str(tmp_path / "here.json"), "--bundle", str(path), "--name", "mine"]
        result = CliRunner().invoke(calibrate, words)
        assert result.exception is None, result.exception
        mine = profile.decode(result.stdout.encode(), "mine.toml")
        assert mine.onnx_int8_macs_per_cycle.origin is profile.Origin.MEASURED
        with Bundle(path) as bundle:
            assert here.model_sha256 == bundle.manifest.file("model.onnx").sha256

    def test_a_measurement_of_no_given_bundle_is_refused(self, record, tmp_path):
        path, made = record
        other = msgspec.structs.replace(made, model_sha256=made.bundle_sha256)
        (tmp_path / "other.json").write_bytes(measurement.encode(other))
        words = ["generic-x86-64", str(tmp_path / "other.json"), "--bundle", str(path), "--name", "mine"]
        result = CliRunner().invoke(calibrate, words)
        assert isinstance(result.exception, ConfigError)
        assert "whose bundle is not given" in result.exception.message
