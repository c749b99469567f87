"""The examples of docs/bundle-format.md are what they say they are."""

import re

import msgspec
import pytest

from edgeml.expectation import Expected
from edgeml.steps import Processing


def blocks(request, form):
    text = (request.config.rootpath / "docs/bundle-format.md").read_text()
    return re.findall(rf"```{form}\n(.*?)```", text, re.DOTALL)


def test_the_examples_are_read_as_they_stand(request):
    (photo,) = blocks(request, "json")
    anomaly, expected = blocks(request, "toml")
    assert [step.__struct_config__.tag for step in msgspec.json.decode(photo, type=Processing).after] == [
        "dequantise",
        "softmax",
    ]
    assert msgspec.toml.decode(anomaly, type=Processing).results == ("score", "anomalous")
    assert msgspec.toml.decode(expected, type=Expected).volume.per_hour_max == pytest.approx(4000)
