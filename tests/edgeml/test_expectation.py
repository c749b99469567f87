"""What a bundle expects: what can be meant, how it is derived, and how many requests are too few."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml import manifest as manifest_format
from edgeml.errors import ManifestError
from edgeml.expectation import Expected, InputExpectation, Policy, Volume
from edgeml.reference import expectations
from edgeml.tensors import DType, TensorSpec

from .test_flow import CLASSIFIER, made
from .test_manifest import MANIFEST


def decoded(expected, manifest=MANIFEST):
    raw = json.loads(manifest_format.encode(manifest)) | {"expected": expected}
    return manifest_format.decode(json.dumps(raw).encode())


def test_expectations_survive_their_bytes():
    manifest = decoded(
        {
            "inputs": [{"input": "x", "low": -1, "high": 2.5, "missing_max": 0.25, "policy": "clip"}],
            "volume": {"per_hour_min": 60, "per_hour_max": 7200},
        }
    )
    assert manifest.expected == Expected(
        (InputExpectation("x", -1, 2.5, 0.25, Policy.CLIP),), Volume(60, 7200)
    )
    assert manifest_format.decode(manifest_format.encode(manifest)) == manifest


def test_a_bundle_without_them_expects_nothing():
    assert MANIFEST.expected is None
    assert b"expected" not in manifest_format.encode(MANIFEST)


def test_they_are_of_what_callers_give():
    manifest = made(CLASSIFIER)
    assert decoded({"inputs": [{"input": "photo", "low": 0}]}, manifest).expected.of("photo").low == 0
    with pytest.raises(ManifestError, match="'x', which is no input"):
        decoded({"inputs": [{"input": "x"}]}, manifest)


@pytest.mark.parametrize(
    "expected",
    [
        {"inputs": [{"input": "z"}]},
        {"inputs": [{"input": "x"}, {"input": "x"}]},
        {"inputs": [{"input": "x", "low": 2, "high": 1}]},
        {"inputs": [{"input": "x", "low": 1e999}]},
        {"inputs": [{"input": "x", "missing_max": 1.5}]},
        {"inputs": [{"input": "x", "missing_max": -0.1}]},
        {"inputs": [{"input": "x", "policy": "ignore"}]},
        {"inputs": [{"input": "x", "finite": True}]},
        {"inputs": [{"input": ""}]},
        {"inputs": {}},
        {"volume": {"per_hour_min": -1}},
        {"volume": {"per_hour_min": 10, "per_hour_max": 9}},
        {"volume": 5},
        [],
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(expected):
    with pytest.raises(ManifestError):
        decoded(expected)


class TestVolume:
    def test_a_short_span_need_not_see_a_rare_request(self):
        hourly = Volume(per_hour_min=1, per_hour_max=1)
        assert [hourly.is_low(0, seconds) for seconds in (60, 3599, 3600)] == [False, False, True]
        assert [hourly.is_high(count, 60) for count in (1, 2)] == [False, True]

    @given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 86_400), st.integers(0, 1 << 30))
    def test_no_count_is_too_low_and_too_high(self, one, other, duration_s, requests):
        volume = Volume(min(one, other), max(one, other))
        assert not (volume.is_low(requests, duration_s) and volume.is_high(requests, duration_s))

    def test_nothing_stated_is_nothing_expected(self):
        assert not Volume().is_low(0, 1e9)
        assert not Volume().is_high(1 << 50, 1.0)


class TestDerivedRanges:
    def derived(self, dtype, *values):
        spec = TensorSpec("x", DType(dtype), (-1, len(values)))
        return expectations((spec,), {"x": np.array([values], dtype)})

    def test_reals_get_a_margin(self):
        (one,) = self.derived("float32", 0.0, 10.0)
        assert (one.low, one.high, one.policy) == (-1.0, 11.0, Policy.SERVE)

    def test_integers_stay_within_their_type(self):
        (one,) = self.derived("uint8", 5, 100)
        assert (one.low, one.high) == (0.0, 110.0)
        assert self.derived("uint8", 0, 255) == ()

    def test_flags_have_no_range(self):
        assert self.derived("bool", True, False) == ()

    def test_a_constant_is_a_range(self):
        (one,) = self.derived("float64", 3.0, 3.0)
        assert (one.low, one.high) == (3.0, 3.0)
