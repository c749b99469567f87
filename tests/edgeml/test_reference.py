"""The reference: which columns are counted, where bins lie, and that the bins hold the reference itself."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml import monitor
from edgeml.errors import ConfigError
from edgeml.manifest import Manifest, Measurement, Provenance, RuntimeFamily, ScoreKind, Task
from edgeml.monitor import COLUMNS_MAX, Statistic
from edgeml.reference import ELEMENTS_MAX, PROJECTIONS, ROWS_MIN, build_monitor, plan
from edgeml.tensors import BATCH, DType, TensorSpec

ROWS = 400


def manifest(inputs=(BATCH, 4), outputs=(BATCH, 3), task=Task.CLASSIFICATION, **changes):
    scores = ScoreKind.LOGITS if task is Task.CLASSIFICATION else ScoreKind.NONE
    made = Manifest(
        model="m", version="1", variant="v", runtime=RuntimeFamily.ONNX, profiles=("generic-x86-64",),
        inputs=(TensorSpec("x", DType.FLOAT32, inputs),), outputs=(TensorSpec("y", DType.FLOAT32, outputs),), files=(),
        measurement=Measurement("host", "onnxruntime", 1, 1.0, 2.0, 3), provenance=Provenance("s", "0" * 64),
        task=task, scores=scores,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def arrays(of, rows=ROWS, seed=0):
    generator = np.random.default_rng(seed)
    return (
        {
            spec.name: generator.normal(size=(rows, *spec.sample_shape)).astype(np.float32)
            for spec in of.inputs
        },
        {
            spec.name: generator.normal(size=(rows, *spec.sample_shape)).astype(np.float32)
            for spec in of.outputs
        },
    )


class TestThePlan:
    def test_a_classifier_of_few_features_counts_each_of_them_and_each_score(self):
        names = [column.name for column in plan(manifest())]
        assert names == [
            "x.element[0]", "x.element[1]", "x.element[2]", "x.element[3]",
            "y.confidence", "y.class", "y.score[0]", "y.score[1]", "y.score[2]",
        ]  # fmt: skip

    def test_an_image_is_summed_up(self):
        statistics = [
            column.statistic for column in plan(manifest(inputs=(BATCH, 3, 32, 32))) if column.tensor == "x"
        ]
        assert statistics == [Statistic.MEAN, Statistic.STD] + [Statistic.PROJECTION] * PROJECTIONS

    def test_what_is_no_classifier_has_no_classes(self):
        made = plan(manifest(task=Task.OTHER))
        assert {column.statistic for column in made} == {Statistic.ELEMENT}

    @given(st.integers(1, 5000), st.integers(2, 2000), st.sampled_from(Task))
    def test_there_are_never_too_many_columns(self, features, classes, task):
        made = plan(manifest((BATCH, features), (BATCH, classes), task))
        assert len(made) <= min(COLUMNS_MAX, 2 * ELEMENTS_MAX + 18)
        assert len({column.name for column in made}) == len(made)


class TestTheMonitor:
    def test_it_survives_its_file(self):
        built = build_monitor(manifest(), *arrays(manifest()))
        assert monitor.decode(monitor.encode(built)) == built

    def test_the_same_data_give_the_same_bytes(self):
        assert monitor.encode(build_monitor(manifest(), *arrays(manifest()))) == monitor.encode(
            build_monitor(manifest(), *arrays(manifest()))
        )

    def test_no_time_is_in_it_unless_asked_for(self):
        assert build_monitor(manifest(), *arrays(manifest())).latency_slow_ms is None
        assert build_monitor(manifest(), *arrays(manifest()), 12.5).latency_slow_ms == 12.5

    def test_five_in_a_hundred_answers_are_of_low_confidence(self):
        made, (inputs, outputs) = manifest(), arrays(manifest())
        low = build_monitor(made, inputs, outputs).confidence_low
        scores = np.exp(outputs["y"]) / np.exp(outputs["y"]).sum(axis=1, keepdims=True)
        assert (scores.max(axis=1) < low).mean() == pytest.approx(0.05, abs=0.005)

    @given(st.integers(0, 50), st.sampled_from([32, 100, 399]), st.booleans())
    def test_the_spacings_hold_all_of_the_reference(self, seed, rows, coarse):
        made = manifest()
        inputs, outputs = arrays(made, rows, seed)
        if coarse:
            inputs = {"x": np.round(inputs["x"])}
        for column in build_monitor(made, inputs, outputs).columns:
            discrete = column.is_categorical or (coarse and column.tensor == "x")
            # Continuous: n samples leave n + 1 spacings. Discrete: half a count more in each bin.
            expected = rows + len(column.spacings) / 2 if discrete else rows + 1
            assert sum(column.spacings) == pytest.approx(expected)
            assert all(spacing > 0 for spacing in column.spacings)

    def test_standardised_reference_has_mean_zero_and_spread_one(self):
        made, (inputs, outputs) = manifest(), arrays(manifest())
        column = next(
            one for one in build_monitor(made, inputs, outputs).columns if one.name == "x.element[2]"
        )
        values = (inputs["x"][:, 2] - column.centre) / column.spread
        assert values.mean() == pytest.approx(0, abs=1e-5)
        assert values.std() == pytest.approx(1, abs=1e-5)

    def test_a_constant_feature_has_a_spread_and_bins_around_it(self):
        made, (inputs, outputs) = manifest(), arrays(manifest())
        inputs["x"][:, 1] = 5
        column = next(
            one for one in build_monitor(made, inputs, outputs).columns if one.name == "x.element[1]"
        )
        assert column.spread == 1.0
        assert column.edges == (5.0,)

    def test_integers_are_counted_as_what_they_stand_for(self):
        spec = TensorSpec("x", DType.INT8, (BATCH, 4), scale=0.5, zero_point=10)
        made = manifest(inputs=(BATCH, 4))
        made = msgspec.structs.replace(made, inputs=(spec,))
        stored = np.random.default_rng(0).integers(-128, 128, (ROWS, 4)).astype(np.int8)
        column = build_monitor(made, {"x": stored}, arrays(made)[1]).columns[0]
        assert column.edges[0] == (int(stored[:, 0].min()) - 10) * 0.5


class TestDataThatMakeNoMonitor:
    def test_too_few_rows_are_refused(self):
        with pytest.raises(ConfigError, match=f"{ROWS_MIN - 1} reference samples are too few"):
            build_monitor(manifest(), *arrays(manifest(), ROWS_MIN - 1))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_values_that_are_not_finite_name_the_column(self, bad):
        made, (inputs, outputs) = manifest(), arrays(manifest())
        inputs["x"][7, 2] = bad
        with pytest.raises(ConfigError, match=r"x\.element\[2\]"):
            build_monitor(made, inputs, outputs)
