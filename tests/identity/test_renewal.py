"""Renewal: by the child over real TLS, by the running agent, and what follows from failures."""

import os
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import renewal
from agent.config import load
from agent.enrolment import enrol
from agent.renew import renew
from agent.renewal import (
    FAILED,
    PAUSE_FIRST_S,
    PAUSE_MOST_S,
    RENEWED,
    Renewal,
    Renewed,
    RenewJob,
    next_look_s,
)
from edgeml import keypair
from edgeml.errors import TrustError
from edgeml.source import HttpSource
from fleet import enroll

from ..waiting import wait_for

DAY_MS = 86_400_000


@pytest.fixture
def kit(fleet, tmp_path):
    """A device whose certificate has lived for 70 of its 90 days."""
    fleet.clock.advance(-70 * 86_400)
    directory = tmp_path / "kit"
    enrol(fleet.wish(directory), lambda _line: None, 0)
    fleet.clock.advance(70 * 86_400)
    return directory


def job(fleet, kit, now_ms=None):
    config = load(kit / "agent.toml")
    return RenewJob(
        device=config.device,
        url=config.blobs.url,
        authority=config.tls.authority,
        identity=config.tls.identity,
        now_ms=now_ms or fleet.clock.now_ms(),
    )


def test_new_key_and_new_certificate_after_two_thirds_of_its_life(fleet, kit):
    before = keypair.facts((kit / "identity.pem").read_bytes())
    early = renew(job(fleet, kit, before.renew_at_ms - 1))
    assert early == Renewed(renew_at_ms=before.renew_at_ms)
    assert keypair.facts((kit / "identity.pem").read_bytes()) == before
    assert renew(job(fleet, kit)).renewed
    after = keypair.facts((kit / "identity.pem").read_bytes())
    assert after.key_fingerprint != before.key_fingerprint
    assert after.not_after_ms > before.not_after_ms
    assert (kit / "identity.pem").stat().st_mode & 0o777 == 0o600
    config = load(kit / "agent.toml")
    assert b"".join(HttpSource(config.blobs.url, tls=config.tls.files).metadata("timestamp.json"))


def test_removed_device_gets_no_new_certificate(fleet, kit):
    before = (kit / "identity.pem").read_bytes()
    enroll.remove(fleet.home, fleet.store, "cam-1", fleet.clock.now_ms())
    with pytest.raises(TrustError, match="revoked"):
        renew(job(fleet, kit))
    assert (kit / "identity.pem").read_bytes() == before


def test_expired_certificate_is_told_to_enrol_again(fleet, kit):
    with pytest.raises(TrustError, match="expired") as caught:
        renew(job(fleet, kit, fleet.clock.now_ms() + 30 * DAY_MS))
    assert "claim create --device cam-1" in caught.value.hint


def renew_and_die(asked, after_syncs):
    """Renew in a process that ends, as by a power cut, at a certain write; tell whether it finished."""
    child = os.fork()
    if not child:
        done, real = 0, os.fsync

        def fsync(descriptor):
            nonlocal done
            if done == after_syncs:
                os._exit(9)
            done += 1
            real(descriptor)

        os.fsync = fsync
        renew(asked)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_power_cut_at_any_write_leaves_an_identity_that_opens_the_door(fleet, kit):
    config, asked = load(kit / "agent.toml"), job(fleet, kit)
    for after_syncs in range(10):
        if renew_and_die(asked, after_syncs):
            break
        assert b"".join(HttpSource(config.blobs.url, tls=config.tls.files).metadata("timestamp.json"))
    assert after_syncs == 2


def turn_until_news(one, fleet):
    return wait_for(lambda: one.turn(fleet.clock.now_ms(), time.monotonic()), "news")


def test_child_of_the_supervisor_renews_and_failures_are_news(fleet, kit, monkeypatch):
    monkeypatch.setattr(renewal, "FIRST_LOOK_S", 0.0)
    config = load(kit / "agent.toml")
    assert turn_until_news(Renewal(config, os.environ), fleet).kind == RENEWED
    (kit / "identity.pem").chmod(0o644)
    news = turn_until_news(Renewal(config, os.environ), fleet)
    assert news.kind == FAILED
    assert "chmod 600" in news.detail


def test_running_agent_renews_by_itself(fleet, kit):
    before = keypair.facts((kit / "identity.pem").read_bytes())
    agent = subprocess.Popen(
        [sys.executable, "-m", "edgeml", "agent", "run", "-c", str(kit / "agent.toml")],
        stdin=subprocess.DEVNULL,
    )
    try:

        def is_renewed():
            assert agent.poll() is None
            return keypair.facts((kit / "identity.pem").read_bytes()) != before

        wait_for(is_renewed, "the agent to renew")
    finally:
        agent.terminate()
        agent.wait(60)


@given(failures=st.integers(1, 1000), now_ms=st.integers(0, 1 << 45))
def test_pauses_grow_and_are_bounded(failures, now_ms):
    pause_s = next_look_s(Renewed(error="x"), failures, now_ms)
    assert PAUSE_FIRST_S <= pause_s <= PAUSE_MOST_S
    assert pause_s <= next_look_s(Renewed(error="x"), failures + 1, now_ms)


@given(renew_at_ms=st.integers(0, 1 << 45), now_ms=st.integers(0, 1 << 45))
def test_a_clock_that_jumps_delays_a_look_by_a_day_at_most(renew_at_ms, now_ms):
    assert PAUSE_FIRST_S <= next_look_s(Renewed(renew_at_ms=renew_at_ms), 0, now_ms) <= 86_400
