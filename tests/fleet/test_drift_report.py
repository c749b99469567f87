"""The report: which windows count, hostile counts, and what is unknown."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgeml.drift import Verdict
from edgeml.ids import DeviceId, Digest, ModelName, ReleaseId, digest_of
from edgeml.monitor import Column, Monitor, Statistic, digest
from edgeml.sketch import STANDARD_SCALE, Sketch
from edgeml.telemetry import Counters, InputQuality, Window
from fleet.drift_report import COLUMNS_MAX, report

BINS = 10
MONITOR = Monitor(
    tuple(
        Column(
            "x", Statistic.ELEMENT, i, (1.0, *[200.0] * (BINS - 1)), tuple(float(e) for e in range(BINS - 1))
        )
        for i in range(7)
    ),
    2000,
)
KEY = digest(MONITOR)
CAM = DeviceId("cam-1")
M = ModelName("m")


def sketch(rng: np.random.Generator, shifted: int | None = None, key: Digest = KEY) -> Sketch:
    mass = np.array([0.0, *[1 / (BINS - 1)] * (BINS - 1)])
    drifted = np.array([0.0] * (BINS - 3) + [0.2, 0.3, 0.5])
    counts = tuple((*rng.multinomial(100, drifted if i == shifted else mass).tolist(), 0) for i in range(7))
    sums = tuple(100 * STANDARD_SCALE if i == shifted else 0 for i in range(7))
    return Sketch(key, 100, counts, sums, (0,) * 7)


def window(seq: int, content: Sketch | None, release: str = "m@1") -> Window:
    return Window(
        seq, ReleaseId(release), digest_of(release.encode()), seq * 1000, 1000, Counters(100), sketch=content
    )


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def calm(rng: np.random.Generator, count: int = 8, release: str = "m@1") -> list[Window]:
    return [window(i, sketch(rng), release) for i in range(count)]


def drifting(rng: np.random.Generator, count: int = 8, release: str = "m@1") -> list[Window]:
    return [window(i, sketch(rng, shifted=3), release) for i in range(count)]


def test_worst_device_comes_first_with_its_strongest_columns(rng: np.random.Generator) -> None:
    rows = report(
        {KEY: MONITOR}, {DeviceId("calm"): {M: calm(rng)}, CAM: {M: drifting(rng)}, DeviceId("silent"): {}}
    )
    assert [(row.device, row.verdict) for row in rows] == [
        ("cam-1", Verdict.PAGE),
        ("calm", Verdict.OK),
        ("silent", Verdict.UNKNOWN),
    ]
    worst = rows[0]
    assert worst.columns[0].column == "x.element[3]"
    assert worst.columns[0].mean_shift == pytest.approx(1)
    assert len(worst.columns) == COLUMNS_MAX
    assert (worst.release, worst.rows) == ("m@1", 800)
    assert worst.effect > 0.25
    assert worst.log_e > 20


def test_only_windows_of_the_newest_release_count(rng: np.random.Generator) -> None:
    (row,) = report({KEY: MONITOR}, {CAM: {M: [*drifting(rng), *calm(rng, 3, "m@2")]}})
    assert (row.verdict, row.release, row.rows) == (Verdict.OK, "m@2", 300)


def test_unknown_monitor_is_unknown(rng: np.random.Generator) -> None:
    other = digest_of(b"other")
    (row,) = report({KEY: MONITOR}, {CAM: {M: [window(0, sketch(rng, key=other))]}})
    assert (row.verdict, row.release, row.rows, row.columns) == (Verdict.UNKNOWN, "m@1", 0, ())


def test_windows_without_sketches_are_unknown() -> None:
    (row,) = report({KEY: MONITOR}, {CAM: {M: [window(0, None)]}})
    assert row.verdict is Verdict.UNKNOWN


def test_windows_of_another_monitor_are_left_out(rng: np.random.Generator) -> None:
    other = digest_of(b"other")
    mixed = [window(0, sketch(rng, shifted=3, key=other)), *calm(rng, 2)]
    (row,) = report({KEY: MONITOR}, {CAM: {M: mixed}})
    assert (row.verdict, row.rows) == (Verdict.OK, 200)


@pytest.mark.parametrize(
    "lie",
    [
        {"counts": ()},
        {"counts": ((1,) * (BINS + 1),) * 6},
        {"counts": ((100,),) * 7},
        {"counts": ((-1, 101, *[0] * (BINS - 1)),) * 7},
        {"counts": ((0,) * (BINS + 1),) * 7},
        {"counts": ((10**30, *[0] * BINS),) * 7},
        {"sums": ()},
        {"rows": 10**30},
    ],
)
def test_counts_that_do_not_fit_the_monitor_are_left_out(
    rng: np.random.Generator, lie: dict[str, object]
) -> None:
    honest = calm(rng, 3)
    lies = [window(9, msgspec.structs.replace(sketch(rng), **lie))]
    assert report({KEY: MONITOR}, {CAM: {M: [*lies, *honest]}})[0].rows == 300
    (row,) = report({KEY: MONITOR}, {CAM: {M: lies}})
    assert (row.verdict, row.rows) == (Verdict.UNKNOWN, 0)


def test_fleet_of_many_calm_devices_has_no_alarm(rng: np.random.Generator) -> None:
    rows = report({KEY: MONITOR}, {DeviceId(f"d{i}"): {M: calm(rng, 12)} for i in range(60)})
    assert {row.verdict for row in rows} == {Verdict.OK}


def test_no_devices_have_no_rows() -> None:
    assert report({}, {}) == ()


def test_each_model_of_a_device_has_its_row(rng: np.random.Generator) -> None:
    rows = report({KEY: MONITOR}, {CAM: {M: calm(rng), ModelName("n"): drifting(rng, release="n@4")}})
    assert [(row.device, row.model, row.release, row.verdict) for row in rows] == [
        (CAM, "n", "n@4", Verdict.PAGE),
        (CAM, "m", "m@1", Verdict.OK),
    ]


def test_what_was_wrong_with_inputs_is_that_of_the_newest_release(rng: np.random.Generator) -> None:
    def bad(row: Window, quality: InputQuality) -> Window:
        return msgspec.structs.replace(row, quality=quality)

    old = [bad(one, InputQuality(missing=100)) for one in calm(rng, 2)]
    new = [bad(one, InputQuality(out_of_range=3, refused=1)) for one in calm(rng, 2, "m@2")]
    rows = report({KEY: MONITOR}, {CAM: {M: [*old, *new]}, DeviceId("silent"): {}})
    assert {row.device: row.inputs for row in rows} == {
        CAM: InputQuality(out_of_range=6, refused=2),
        "silent": InputQuality(),
    }
