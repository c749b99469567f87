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
