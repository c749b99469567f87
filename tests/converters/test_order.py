"""Orders that make no sense are refused before anything is loaded, and the error says what to give."""

from dataclasses import replace
from pathlib import Path

import pytest

from converters.assemble import ReleaseName
from converters.order import ConversionOrder, Limits, check_order
from edgeml import profile
from edgeml.errors import ConfigError


@pytest.fixture
def order(tmp_path):
    return ConversionOrder(
        source="net.py:model", data=tmp_path / "data.npz", profiles=(profile.load("raspberry-pi-4"),),
        release=ReleaseName("net", "1.0.0"), limits=Limits(max_drop=0.01), out=tmp_path / "out", work=tmp_path / "work",
    )  # fmt: skip


def test_one_that_makes_sense_is_taken_and_leaves_nothing(order, tmp_path):
    check_order(order)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("field", ["out", "work"])
def test_a_folder_that_cannot_be_written_is_refused(order, field):
    with pytest.raises(ConfigError, match=f"--{field} /proc/edgeml cannot be written") as caught:
        check_order(replace(order, **{field: Path("/proc/edgeml")}))
    assert caught.value.hint == f"give another --{field}"


@pytest.mark.parametrize("drop", [-1.0, -0.001, 1.0, 5.0, float("nan"), float("inf"), "1%", None])
def test_a_drop_that_is_no_fraction_is_refused(order, drop):
    with pytest.raises(ConfigError, match="max_drop") as caught:
        check_order(replace(order, limits=Limits(max_drop=drop)))
    assert "0.005" in caught.value.hint


@pytest.mark.parametrize("drop", [0, 0.0, 0.5])
def test_a_drop_from_nothing_to_nearly_everything_is_taken(order, drop):
    check_order(replace(order, limits=Limits(max_drop=drop)))


@pytest.mark.parametrize("field", ["max_latency_ms", "max_bytes", "max_memory_bytes"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "5KB"])
def test_a_limit_that_is_no_number_above_nothing_is_refused(order, field, value):
    with pytest.raises(ConfigError, match=field):
        check_order(replace(order, limits=Limits(max_drop=0.01, **{field: value})))


@pytest.mark.parametrize(
    ("field", "value", "hint"),
    [
        ("source", Path("net.onnx"), "text"),
        ("data", "data.npz", "pathlib.Path"),
        ("out", "out", "pathlib.Path"),
        ("work", "work", "pathlib.Path"),
        ("effort", "explore", "Effort.FIRST or Effort.EXPLORE"),
        ("preference", "bytes", "Preference.BYTES or Preference.LATENCY"),
        ("scores", "logits", "ScoreKind.LOGITS"),
        ("target", "tflite", "RuntimeFamily.TFLITE"),
        ("release", "net@1.0.0", "ReleaseName"),
        ("limits", 0.01, "Limits"),
        ("metric", None, "text"),
        ("parent", None, "text"),
        ("profiles", profile.load("stm32h7"), "tuple"),
        ("profiles", ("raspberry-pi-4",), "edgeml.profile.load"),
        ("students", "net.py:small", "tuple"),
        ("labels", "a,b", "tuple"),
        ("measurements", ("pi.json",), "DeviceMeasurement"),
    ],
)
def test_an_argument_of_another_type_is_refused_with_what_to_give(order, field, value, hint):
    with pytest.raises(ConfigError, match=f"^{field} is ") as caught:
        check_order(replace(order, **{field: value}))
    assert hint in caught.value.hint
