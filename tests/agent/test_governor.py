"""What is done about models: whom it hits, in which order, and what must hold for every course of events."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.diagnosis import DWELL_S, RESERVE_BYTES, Cause, Facts, Limits, Usage, used_bytes
from agent.governor import DUTY_MIN, TAKE_PAUSE_S, Kind, Measure, State, Treatment, decide
from edgeml.ids import ModelName

MIB = 1 << 20
A, B, C = ModelName("a"), ModelName("b"), ModelName("c")
LIMITS = Limits(memory_bytes=200 * MIB, cpu_cores=1.0, temperature_c=80.0)


def usage(mib=40, granted_mib=50, **more):
    return Usage(mib * MIB, granted_mib * MIB, **more)


def three(**more):
    """Return facts of three models: `c` is the most valuable one, `a` the least."""
    return Facts({A: usage(idle_s=90.0), B: usage(idle_s=5.0), C: usage(priority=1, idle_s=100.0)}, **more)


def kinds(decisions):
    return {one.model: one.kind for one in decisions}


def measures(state):
    return {model: one.measure for model, one in state.treatments.items()}


def test_a_calm_device_is_left_alone():
    state, decisions = decide(State(), three(temperature_c=50.0), LIMITS, 0.0)
    assert decisions == ()
    assert measures(state) == {A: Measure.NONE, B: Measure.NONE, C: Measure.NONE}


def test_heat_slows_every_model_down_the_more_the_hotter():
    duties = [
        decide(State(), three(temperature_c=heat), LIMITS, 0.0)[0].treatments[A].duty
        for heat in (79.0, 80.0, 83.0)
    ]
    assert duties == [1.0, 0.5, 0.25]


def test_those_that_have_a_smaller_variant_use_it():
    facts = replace(three(temperature_c=84.0), models={A: usage(smaller=True), B: usage()})
    _, decisions = decide(State(), facts, LIMITS, 0.0)
    assert kinds(decisions) == {A: Kind.FALL_BACK, B: Kind.THROTTLE}
    assert decisions[0].ailment.cause is Cause.TEMPERATURE
    assert (decisions[0].ailment.observed, decisions[0].ailment.limit) == (84.0, 80.0)


def test_all_but_the_most_valuable_model_turn_requests_away():
    state, decisions = decide(State(), three(temperature_c=86.0), LIMITS, 0.0)
    assert kinds(decisions) == {A: Kind.SHED, B: Kind.SHED, C: Kind.THROTTLE}
    assert state.treatments[C] == Treatment(Measure.THROTTLE, DUTY_MIN)


def test_a_device_with_one_model_sheds_it_last():
    alone = Facts({A: usage()}, temperature_c=86.0)
    assert measures(decide(State(), alone, LIMITS, 0.0)[0]) == {A: Measure.THROTTLE}
    assert measures(decide(State(), replace(alone, temperature_c=94.0), LIMITS, 0.0)[0]) == {A: Measure.SHED}
    assert measures(decide(State(), replace(alone, temperature_c=95.0), LIMITS, 0.0)[0]) == {A: Measure.EVICT}


def test_workers_are_taken_away_one_at_a_time_and_the_most_valuable_one_stays():
    state, order = State(), []
    for step in range(6):
        state, decisions = decide(
            state, three(available_bytes=RESERVE_BYTES // 4), LIMITS, step * TAKE_PAUSE_S
        )
        order += [one.model for one in decisions if one.kind is Kind.EVICT]
    assert order == [A, B]
    assert measures(state) == {A: Measure.EVICT, B: Measure.EVICT, C: Measure.SHED}


def test_the_worker_that_took_more_than_it_was_granted_is_killed_and_no_other():
    facts = Facts({A: usage(40, 50, idle_s=999.0), B: usage(140, 50), C: usage(40, 30)})
    state, decisions = decide(State(), facts, LIMITS, 0.0)
    assert [(one.kind, one.model) for one in decisions] == [(Kind.RESTART, B)]
    assert (decisions[0].ailment.observed, decisions[0].ailment.limit) == (220 * MIB, 200 * MIB)
    # What it gave back has to show before another one is killed.
    assert decide(state, facts, LIMITS, TAKE_PAUSE_S - 1)[1] == ()
    assert kinds(decide(state, facts, LIMITS, TAKE_PAUSE_S)[1]) == {B: Kind.RESTART}


def test_on_a_device_short_of_memory_the_one_that_took_it_goes_even_if_it_is_the_most_valuable():
    facts = Facts(
        {A: usage(40, 50, idle_s=999.0), B: usage(400, 50, priority=9)}, available_bytes=RESERVE_BYTES // 4
    )
    _, decisions = decide(State(), facts, Limits(), 0.0)
    assert {(one.kind, one.model) for one in decisions} >= {(Kind.RESTART, B)}
    assert Kind.EVICT not in {one.kind for one in decisions}
    # A little more than granted would not help: then the least valuable one goes.
    little = replace(facts, models={A: usage(40, 50), B: usage(60, 50, priority=9)})
    _, decisions = decide(State(), little, Limits(), 0.0)
    assert kinds(decisions)[A] is Kind.EVICT


def test_over_the_budget_with_nobody_greedy_the_least_valuable_goes_even_if_it_is_the_last():
    facts = Facts({A: usage(120, 130), B: usage(120, 130, priority=3)})
    for model, taken in ((facts, A), (Facts({B: usage(300, 300)}), B)):
        assert kinds(decide(State(), model, LIMITS, 0.0)[1]) == {taken: Kind.EVICT}


def test_a_model_without_a_worker_has_nothing_to_give_back():
    facts = Facts({A: usage(0, 10), B: usage(210, 220, priority=3)})
    assert kinds(decide(State(), facts, LIMITS, 0.0)[1]) == {B: Kind.EVICT}


def test_a_model_that_was_taken_away_comes_back_when_there_is_room_and_not_before():
    state, _ = decide(State(), Facts({A: usage(120, 130), B: usage(120, 130, priority=3)}), LIMITS, 0.0)
    # What it was granted would not fit.
    full = Facts({A: usage(0, 130), B: usage(120, 130, priority=3)})
    state, _ = decide(state, full, LIMITS, DWELL_S)
    assert measures(state)[A] is Measure.EVICT
    roomy = Facts({A: usage(0, 130), B: usage(40, 130, priority=3)})
    state, decisions = decide(state, roomy, LIMITS, DWELL_S + 1)
    assert kinds(decisions)[A] is Kind.RESUME
    assert measures(state)[A] is Measure.NONE


def test_a_model_that_is_gone_is_forgotten():
    state, _ = decide(State(), three(temperature_c=95.0), LIMITS, 0.0)
    assert state.taken == {A}
    state, _ = decide(state, Facts({B: usage()}, temperature_c=20.0), LIMITS, 1.0)
    assert state.taken == frozenset()
    assert set(state.treatments) == {B}


@pytest.mark.parametrize(("cores", "duty"), [(1.0, 1.0), (1.2, 0.75), (2.0, 0.5), (40.0, DUTY_MIN)])
def test_too_much_processor_time_is_divided(cores, duty):
    facts = Facts({A: usage(cpu_cores=cores / 2), B: usage(cpu_cores=cores / 2)})
    state, _ = decide(State(), facts, LIMITS, 0.0)
    assert {one.duty for one in state.treatments.values()} == {duty}


def test_processor_time_within_the_budget_keeps_what_brought_it_there_for_the_dwell():
    state, _ = decide(State(), Facts({A: usage(cpu_cores=2.0)}), LIMITS, 0.0)
    within = Facts({A: usage(cpu_cores=0.5)})
    state, decisions = decide(state, within, LIMITS, DWELL_S - 1)
    assert (decisions, state.treatments[A].duty) == ((), 0.5)
    state, decisions = decide(state, within, LIMITS, DWELL_S)
    assert kinds(decisions) == {A: Kind.RESUME}


USAGES = st.builds(
    Usage,
    memory_bytes=st.integers(0, 150 * MIB),
    granted_bytes=st.integers(0, 150 * MIB),
    cpu_cores=st.floats(0, 2),
    idle_s=st.floats(0, 1000),
    priority=st.integers(0, 2),
    smaller=st.booleans(),
)
FACTS = st.builds(
    Facts,
    models=st.dictionaries(st.sampled_from([A, B, C]), USAGES, min_size=1),
    shared_bytes=st.integers(0, 50 * MIB),
    available_bytes=st.none() | st.integers(0, 4 * RESERVE_BYTES),
    pressure_percent=st.none() | st.floats(0, 100),
    temperature_c=st.none() | st.floats(20, 120),
)
COURSES = st.lists(st.tuples(FACTS, st.floats(0, 2 * DWELL_S)), min_size=1, max_size=25)


def run(course):
    """Yield (time, facts, state before, state after, decisions) of every step."""
    state, now_s = State(), 0.0
    for facts, pause_s in course:
        now_s += pause_s
        after, decisions = decide(state, facts, LIMITS, now_s)
        yield now_s, facts, state, after, decisions
        state = after


@given(COURSES, st.floats(0, 40))
def test_hotter_is_never_a_milder_treatment(course, hotter):
    *_, (now_s, facts, before, after, _) = run(course)
    if facts.temperature_c is None:
        return
    worse, _ = decide(before, replace(facts, temperature_c=facts.temperature_c + hotter), LIMITS, now_s)
    for model, treatment in after.treatments.items():
        assert worse.treatments[model].measure >= treatment.measure
        assert worse.treatments[model].duty <= treatment.duty


@given(COURSES)
def test_the_last_worker_is_taken_only_over_the_budget_or_in_great_heat(course):
    for _, facts, before, after, _ in run(course):
        taken = after.taken - before.taken
        if taken and after.taken == facts.models.keys():
            too_hot = any(
                one.ailment.cause is Cause.TEMPERATURE and one.ailment.level == 5
                for one in after.held.values()
            )
            assert too_hot or used_bytes(facts) > LIMITS.memory_bytes


@given(COURSES)
def test_workers_go_one_at_a_time_and_come_back_only_after_the_dwell(course):
    moved_s = float("-inf")
    for now_s, facts, before, after, decisions in run(course):
        killed = [one for one in decisions if one.kind in {Kind.EVICT, Kind.RESTART}]
        back = (before.taken & facts.models.keys()) - after.taken
        assert len(killed) + len(back) <= 1
        if killed:
            assert now_s - moved_s >= TAKE_PAUSE_S
        if back:
            assert now_s - moved_s >= DWELL_S
        if killed or back:
            moved_s = now_s


@given(COURSES)
def test_every_change_is_a_decision_and_nothing_else_is(course):
    for _, facts, before, after, decisions in run(course):
        assert after.treatments.keys() == facts.models.keys()
        changed = {
            model
            for model, treatment in after.treatments.items()
            if treatment != before.treatments.get(model, Treatment())
        }
        assert {one.model for one in decisions if one.kind is not Kind.RESTART} == changed
        for one in decisions:
            assert one.treatment == after.treatments[one.model]
            milder = one.treatment.measure < before.treatments.get(one.model, Treatment()).measure
            assert not milder or one.kind in {Kind.RESUME, Kind.RESTART}


@given(COURSES)
def test_the_same_facts_again_at_once_change_nothing_but_the_order_of_equals(course):
    *_, (now_s, facts, _, state, _) = run(course)
    again, decisions = decide(state, facts, LIMITS, now_s)
    assert (again.treatments, decisions) == (state.treatments, ())
