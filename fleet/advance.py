"""Decides how a rollout moves: whom to ask, when a wave is over, when to hold, when to go back.

Pure: the rollout, the facts and the time in, a decision out. One transition a call; the caller stores the decision in
one transaction and calls again. What each device means to a rollout is `standing`'s business, what evidence says,
`gate`'s, who is in which wave, `cohorts`'.

A wave goes ISSUING -> WAITING (until enough of its reachable devices have decided) -> SOAKING -> GATE -> next wave.
Evidence is looked at in every call and stops a running or paused rollout at once; only GATE lets it advance, and missing
evidence holds. Offline devices keep what they were asked and neither pass nor fail a wave. Every state that waits for
devices has a deadline, after which a running rollout is PAUSED and a rollback ends, naming who did not go back.

An operator's abort stops asking and takes every touched device back to its incumbent, as a rollback does, but ends
ABORTED. A pause is for RUNNING only: a rollback is not held up. Resuming accepts the failures there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from edgeml.twin import Outcome

from .gate import stops
from .rollout import FINISHED, Assignment, Decision, DeviceFacts, Facts, Rollout, RolloutState, WavePhase
from .standing import Standing, View, view_of

DECIDED_SAMPLE: Final = 20
"""Until so many devices (or all, if fewer are asked) have decided, failures are counted as if so many had."""
FAILED_RETRY_S: Final = 300.0
"""A failed device is asked again after this long, then twice and four times as long."""
NAMES_MAX: Final = 5
"""How many devices an event names."""


def advance(rollout: Rollout, facts: Facts, now_ms: int) -> Decision:
    """Decide the next step of a rollout.

    The same arguments give the same decision, and a call with the decision's rollout and the old facts asks nobody again.
    """
    if rollout.state in FINISHED:
        return Decision(_with(rollout, requested=None))
    view = view_of(rollout, facts, now_ms)
    rollout = view.rollout
    decision = _obey(view)
    if decision is None:
        match rollout.state:
            case RolloutState.RUNNING:
                decision = _run(view)
            case RolloutState.PAUSED:
                decision = _stopped(view) or Decision(rollout)
            case _:
                decision = _roll_back(view)
    decision = msgspec.structs.replace(decision, evidence=view.evidence)
    if not decision.assignments:
        return decision
    newest_ms = max((device.assigned_at_ms or 0 for device in facts.devices), default=0)
    if now_ms == rollout.issued_at_ms > newest_ms:
        # These facts do not know yet of what was decided in this very instant.
        return msgspec.structs.replace(
            decision, assignments=(), event="" if decision.rollout == rollout else decision.event
        )
    return msgspec.structs.replace(decision, rollout=_with(decision.rollout, issued_at_ms=now_ms))


def _obey(view: View) -> Decision | None:
    """Carry out what the operator asked for, if anything."""
    rollout = view.rollout
    match rollout.requested, rollout.state:
        case None, _:
            return None
        case RolloutState.ABORTED, RolloutState.ROLLING_BACK:
            return None  # carried out when every device is back
        case RolloutState.ABORTED, _:
            return _start_rollback(view, "aborted by the operator")
        case RolloutState.PAUSED, RolloutState.RUNNING:
            return _pause(_with(rollout, requested=None), "paused by the operator")
        case RolloutState.RUNNING, RolloutState.PAUSED:
            phase = WavePhase.ISSUING if rollout.phase is WavePhase.ISSUING else WavePhase.WAITING
            resumed = _with(
                rollout,
                state=RolloutState.RUNNING,
                phase=phase,
                phase_since_ms=view.now_ms,
                wave_since_ms=view.now_ms,
                failures_accepted=view.failures(),
                requested=None,
                reason="",
            )
            return Decision(resumed, event=f"resumed by the operator in wave {rollout.wave + 1}")
        case wanted, state:
            event = (
                ""
                if wanted is state
                else f"is {state.value.replace('_', ' ')}: {wanted.value} is not possible"
            )
            return Decision(_with(rollout, requested=None), event=event)


def _stopped(view: View) -> Decision | None:
    """Go back, if there is evidence that the release does harm."""
    convicted = stops(view.evidence, view.rollout.plan)
    if convicted is None:
        return None
    return _start_rollback(
        view,
        f"{convicted.metric.value.replace('_', ' ')} {convicted.candidate_rate:.1%} of {convicted.candidate_trials}"
        f" against {convicted.incumbent_rate:.1%} of {convicted.incumbent_trials} of the incumbent"
        f" (log e {convicted.log_e:.1f} without the most suspect device)",
    )


def _run(view: View) -> Decision:
    rollout, plan = view.rollout, view.rollout.plan
    if (decision := _stopped(view)) is not None:
        return decision
    if not view.waves:
        return _pause(rollout, f"no device of the fleet has a variant of {plan.release}")
    decided, able = view.counted(view.reached())
    failures = view.failures() - rollout.failures_accepted
    if failures > plan.failed_max_fraction * max(decided, min(DECIDED_SAMPLE, able)):
        names = _names(one for one in view.devices if view.standing(one) is Standing.FAILED)
        return _pause(rollout, f"{failures} of {decided} devices failed: {names}")
    if rollout.phase is WavePhase.ISSUING:
        return _issue(view)
    decision = _move(view)
    if decision.rollout.state is not RolloutState.RUNNING:
        return decision
    asked = _first_asked(view)
    again = _asked_again(view, view.touched())
    return msgspec.structs.replace(
        decision,
        assignments=(*asked, *again),
        event=_joined(decision.event, _told("asks", asked), _told("asks again", again)),
    )


def _issue(view: View) -> Decision:
    """Ask the devices of a wave that begins."""
    rollout, plan, wave = view.rollout, view.rollout.plan, view.wave()
    title = f"wave {rollout.wave + 1} of {len(plan.waves)}"
    if not wave:
        return _next_wave(view, f"{title} has no devices")
    trials = view.trials()
    waiting = _with(
        rollout,
        phase=WavePhase.WAITING,
        phase_since_ms=view.now_ms,
        wave_since_ms=view.now_ms,
        trials_before=trials.candidate_trials if trials else 0,
        reason="",
    )
    asked = _first_asked(view)
    offline = sum(not one.online for one in wave)
    done = sum(view.standing(one) is Standing.GOOD for one in wave)
    event = f"{title}: asks {len(asked)} devices to install {plan.release}"
    event += f", {done} have it" * bool(done) + f", {offline} are offline" * bool(offline)
    unsuitable = [one for one in view.devices if view.standing(one) is Standing.UNSUITABLE]
    if rollout.wave == 0 and unsuitable:
        event += f"; left out, because it has no variant for them: {_names(unsuitable)}"
    return Decision(waiting, asked, event)


def _move(view: View) -> Decision:
    """Move on within a wave or to the next one, or say what is waited for."""
    rollout, plan = view.rollout, view.rollout.plan
    decided, able = view.counted(view.wave())
    enough = decided >= plan.decided_min_fraction * able
    lacking = f"{decided} of {able} reachable devices of wave {rollout.wave + 1} have decided"
    in_wave_s = view.since_s(max(rollout.wave_since_ms, rollout.created_at_ms))
    match rollout.phase:
        case WavePhase.WAITING if enough:
            return Decision(_in_phase(view, WavePhase.SOAKING))
        case WavePhase.WAITING if in_wave_s > plan.wait_max_s:
            names = _names(_undecided(view, view.wave()))
            return _pause(rollout, f"only {lacking}, in {plan.wait_max_s:.0f} s; not decided: {names}")
        case WavePhase.WAITING:
            return Decision(_with(rollout, reason=lacking))
        case _ if not enough:
            return Decision(_in_phase(view, WavePhase.WAITING))
        case WavePhase.SOAKING if view.since_s(rollout.phase_since_ms) >= plan.soak_s:
            return Decision(_in_phase(view, WavePhase.GATE))
        case WavePhase.SOAKING:
            return Decision(_with(rollout, reason=f"soaks for {plan.soak_s:.0f} s"))
    missing = _missing_evidence(view)
    if not missing:
        return _next_wave(view, f"wave {rollout.wave + 1} is good")
    if in_wave_s > plan.wait_max_s + plan.soak_s:
        return _pause(rollout, f"evidence is missing: {missing}")
    return Decision(_with(rollout, reason=missing))


def _missing_evidence(view: View) -> str:
    """Say which evidence is missing at the gate; empty if none is."""
    rollout, plan, trials = view.rollout, view.rollout.plan, view.trials()
    own = (trials.candidate_trials if trials else 0) - rollout.trials_before
    if own < plan.trials_min:
        return f"{own} of {plan.trials_min} inferences of {plan.release} in wave {rollout.wave + 1}"
    compared = trials.incumbent_trials if trials else 0
    last = rollout.wave + 1 == len(plan.waves)
    comparable = any(
        view.standing(one) is Standing.UNTOUCHED and one.online and one.current is not None
        for one in view.devices
    )
    if not last and comparable and compared < plan.incumbent_trials_min:
        return f"{compared} of {plan.incumbent_trials_min} inferences of the incumbent to compare with"
    return ""


def _next_wave(view: View, event: str) -> Decision:
    rollout = view.rollout
    if rollout.wave + 1 < len(rollout.plan.waves):
        following = _with(
            rollout, wave=rollout.wave + 1, phase=WavePhase.ISSUING, phase_since_ms=view.now_ms, reason=""
        )
        return Decision(following, event=event)
    standings = [view.standing(one) for one in view.devices]
    offline = sum(view.standing(one) is Standing.ASKED and not one.online for one in view.devices)
    event = f"{event}; completed: {standings.count(Standing.GOOD)} of {len(view.waves)} devices run {rollout.plan.release}"
    event += f", {offline} offline ones are asked when they return" * bool(offline)
    if undecided := _undecided(view, view.devices):
        event += f", {len(undecided)} have not decided: {_names(undecided)}"
    if failures := standings.count(Standing.FAILED):
        event += f", {failures} failed"
    event += view.without()
    return Decision(_with(rollout, state=RolloutState.COMPLETED, reason=""), event=event)


def _undecided(view: View, devices: Iterable[DeviceFacts]) -> list[DeviceFacts]:
    """Devices that are there, were asked and have not said how it ended."""
    return [one for one in devices if one.online and view.standing(one) is Standing.ASKED]


def _start_rollback(view: View, reason: str) -> Decision:
    begun = _with(view.rollout, state=RolloutState.ROLLING_BACK, phase_since_ms=view.now_ms, reason=reason)
    asked = _first_asked_back(_revertible(view))
    return Decision(begun, asked, f"{reason}: takes {len(asked)} devices back")


def _roll_back(view: View) -> Decision:
    """Take every touched device back to its incumbent, whatever it said last."""
    rollout, revertible = view.rollout, _revertible(view)
    asked, again = _first_asked_back(revertible), _asked_again(view, revertible)
    away = [one for one in revertible if not _is_back(one)]
    awaited = any(one.online and (one.outcome is None or _may_retry(view, one)) for one in away)
    overdue = view.since_s(rollout.phase_since_ms) > rollout.plan.wait_max_s
    if (asked or awaited) and not overdue:
        return Decision(rollout, (*asked, *again), _told("asks again", again))
    offline = sum(not one.online for one in away)
    event = f"{len(revertible) - len(away)} of {len(revertible)} devices are back on their incumbent"
    event += f", {offline} offline ones go back when they return" * bool(offline)
    if rootless := len(view.touched()) - len(revertible):
        event += f", {rootless} had nothing to go back to"
    if stuck := [one for one in away if one.online]:
        event += f"; not back: {_names(stuck)}"
    event += view.without()
    state = RolloutState.ABORTED if rollout.requested is RolloutState.ABORTED else RolloutState.ROLLED_BACK
    return Decision(
        _with(rollout, state=state, requested=None), event=f"{state.value.replace('_', ' ')}: {event}"
    )


def _revertible(view: View) -> list[DeviceFacts]:
    """Touched devices that ran something else before."""
    return [one for one in view.touched() if one.incumbent not in {None, view.rollout.plan.release}]


def _is_back(device: DeviceFacts) -> bool:
    # Its own word for the revert, not only the release it runs: it may just be about to leave it.
    # And not what it was not believed for: that it is back counts as failed if its bytes are others.
    undone = device.outcome in {None, Outcome.FAILED}
    return device.reverting and not undone and device.current == device.incumbent


def _first_asked_back(revertible: Iterable[DeviceFacts]) -> tuple[Assignment, ...]:
    return tuple(
        Assignment(one.device, one.incumbent, revert=True)
        for one in revertible
        if one.incumbent is not None and not one.reverting
    )


def _first_asked(view: View) -> tuple[Assignment, ...]:
    """Everyone whose wave has come and who was not asked yet, also if it joined the fleet only now."""
    untouched = [one for one in view.reached() if view.standing(one) is Standing.UNTOUCHED]
    return tuple(Assignment(one.device, view.rollout.plan.release, revert=False) for one in untouched)


def _asked_again(view: View, devices: Iterable[DeviceFacts]) -> tuple[Assignment, ...]:
    """Ask online devices again that failed or are silent. What was refused or rolled back is never asked again."""
    going_back = view.rollout.state is RolloutState.ROLLING_BACK
    result = []
    for one in devices:
        wanted = one.incumbent if one.reverting else view.rollout.plan.release
        due = one.online and one.reverting is going_back and _may_retry(view, one) and _is_due(view, one)
        # One that runs the release and has not decided is not silent, it is trying it. One that failed is not, whatever
        # it says it runs.
        trying = one.current == wanted and one.outcome is None and not one.reverting
        if due and wanted is not None and not trying:
            result.append(Assignment(one.device, wanted, one.reverting, one.retries + 1))
    return tuple(result)


def _may_retry(view: View, device: DeviceFacts) -> bool:
    return device.outcome in {None, Outcome.FAILED} and device.retries < view.rollout.plan.retries_max


def _is_due(view: View, device: DeviceFacts) -> bool:
    # Silent devices are asked at even intervals within the time there is to wait.
    interval_s = view.rollout.plan.wait_max_s / (view.rollout.plan.retries_max + 1)
    if device.outcome is Outcome.FAILED:
        interval_s = min(interval_s, FAILED_RETRY_S * 2.0**device.retries)
    return device.assigned_at_ms is None or view.since_s(device.assigned_at_ms) >= interval_s


def _in_phase(view: View, phase: WavePhase) -> Rollout:
    return _with(view.rollout, phase=phase, phase_since_ms=view.now_ms, reason="")


def _pause(rollout: Rollout, reason: str) -> Decision:
    return Decision(_with(rollout, state=RolloutState.PAUSED, reason=reason), event=f"paused: {reason}")


def _with(rollout: Rollout, **changes: Any) -> Rollout:
    return msgspec.structs.replace(rollout, **changes)


def _told(what: str, assignments: Sequence[Assignment]) -> str:
    return f"{what} {_names(assignments)}" if assignments else ""


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _names(devices: Iterable[DeviceFacts | Assignment]) -> str:
    names = [one.device for one in devices]
    more = f" and {len(names) - NAMES_MAX} more" if len(names) > NAMES_MAX else ""
    return ", ".join(names[:NAMES_MAX]) + more
