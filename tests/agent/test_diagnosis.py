"""How bad it is, cause by cause: where the levels begin, and that none of them flaps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.diagnosis import DWELL_S, RESERVE_BYTES, Cause, Facts, Level, Limits, Usage, diagnose, hold
from edgeml.ids import ModelName

MIB = 1 << 20
LIMITS = Limits(memory_bytes=100 * MIB, cpu_cores=1.0, temperature_c=80.0)


def facts(used_mib=10, cores=0.0, **more):
    return Facts({ModelName("a"): Usage(used_mib * MIB, 50 * MIB, cores)}, **more)


def level_of(found, cause):
    return next(one.level for one in found if one.cause is cause)


@pytest.mark.parametrize(
    ("reading", "cause", "level"),
    [
        (facts(temperature_c=79.9), Cause.TEMPERATURE, Level.CALM),
        (facts(temperature_c=80.0), Cause.TEMPERATURE, Level.THROTTLE),
        (facts(temperature_c=83.0), Cause.TEMPERATURE, Level.FALL_BACK),
        (facts(temperature_c=86.0), Cause.TEMPERATURE, Level.SHED),
        (facts(temperature_c=90.0), Cause.TEMPERATURE, Level.EVICT),
        (facts(temperature_c=95.0), Cause.TEMPERATURE, Level.LAST),
        (facts(90), Cause.MEMORY, Level.CALM),
        (facts(91), Cause.MEMORY, Level.FALL_BACK),
        (facts(61, shared_bytes=30 * MIB), Cause.MEMORY, Level.FALL_BACK),
        (facts(available_bytes=2 * RESERVE_BYTES), Cause.DEVICE_MEMORY, Level.CALM),
        (facts(available_bytes=2 * RESERVE_BYTES - 1), Cause.DEVICE_MEMORY, Level.FALL_BACK),
        (facts(available_bytes=RESERVE_BYTES - 1), Cause.DEVICE_MEMORY, Level.SHED),
        (facts(available_bytes=RESERVE_BYTES // 2 - 1), Cause.DEVICE_MEMORY, Level.EVICT),
        (facts(pressure_percent=9.9), Cause.PRESSURE, Level.CALM),
        (facts(pressure_percent=10.0), Cause.PRESSURE, Level.FALL_BACK),
        (facts(pressure_percent=20.0), Cause.PRESSURE, Level.SHED),
        (facts(pressure_percent=40.0), Cause.PRESSURE, Level.EVICT),
        (facts(cores=1.0), Cause.CPU, Level.CALM),
        (facts(cores=1.1), Cause.CPU, Level.THROTTLE),
    ],
)
def test_where_the_levels_begin(reading, cause, level):
    assert level_of(diagnose(reading, LIMITS), cause) is level


def test_what_has_no_limit_or_cannot_be_read_is_no_cause():
    assert diagnose(facts(1 << 20, cores=9.0, temperature_c=200.0), Limits()) == ()
    assert {one.cause for one in diagnose(facts(), LIMITS)} == {Cause.MEMORY, Cause.CPU}


def test_a_level_falls_by_one_after_it_was_better_by_a_margin_for_the_dwell():
    held = hold({}, facts(temperature_c=83.0), LIMITS, 0.0)
    assert held[Cause.TEMPERATURE].ailment.level is Level.FALL_BACK
    # Two degrees less is below where the level begins, but not by the margin.
    held = hold(held, facts(temperature_c=81.0), LIMITS, 100.0)
    assert held[Cause.TEMPERATURE].ailment.level is Level.FALL_BACK
    held = hold(held, facts(temperature_c=60.0), LIMITS, 100.0 + DWELL_S - 1)
    assert held[Cause.TEMPERATURE].ailment.level is Level.FALL_BACK
    held = hold(held, facts(temperature_c=60.0), LIMITS, 100.0 + DWELL_S)
    assert held[Cause.TEMPERATURE].ailment.level is Level.THROTTLE
    held = hold(held, facts(temperature_c=60.0), LIMITS, 100.0 + 2 * DWELL_S)
    assert held[Cause.TEMPERATURE].ailment.level is Level.CALM


def test_a_sensor_that_fails_while_it_is_hot_is_no_sign_of_cold():
    held = hold({}, facts(temperature_c=83.0), LIMITS, 0.0)
    held = hold(held, facts(), LIMITS, DWELL_S - 1)
    assert held[Cause.TEMPERATURE].ailment.level is Level.FALL_BACK
    held = hold(held, facts(), LIMITS, DWELL_S)
    assert held[Cause.TEMPERATURE].ailment.level is Level.THROTTLE


def test_what_a_smaller_variant_gave_back_is_no_reason_to_take_the_larger_one_again():
    held = hold({}, facts(95), LIMITS, 0.0)
    assert held[Cause.MEMORY].ailment.level is Level.FALL_BACK
    small = Facts({ModelName("a"): Usage(50 * MIB, 50 * MIB, back_bytes=45 * MIB)})
    for step in range(1, 20):
        held = hold(held, small, LIMITS, step * DWELL_S)
        assert held[Cause.MEMORY].ailment.level is Level.FALL_BACK
    # Another model has gone meanwhile: now there is room.
    roomy = Facts({ModelName("a"): Usage(30 * MIB, 50 * MIB, back_bytes=45 * MIB)})
    held = hold(held, roomy, LIMITS, 20 * DWELL_S)
    assert held[Cause.MEMORY].ailment.level < Level.FALL_BACK


READINGS = st.builds(
    facts,
    st.integers(0, 150),
    st.floats(0, 4),
    available_bytes=st.none() | st.integers(0, 4 * RESERVE_BYTES),
    pressure_percent=st.none() | st.floats(0, 100),
    temperature_c=st.none() | st.floats(20, 120),
)


@given(st.lists(st.tuples(READINGS, st.floats(0, 2 * DWELL_S)), max_size=40))
def test_no_cause_falls_twice_or_falls_after_a_rise_within_the_dwell(steps):
    held, now_s = {}, 0.0
    moved_s, levels = {}, {}
    for reading, pause_s in steps:
        now_s += pause_s
        held = hold(held, reading, LIMITS, now_s)
        for cause, one in held.items():
            before, after = levels.get(cause, Level.CALM), one.ailment.level
            if after < before:
                assert after == before - 1
                assert now_s - moved_s[cause] >= DWELL_S
            if after != before:
                moved_s[cause] = now_s
            levels[cause] = after
            assert after >= next((n.level for n in diagnose(reading, LIMITS) if n.cause is cause), Level.CALM)


@given(READINGS, st.floats(0, 60), st.integers(0, RESERVE_BYTES), st.floats(0, 50))
def test_a_worse_reading_is_never_a_milder_level(reading, hotter, less, more):
    def worse(value, by):
        return None if value is None else value + by

    after = diagnose(
        Facts(
            reading.models,
            less,
            None if reading.available_bytes is None else max(reading.available_bytes - less, 0),
            worse(reading.pressure_percent, more),
            worse(reading.temperature_c, hotter),
        ),
        LIMITS,
    )
    for one in diagnose(reading, LIMITS):
        assert level_of(after, one.cause) >= one.level
