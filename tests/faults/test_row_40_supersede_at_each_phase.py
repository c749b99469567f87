"""Row 40: the fleet wants something else at each phase of an update; the last wish counts, and never two are active.

There is no message that cancels: taking a wish back is wanting another release, for example the one before. A fetch
under way is ended (`tests/agent/test_device.py`), a trial is rolled back, a commit is finished first.
"""

import msgspec
import pytest

from agent.updater import Lane
from edgeml.ids import DeploymentId, ReleaseId
from edgeml.twin import DeviceState, Outcome

from .schedules import MODELS, PATIENT, SHADOWED, Schedule, digest_of_version, new_buffer

MODEL = MODELS[0]
PHASES = [state for state in DeviceState if state is not DeviceState.STRANDED]


@pytest.fixture
def schedule(tmp_path):
    buffer = new_buffer(tmp_path / "telemetry.db")
    made = Schedule(1, buffer)
    made.kinds = dict.fromkeys(made.kinds, "good")
    yield made
    buffer.close()


def want(schedule, version, shadowed=False):
    """Want a version, and nothing else before it."""
    schedule.random.seed(version)
    before = schedule.latest.get(MODEL)
    while True:
        schedule.wish()
        wanted = schedule.wishes.pop()
        schedule.latest = {MODEL: before} if before else {}
        if wanted.release.startswith(MODEL):
            break
    wanted = msgspec.structs.replace(
        wanted, generation=before.generation + 1 if before else 1, deployment=DeploymentId(f"d{version}"),
        release=ReleaseId(f"{MODEL}@{version}"), digest=digest_of_version(MODEL, version), policy=SHADOWED if shadowed else PATIENT,
    )  # fmt: skip
    schedule.latest = {MODEL: wanted}
    schedule.hear(wanted)
    return wanted


def step(schedule):
    """Perform one action to its end."""
    perform = schedule.device.next(schedule.now(), Lane.LOCAL) or schedule.device.next(
        schedule.now(), Lane.NETWORK
    )
    assert perform is not None
    schedule.device.done(perform, schedule.play(perform), schedule.now())


@pytest.mark.parametrize("begun", [False, True], ids=["before its action", "while its action is performed"])
@pytest.mark.parametrize("to", [0, 3], ids=["back to the one before", "on to another"])
@pytest.mark.parametrize("phase", PHASES, ids=[phase.value for phase in PHASES])
def test_the_last_wish_is_current_in_the_end(schedule, phase, to, begun):
    want(schedule, 0)
    schedule.settle()
    if phase is DeviceState.ROLLING_BACK:
        schedule.kinds[MODEL, 1] = "fails to load"
    want(schedule, 1, shadowed=phase in {DeviceState.SHADOWING, DeviceState.COMPARING})
    for _ in range(12):
        if schedule.device.entry(MODEL).state is phase:
            break
        step(schedule)
    assert schedule.device.entry(MODEL).state is phase
    performed = None
    if begun and phase is not DeviceState.IDLE:
        schedule.seconds += 10.0
        performed = schedule.device.next(schedule.now(), Lane.LOCAL) or schedule.device.next(
            schedule.now(), Lane.NETWORK
        )
        played = schedule.play(performed)
    want(schedule, to)
    if performed is not None:
        assert schedule.device.next(schedule.now(), Lane.LOCAL) is None, "two actions of one model"
        assert schedule.device.next(schedule.now(), Lane.NETWORK) is None, "two actions of one model"
        schedule.device.done(performed, played, schedule.now())
    ended = schedule.settle()
    assert ended[MODEL].release == f"{MODEL}@{to}"
    assert schedule.device.entry(MODEL).outcome in {
        Outcome.COMMITTED, Outcome.REVERTED, Outcome.ALREADY_INSTALLED
    }  # fmt: skip
