"""The monitor: canonical bytes whose digest keys sketches, and bins that make sense or are refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml import monitor as monitor_format
from edgeml.errors import ArtifactError, IncompatibleError, ManifestError
from edgeml.monitor import BINS_MAX, COLUMNS_MAX, MONITOR_BYTES_MAX, Column, Monitor, Statistic

NUMERIC = Column("x", Statistic.MEAN, 0, (1.0, 2.0, 3.0), (0.0, 1.0), 0.5, 2.0, 1.5)
CODES = Column("y", Statistic.CLASS, 0, (1.5, 2.5, 0.5))
MONITOR = Monitor((NUMERIC, CODES), 32, 0.25, 10.0)


def with_column(**fields):
    changed = json.loads(monitor_format.encode(MONITOR))
    changed["columns"][0] |= fields
    return json.dumps(changed).encode()


def changed(**fields):
    return json.dumps(json.loads(monitor_format.encode(MONITOR)) | fields).encode()


FINITE = st.floats(allow_nan=False, allow_infinity=False)
POSITIVE = st.floats(min_value=1e-300, allow_infinity=False)


@st.composite
def columns(draw):
    edges = tuple(sorted(draw(st.sets(FINITE, max_size=6))))
    spacings = draw(st.lists(POSITIVE, min_size=len(edges) + 1, max_size=len(edges) + 1))
    if not edges:
        spacings = draw(st.lists(POSITIVE, min_size=2, max_size=6))
    return Column(
        tensor=draw(st.text(max_size=8)),
        statistic=draw(st.sampled_from(Statistic)),
        index=draw(st.integers(0, 300)),
        spacings=tuple(spacings),
        edges=edges,
        centre=draw(FINITE),
        spread=draw(POSITIVE),
        design_effect=draw(st.floats(1.0, 1e6)),
    )


MONITORS = st.builds(
    Monitor,
    columns=st.lists(columns(), max_size=4).map(tuple),
    reference_rows=st.integers(0, 1 << 40),
    confidence_low=st.none() | FINITE,
    latency_slow_ms=st.none() | FINITE,
)


@given(MONITORS)
def test_what_was_encoded_is_decoded_and_has_the_same_digest(monitor):
    data = monitor_format.encode(monitor)
    assert monitor_format.decode(data) == monitor
    assert monitor_format.encode(monitor_format.decode(data)) == data
    assert monitor_format.digest(monitor_format.decode(data)) == monitor_format.digest(monitor)


@pytest.mark.parametrize(
    "other",
    [
        Monitor((CODES, NUMERIC), 32, 0.25, 10.0), Monitor((NUMERIC, CODES), 33, 0.25, 10.0), Monitor((NUMERIC, CODES), 32, 0.26, 10.0),
        Monitor((NUMERIC, CODES), 32, 0.25, None), Monitor((NUMERIC,), 32, 0.25, 10.0),
    ],
)  # fmt: skip
def test_monitors_that_differ_have_other_digests(other):
    assert monitor_format.digest(other) != monitor_format.digest(MONITOR)


@pytest.mark.parametrize(
    ("column", "name", "categorical"),
    [
        (NUMERIC, "x.mean", False),
        (CODES, "y.class", True),
        (Column("s", Statistic.SCORE, 3, (1.0, 1.0), (0.5,)), "s.score[3]", False),
        (Column("i", Statistic.ELEMENT, 0, (1.0, 1.0), (0.5,)), "i.element[0]", False),
    ],
)
def test_columns_are_named_readably(column, name, categorical):
    assert (column.name, column.is_categorical) == (name, categorical)


@pytest.mark.parametrize(
    "fields",
    [
        {"edges": [1.0, 0.0]}, {"edges": [1.0, 1.0]}, {"edges": [0.0]}, {"edges": [0.0, 1.0, 2.0]}, {"edges": [], "spacings": [1.0]},
        {"spacings": [1.0, 0.0, 1.0]}, {"spacings": [1.0, -1.0, 1.0]}, {"spacings": []}, {"edges": [], "spacings": [1.0] * (BINS_MAX + 1)},
        {"spread": 0.0}, {"spread": -1.0}, {"design_effect": 0.5}, {"index": -1}, {"statistic": "median"}, {"tensor": 1}, {"more": 1},
        {"edges": [0.0, None]}, {"spacings": [1.0, "2", 3.0]},
    ],
    ids=str,
)  # fmt: skip
def test_a_column_that_makes_no_sense_is_refused(fields):
    with pytest.raises(ManifestError):
        monitor_format.decode(with_column(**fields))


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_numbers_that_are_not_finite_are_refused(number):
    with pytest.raises(ManifestError):
        monitor_format.decode(monitor_format.encode(MONITOR).replace(b'"centre":0.5', b'"centre":' + number))


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"\xff", b"[" * 200_000, b'{"columns":' * 50_000], ids=repr
)
def test_what_is_no_monitor_is_refused(data):
    with pytest.raises(ManifestError):
        monitor_format.decode(data)


def test_too_many_columns_or_bytes_are_refused():
    with pytest.raises(ManifestError, match="columns"):
        monitor_format.decode(monitor_format.encode(Monitor((CODES,) * (COLUMNS_MAX + 1), 32)))
    with pytest.raises(ManifestError, match="more than"):
        monitor_format.decode(b" " * (MONITOR_BYTES_MAX + 1))


def test_another_format_is_named_even_if_nothing_else_is_understood():
    for data in (changed(format_version=2), b'{"format_version": 2, "brave": "new"}'):
        with pytest.raises(IncompatibleError, match="format 2"):
            monitor_format.decode(data)


def test_hostile_names_cannot_write_lines_or_escapes_into_a_log():
    for data in (changed(**{"a\nb\x1b[2J": 1}), with_column(tensor="a\nb", spread=0.0)):
        with pytest.raises(ManifestError) as raised:
            monitor_format.decode(data)
        assert raised.value.message.isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_refused(data):
    with pytest.raises(ArtifactError):
        monitor_format.decode(data)


@given(name=st.sampled_from(Column.__struct_fields__), value=JSON)
def test_any_value_in_any_field_gives_a_monitor_or_an_error_of_ours(name, value):
    try:
        monitor = monitor_format.decode(with_column(**{name: value}))
    except ArtifactError as error:
        sound = error.message.isprintable()
    else:
        sound = monitor_format.decode(monitor_format.encode(monitor)) == monitor
    assert sound
