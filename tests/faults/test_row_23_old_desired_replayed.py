"""Row 23: an old retained wish comes again, after a newer one was carried out, also after restarts and on a new link."""

import pytest

from .schedules import Schedule, new_buffer


@pytest.fixture
def make(tmp_path):
    buffer = new_buffer(tmp_path / "telemetry.db")

    def scheduled():
        made = Schedule(0, buffer)
        made.kinds = dict.fromkeys(made.kinds, "good")
        return made

    yield scheduled
    buffer.close()


@pytest.mark.parametrize("restarted", [False, True])
def test_every_older_generation_changes_nothing(make, restarted):
    schedule = make()
    while len(schedule.wishes) < 6:
        schedule.wish()
        schedule.settle()
    ended = schedule.settle()
    if restarted:
        schedule.restart()
    before = dict(schedule.disk.entries)
    for old in schedule.wishes:
        # `hear` compares the entry before and after for every one that is not newer.
        schedule.hear(old)
    assert schedule.disk.entries == before
    assert all(schedule.device.entry(model).waiting is None for model in ended)
    assert schedule.settle() == ended
