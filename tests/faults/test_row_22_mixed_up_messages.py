"""Row 22, and 23 and 40 by chance: wishes, acknowledgements and reports twice, late and mixed up, with restarts at any time.

Ten thousand schedules; `EDGEML_SCHEDULES` says another number and `EDGEML_FIRST_SCHEDULE` where to begin (`make soak`
plays a million). What the controller makes of reports that come twice or out of order: `tests/fleet/test_service.py`,
and with a whole fleet `tests/system/test_fleet.py`; telemetry and its acknowledgements: `tests/agent/test_uplink.py`.
"""

import os
from collections import Counter

import pytest

from edgeml.twin import DeviceState

from .schedules import Schedule, new_buffer

SCHEDULES = int(os.environ.get("EDGEML_SCHEDULES", "10000"))
FIRST = int(os.environ.get("EDGEML_FIRST_SCHEDULE", "0"))
STEPS = 120
RARELY = {DeviceState.STRANDED}
"""No schedule here loses every slot."""


@pytest.mark.timeout(600 + SCHEDULES // 50)
def test_any_schedule_ends_as_if_only_the_last_wish_had_come(tmp_path):
    buffer, seen = new_buffer(tmp_path / "telemetry.db"), Counter()
    for seed in range(FIRST, FIRST + SCHEDULES):
        try:
            Schedule(seed, buffer, seen).run(STEPS)
        except AssertionError as error:
            raise AssertionError(f"schedule {seed}: {error}") from error
    buffer.close()
    print(
        f"{SCHEDULES} schedules; {dict(sorted((f'{what} {state.value}', n) for (what, state), n in seen.items()))}"
    )
    if SCHEDULES >= 10_000:
        for what in ("newer", "again", "restart", "crash"):
            missed = {state for state in DeviceState if not seen[what, state]} - RARELY
            assert not missed, f"no schedule has {what} in {missed}: it shows nothing about them"
