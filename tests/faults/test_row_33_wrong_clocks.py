"""Row 33: the machine's clock is in 1970, ten years ahead, or jumps while an update runs.

What is trusted then: `tests/edgeml/trust/test_trust_time.py`; the windows' spans: `tests/agent/test_windows.py`. The
re-basing of telemetry is not covered here.
"""

import pytest

from agent.config import load
from agent.service import Service
from agent.updater import Moment
from edgeml.testing import FakeClock

from .schedules import Schedule, new_buffer

YEAR_MS = 365 * 86_400_000
NOW_MS = 1_800_000_000_000


class Jumping(Schedule):
    """The wall clock says anything at any time; what is waited for is monotonic."""

    def now(self):
        wall_ms = self.random.choice((0, 5000, NOW_MS, NOW_MS + 10 * YEAR_MS))
        return Moment(wall_ms + int(self.seconds * 1000), self.seconds)


def test_no_jump_of_the_clock_keeps_a_device_from_its_last_wish(tmp_path):
    buffer = new_buffer(tmp_path / "telemetry.db")
    for seed in range(500):
        Jumping(seed, buffer).run(120)
    buffer.close()


@pytest.mark.parametrize(
    ("now_ms", "floor_ms", "trusted"),
    [(5000, None, False), (NOW_MS, None, True), (NOW_MS - YEAR_MS, NOW_MS, False), (NOW_MS, NOW_MS, True),
     (NOW_MS + 100 * YEAR_MS, NOW_MS, False)],
)  # fmt: skip
def test_a_birth_says_whether_the_clock_is_trusted_before_anything_was_fetched(
    tmp_path, now_ms, floor_ms, trusted
):
    settings = tmp_path / "agent.toml"
    settings.write_text('device = "cam-1"\nprofile = "generic-x86-64"\nstorage = "state"\n')
    if floor_ms is not None:
        (tmp_path / "state" / "trust").mkdir(parents=True)
        (tmp_path / "state" / "trust" / "time-floor").write_text(str(floor_ms))
    service = Service(load(settings), settings, FakeClock(now_ms))
    try:
        assert service._birth(service._now()).clock_trusted is trusted
    finally:
        service._end()
