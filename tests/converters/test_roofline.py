"""The latency estimate: by hand for one layer, in blocks of channels, bound by what it says, and corrected by measurements."""

import math

import msgspec
import pytest

from converters.estimate.graph import Arithmetic
from converters.estimate.roofline import (
    OUTPUT_MACS,
    Bound,
    Observation,
    calibrated,
    can_estimate,
    correction,
    estimate,
)
from converters.estimate.tflite_graph import read_tflite
from edgeml.errors import ConfigError
from edgeml.manifest import RuntimeFamily
from edgeml.profile import OPTIONAL_UNITS, Origin, load, names, quantities

from .tflite_file import File, convolutional, person_detection

PI = load("raspberry-pi-4")
CHIP = load("stm32h7")
MODEL = read_tflite(convolutional())


def one_convolution(channels, dtype="float32"):
    file = File(dtype)
    return read_tflite(file.bytes([file.conv(file.input([1, 34, 34, 16]), [1, 32, 32, channels])]))


def rate(field):
    return getattr(PI, field).value


def test_a_layer_by_hand():
    made = estimate(one_convolution(16), PI)
    products = (32 * 32 * 16) * (9 * 16 + OUTPUT_MACS)
    microseconds = products / (rate("tflite_fp32_macs_per_cycle") * PI.clock.value)
    assert made.latency_ms * 1e3 == pytest.approx(
        microseconds + rate("operator_overhead") + rate("call_overhead")
    )
    assert made.bound is Bound.COMPUTE
    assert made.layers[0].bound is Bound.COMPUTE
    assert made.label == "estimated"


def test_channels_cost_as_much_as_their_whole_block():
    costs = {channels: estimate(one_convolution(channels), PI).latency_ms for channels in (9, 12, 16, 17)}
    assert costs[9] == pytest.approx(costs[12])
    assert costs[12] == pytest.approx(costs[16])
    assert costs[17] > costs[16] * 1.2
    assert estimate(one_convolution(12), PI).layers[0].padded_macs == one_convolution(16).operators[0].macs


def test_int8_is_faster_than_float_where_the_profile_says_so():
    floats, integers = (estimate(one_convolution(16, dtype), PI) for dtype in ("float32", "int8"))
    assert integers.layers[0].arithmetic is Arithmetic.INT8
    share = rate("tflite_fp32_macs_per_cycle") / rate("tflite_int8_macs_per_cycle")
    assert integers.compute_ms / floats.compute_ms == pytest.approx(share)


def test_the_weights_of_a_large_linear_layer_bind_it_to_memory():
    file = File("float32")
    data = file.input([1, 256])
    made = estimate(read_tflite(file.bytes([file.dense(data, 256)])), PI)
    assert made.bound is Bound.MEMORY
    assert made.memory_ms == pytest.approx((256 * 256 + 256 + 256 + 256) * 4 / rate("memory_bandwidth") * 1e3)


def test_a_microcontroller_reads_only_weights_from_flash():
    file = File("int8")
    wide = file.input([1, 64, 64, 8])
    made = estimate(read_tflite(file.bytes([file.add("ADD", [wide, wide], [1, 64, 64, 8])])), CHIP)
    assert made.memory_ms == 0.0


def test_a_model_of_small_layers_is_bound_by_overhead():
    file = File("float32")
    data = file.input([1, 8])
    for _ in range(5):
        data = file.dense(data, 8)
    assert estimate(read_tflite(file.bytes([data])), PI).bound is Bound.OVERHEAD


def test_an_activation_behind_a_layer_is_part_of_it():
    plain, more = File("float32"), File("float32")
    ends = []
    for file, clip in ((plain, False), (more, True)):
        out = file.dense(file.input([1, 64]), 64)
        ends.append(read_tflite(file.bytes([file.add("RELU", [out], [1, 64]) if clip else out])))
    assert estimate(ends[0], PI).latency_ms == estimate(ends[1], PI).latency_ms


def test_a_table_row_for_each_operator_and_the_rows_make_the_sum():
    made = estimate(MODEL, PI)
    assert [row.native for row in made.layers] == [one.native for one in MODEL.operators]
    assert made.latency_ms * 1e3 == pytest.approx(
        sum(row.latency_us for row in made.layers) + rate("call_overhead")
    )
    assert made.latency_ms == pytest.approx(made.compute_ms + made.memory_ms + made.overhead_ms)


@pytest.mark.parametrize("name", names())
def test_every_shipped_profile_estimates_for_its_runtimes(name):
    profile = load(name)
    assert can_estimate(profile, RuntimeFamily.TFLITE)
    assert can_estimate(profile, RuntimeFamily.ONNX) == any(
        one.value == "onnxruntime" for one in profile.runtimes
    )
    assert 0 < estimate(MODEL, profile).latency_ms < 1000


def test_a_published_figure_comes_out_within_a_factor_of_one_and_a_half():
    """Espressif's README of esp-tflite-micro: person detection (MobileNet v1 0.25 on [1, 96, 96, 1]) in 54 ms with ESP-NN."""
    made = estimate(read_tflite(person_detection()), load("esp32-s3"))
    assert 54 / 1.5 < made.latency_ms < 54 * 1.5


def test_a_profile_without_rates_says_what_is_missing():
    bare = msgspec.structs.replace(PI, **dict.fromkeys(OPTIONAL_UNITS))
    assert not can_estimate(bare, RuntimeFamily.TFLITE)
    with pytest.raises(ConfigError) as caught:
        estimate(MODEL, bare)
    assert "memory_bandwidth" in caught.value.hint


def observed(times, profile="raspberry-pi-4", host="aarch64 Cortex-A72 (4 cores)"):
    made = estimate(MODEL, PI)
    return made, Observation(profile, "0" * 64, made.latency_ms * times, host)


def test_measurements_give_a_factor_and_its_spread():
    found = correction([observed(2.0), observed(8.0)])
    assert found.factor == pytest.approx(4.0)
    assert found.spread == pytest.approx(2.0)
    assert found.observations == 2


def test_a_calibrated_profile_estimates_what_was_measured():
    pair = observed(1.7)
    better = calibrated(PI, correction([pair]))
    assert estimate(MODEL, better).latency_ms == pytest.approx(pair[1].latency_p50_ms)
    for field, quantity in quantities(better):
        if field in OPTIONAL_UNITS:
            assert quantity.origin is Origin.MEASURED
            assert "Cortex-A72" in quantity.source
    assert better.memory == PI.memory


@pytest.mark.parametrize(
    "pairs",
    [[], [observed(1.0, profile="raspberry-pi-5")], [observed(0.0)], [observed(math.nan)]],
    ids=range(4),
)
def test_measurements_that_say_nothing_are_refused(pairs):
    with pytest.raises(ConfigError) as caught:
        correction(pairs)
    assert caught.value.hint
