"""The layer that loses the accuracy is found, and what is proposed grows."""

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from converters.calibration import observe
from converters.explain.noise import SQNR_MAX_DB, sqnr_db
from converters.explain.sensitivity import (
    LayerSensitivity,
    Trial,
    exclusions,
    narrow_layers,
    samples_of,
    scan,
)
from converters.metrics import Evaluation, judge_of
from converters.recipe import Activations, StaticInteger
from converters.steps.onnx_quantize import prepare, quantize


def answers(model, images):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


@pytest.fixture(scope="module")
def harmed(pooled):
    """The digits' net with one layer that integers ruin: one input of each sum is a thousand times the others.

    Per output channel there is one scale, so the other weights of the channel are rounded to nothing. What the large
    weights meet is a channel that is always zero, so that the float model answers as before.
    """
    proto = onnx.load_from_string(pooled[0])
    for one in proto.graph.initializer:
        values = numpy_helper.to_array(one).copy()
        if one.name in {"depth.weight", "depth.bias"}:
            values[0] = 0
        if one.name == "point.weight":
            values[:, 0] = 1000
        one.CopyFrom(numpy_helper.from_array(values, one.name))
    return proto.SerializeToString()


@pytest.fixture(scope="module")
def scanned(pooled, harmed):
    prepared = prepare(harmed)
    rows = samples_of(len(pooled[1]))
    images, labels = pooled[1][rows], pooled[2][rows]
    judge = judge_of(None, answers(harmed, images), Evaluation(images, labels))
    told = []
    observed = observe(prepared, pooled[1][:64])
    found = scan(
        prepared,
        observed,
        StaticInteger(Activations.UINT8, weight_bits=7),
        Trial(images, judge.score, told.append),
    )
    return found, told, prepared


class TestTheScan:
    def test_the_ruined_layer_comes_first_by_far(self, scanned):
        first, second = scanned[0][:2]
        assert first.layer == "point"
        assert first.agreement < 0.6
        assert first.metric_drop > 0.2
        assert first.sqnr_db < 5
        assert second.agreement > 0.9
        assert second.sqnr_db > 15

    def test_every_layer_has_a_row_with_its_ranges(self, scanned):
        rows = {one.layer: one for one in scanned[0]}
        assert set(rows) == {"stem", "depth", "point", "last"}
        assert rows["point"].weight_high == 1000
        assert rows["stem"].activation_low == 0 < rows["stem"].activation_high
        assert rows["stem"].parameters == 480

    def test_progress_ends_at_one(self, scanned):
        assert scanned[1] == [0.25, 0.5, 0.75, 1.0]

    def test_leaving_the_first_proposal_in_float_saves_the_model(self, pooled, harmed, scanned):
        """It must also stay in float: onnxruntime would quantize it by one scale when it loads the model."""
        proposal = exclusions(scanned[0])[0]
        assert proposal == ("point",)
        original = answers(harmed, pooled[1]).argmax(1)
        agreement = {}
        for left in ((), proposal):
            step = StaticInteger(Activations.UINT8, weight_bits=7, float_layers=left)
            model = quantize(scanned[2], pooled[1][:64], step)
            agreement[left] = (answers(model, pooled[1]).argmax(1) == original).mean()
        assert agreement[()] < 0.6 < 0.9 < agreement[proposal]

    def test_narrow_first_layers_are_named(self, scanned):
        assert narrow_layers(scanned[2]) == ("stem",)


def row(place, drop=0.0, agreement=1.0, noise=40.0):
    return LayerSensitivity(f"layer{place}", "Conv", 10, drop, agreement, noise, -1, 1, 0, 1)


class TestProposals:
    def test_harmless_layers_are_never_proposed(self):
        assert exclusions([row(0), row(1)]) == ()
        assert exclusions([row(0), row(1, agreement=0.9), row(2)]) == (("layer1",),)

    def test_they_double_and_stop_at_half(self):
        rows = [row(place, agreement=0.5 + place / 100) for place in range(10)]
        assert [len(one) for one in exclusions(rows)] == [1, 2, 4]
        assert exclusions(rows)[-1] == ("layer0", "layer1", "layer2", "layer3")

    def test_among_equals_the_metric_then_the_noise_decides(self):
        rows = [row(0, 0.0, 0.9, 30), row(1, 0.1, 0.9, 30), row(2, 0.1, 0.9, 20), row(3)]
        assert exclusions(rows)[-1] == ("layer2", "layer1")

    @given(
        st.lists(st.tuples(st.floats(-0.2, 0.9), st.floats(0, 1), st.floats(-10, 100)), max_size=30),
        st.randoms(),
    )
    def test_each_holds_the_one_before_and_the_order_of_rows_does_not_matter(self, facts, random):
        rows = [row(place, *fact) for place, fact in enumerate(facts)]
        sets = exclusions(rows)
        for smaller, larger in itertools.pairwise(sets):
            assert larger[: len(smaller)] == smaller
            assert len(larger) == 2 * len(smaller)
        random.shuffle(rows)
        assert exclusions(rows) == sets


class TestNoise:
    def test_no_change_is_the_most(self):
        assert sqnr_db(np.ones(3), np.ones(3)) == SQNR_MAX_DB

    @pytest.mark.parametrize(("factor", "decibels"), [(1.1, 20), (1.01, 40), (2, 0)])
    def test_a_tenth_is_twenty_decibels(self, factor, decibels):
        signal = np.random.default_rng(0).normal(size=100)
        assert sqnr_db(signal, signal * factor) == pytest.approx(decibels, abs=1e-9)
