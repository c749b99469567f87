"""When a device counts as frozen, when it looks, and that this outlives it."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import freshness
from agent.config import AgentConfig, BlobsConfig, BrokerConfig
from agent.freshness import EVERY_S, FIRST_S, FROZEN_EVERY_S, Freshness
from agent.updater import Moment
from agent.vigil import FROZEN, THAWED, Vigil
from edgeml.errors import DowngradeError, ExpiredError, PostponedError, TransferError, TrustError
from edgeml.ids import DeviceId

EXPIRED = ExpiredError("signed metadata has expired: timestamp.json is expired")
OTHERS = [
    TrustError("wrongly signed"),
    DowngradeError("older"),
    TransferError("cut"),
    PostponedError("not now", wait_s=5.0),
]
CAM = DeviceId("cam-1")
NOW_MS = 1_800_000_000_000


def test_it_is_frozen_from_the_first_expired_metadata_to_the_first_fresh_ones():
    fresh = Freshness().after(None, NOW_MS)
    assert fresh == Freshness(NOW_MS)
    frozen = fresh.after(EXPIRED, NOW_MS + 5)
    assert frozen == Freshness(NOW_MS + 5, NOW_MS + 5, EXPIRED.message)
    assert frozen.after(EXPIRED, NOW_MS + 9) == Freshness(NOW_MS + 9, NOW_MS + 5, EXPIRED.message)
    assert frozen.after(None, NOW_MS + 20) == Freshness(NOW_MS + 20)


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("before", [Freshness(), Freshness(5), Freshness(9, 5, "expired")])
def test_other_troubles_say_nothing_about_it(before, error):
    assert before.after(error, NOW_MS) is before


@given(
    checked_ms=st.integers(0, NOW_MS + 10**12),
    frozen=st.booleans(),
    name=st.text("abc", min_size=1, max_size=8),
)
def test_it_looks_within_a_day_and_while_frozen_within_an_hour_whatever_the_clock_says(
    checked_ms, frozen, name
):
    known = Freshness(checked_ms, checked_ms if frozen else None)
    wait_s = known.wait_s(DeviceId(name), NOW_MS)
    assert FIRST_S <= wait_s <= (FROZEN_EVERY_S if frozen else EVERY_S)


def test_a_device_that_restarts_often_looks_all_the_same_and_devices_spread_out():
    day_ms = round(EVERY_S * 1000)
    assert Freshness(NOW_MS - day_ms).wait_s(CAM, NOW_MS) == FIRST_S
    assert Freshness(NOW_MS - day_ms // 2).wait_s(CAM, NOW_MS) <= EVERY_S / 2
    waits = {Freshness(NOW_MS).wait_s(DeviceId(f"cam-{number}"), NOW_MS) for number in range(100)}
    assert len(waits) > 50
    assert max(waits) - min(waits) > EVERY_S / 8


@pytest.mark.parametrize("damage", [b"", b"\xff", b"[]", b'{"checked_at_ms":"x"}'])
def test_a_damaged_file_is_as_none(tmp_path, damage):
    assert freshness.read(tmp_path) == Freshness()
    freshness.write(tmp_path, Freshness(3, 2, "x"))
    assert freshness.read(tmp_path) == Freshness(3, 2, "x")
    (tmp_path / freshness.FILE).write_bytes(damage)
    assert freshness.read(tmp_path) == Freshness()


class Looks:
    """Answers of looks, in order; `done` is set after each."""

    def __init__(self, *answers):
        self.answers, self.done = list(answers), threading.Event()

    def __call__(self):
        try:
            answer = self.answers.pop(0)
            if answer is not None:
                raise answer
        finally:
            self.done.set()


def vigil_of(tmp_path, looks, **more):
    fleet = {"blobs": BlobsConfig("http://x"), "broker": BrokerConfig("x", 1, "token")} | more
    return Vigil(AgentConfig(device="cam-1", profile="p", storage=str(tmp_path), **fleet), looks)


def turns(vigil, looks, at_s):
    """What is told at each of these times, once the look of that time is done."""
    told = []
    for now_s in at_s:
        looks.done.clear()
        news = vigil.turn(Moment(NOW_MS + round(now_s * 1000), now_s))
        if vigil._looking is not None:
            assert looks.done.wait(60)
            while not vigil._looking.done():
                pass
            news = vigil.turn(Moment(NOW_MS + round(now_s * 1000), now_s)) or news
        told.append(news.kind if news else None)
    return told


def test_it_looks_once_a_day_and_says_what_has_changed_once(tmp_path):
    looks = Looks(None, EXPIRED, EXPIRED, TransferError("cut"), None, None)
    vigil = vigil_of(tmp_path, looks)
    day, hour = EVERY_S, FROZEN_EVERY_S
    at = [0, day, 2 * day, 2 * day + hour, 2 * day + 2.1 * hour, 2 * day + 3.2 * hour, 2 * day + 4.3 * hour]
    assert turns(vigil, looks, at) == [None, None, FROZEN, None, None, THAWED, None]
    assert len(looks.answers) == 1
    assert turns(vigil, looks, [4 * day]) == [None]
    assert looks.answers == []
    vigil.close()


def test_what_a_fetch_says_counts_as_a_look_and_outlives_the_agent(tmp_path):
    looks = Looks()
    vigil = vigil_of(tmp_path, looks)
    vigil.hear(EXPIRED, NOW_MS)
    vigil.hear(TransferError("cut"), NOW_MS)
    assert turns(vigil, looks, [0.0, 1.0]) == [FROZEN, None]
    vigil.close()
    again = vigil_of(tmp_path, looks)
    # The fleet was told, and hears it again in the birth of the new life.
    assert again.known.frozen_since_ms == NOW_MS
    assert turns(again, looks, [2.0]) == [None]
    again.hear(None, NOW_MS + 5)
    assert turns(again, looks, [3.0]) == [THAWED]
    again.close()


def test_a_disk_that_refuses_is_no_reason_not_to_know(tmp_path):
    vigil = vigil_of(tmp_path, Looks())
    (tmp_path / freshness.FILE).mkdir()
    vigil.hear(EXPIRED, NOW_MS)
    assert vigil.known.frozen_since_ms == NOW_MS
    vigil.close()


def test_a_device_without_a_fleet_never_looks(tmp_path):
    looks = Looks()
    for missing in ({"blobs": None}, {"broker": None}):
        vigil = vigil_of(tmp_path, looks, **missing)
        assert turns(vigil, looks, [0.0, 10 * EVERY_S]) == [None, None]
        vigil.close()
