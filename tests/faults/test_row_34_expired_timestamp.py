"""Row 34: the fleet has stopped signing. A whole agent, a real server and broker, and what a person sees of it.

The commands that people use know no other clock than the machine's, so the test begins eight days ago.
"""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime

import msgspec
import pytest
import sqlalchemy as sa

from agent import service as agent_service
from agent.freshness import EVERY_S, FROZEN_EVERY_S
from edgeml.twin import Outcome
from fleet import overview, schema, tables

from .conftest import ROOT
from .headquarters import Headquarters
from .invariants import check
from .life import Life, SetClock

DAY_S = 86_400.0
AGO_S = 8 * DAY_S
"""A timestamp lives for seven days."""

pytestmark = pytest.mark.processes


@pytest.fixture
def life(make_agent, mirror, signer, broker, tmp_path, monkeypatch):
    monkeypatch.setattr(agent_service, "TICK_S", 0.01)
    clock = SetClock(-AGO_S)
    signer.now_ms = clock.now_ms()
    agent = make_agent(tmp_path / "state")
    agent.join(broker, mirror)
    made = Life(agent, broker, Headquarters(tmp_path, broker.port, clock))
    yield made
    made.close()


def edgeml(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "edgeml", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=60, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def status(life):
    return json.loads(edgeml("agent", "status", "-c", life.agent.settings, "--json").stdout)


def doctor(life):
    found = json.loads(edgeml("agent", "doctor", "-c", life.agent.settings, "--json").stdout)
    return next(one for one in found if one["name"] == "signatures")


def seen_by_fleet(life):
    return overview.status(life.headquarters.store, life.clock.now_ms())


def frozen_there(life):
    return seen_by_fleet(life).devices[0].frozen_since_ms


def events(life):
    with life.headquarters.store.read() as connection:
        return list(connection.scalars(sa.select(schema.events.c.kind).order_by(schema.events.c.id)))


def text_of(view):
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as captured:
        console.print(tables.fleet(view, controller_runs=True))
    return captured.get()


def wait_until_signed(life):
    life.until(lambda: life.service._vigil.known.checked_at_ms, "a first look", seconds=EVERY_S / 100)


def test_what_serves_goes_on_nothing_new_comes_and_everybody_is_told(life, signer, mirror, versions):
    wanted = signer.release(versions[2], 2)
    life.until(lambda: life.up and life.headquarters.connected, "both links")
    wait_until_signed(life)
    life.ask()
    assert status(life)["freshness"] == {"checked_at_ms": life.service._vigil.known.checked_at_ms}
    assert doctor(life)["good"]

    # A week and a day later: the fleet wants something that it signed in time, and has signed nothing since.
    life.clock.ahead_s = 0.0
    mirror.asked.clear()
    life.broker.want(msgspec.structs.replace(wanted, generation=7))
    life.until(lambda: life.entry().outcome is not None, "an outcome", seconds=1.0)
    assert life.entry().outcome is Outcome.FAILED
    assert "expired" in life.entry().reason
    assert [one.name for one in mirror.asked if one.folder == "blobs"] == []
    life.ask()
    life.until(lambda: frozen_there(life), "the fleet to hear of it")

    # On the device: status, doctor, metrics.
    since_ms = life.service._vigil.known.frozen_since_ms
    day = datetime.fromtimestamp(since_ms / 1000, UTC).strftime("%Y-%m-%d")
    assert status(life)["freshness"]["frozen_since_ms"] == since_ms
    said = edgeml("agent", "status", "-c", life.agent.settings).stdout
    assert f"frozen    since {day}" in said
    assert "nothing new is installed" in said
    found = doctor(life)
    assert not found["good"]
    assert f"since {day}" in found["said"]
    assert "edgeml fleet serve" in found["hint"]
    assert "\nedgeml_frozen 1\n" in life.service._metrics()

    # At the fleet: the device, and an event.
    assert frozen_there(life) == since_ms
    assert "1 device frozen: cam-1 (" in text_of(seen_by_fleet(life))
    life.until(lambda: "frozen" in events(life), "the event", seconds=1.0)
    assert events(life).count("frozen") == 1

    # The agent that starts anew knows it at once, and serves what it has.
    life.restart()
    assert life.service._vigil.known.frozen_since_ms == since_ms
    life.ask()

    # The fleet signs again: within an hour the device knows by itself, and what is wanted then is installed.
    signer.now_ms = life.clock.now_ms()
    signer.publish_timestamp()
    before_s = life.clock.monotonic_s()
    life.until(
        lambda: life.up and frozen_there(life) is None,
        "the fleet to hear that it is over",
        seconds=FROZEN_EVERY_S / 50,
    )
    assert life.clock.monotonic_s() - before_s < 1.5 * FROZEN_EVERY_S
    assert doctor(life)["good"]
    assert "frozen" not in edgeml("agent", "status", "-c", life.agent.settings).stdout
    assert "frozen" not in text_of(seen_by_fleet(life))
    life.until(lambda: "thawed" in events(life), "the other event", seconds=1.0)
    life.broker.want(msgspec.structs.replace(wanted, generation=8))
    life.until(lambda: life.entry().outcome is Outcome.COMMITTED, "the commit", seconds=1.0)
    life.ask("sample@2.0.0")
    life.close()
    check(life.agent.storage)


def test_a_device_of_which_nothing_is_wanted_finds_out_by_itself(life, signer, mirror, versions):
    """As it would under a freeze attack: nobody tells it anything, and old metadata are all that it gets."""
    signer.release(versions[2], 2)
    life.until(lambda: life.up, "the link")
    wait_until_signed(life)
    asked = len(mirror.asked)
    began_s = life.clock.monotonic_s()
    life.until(lambda: frozen_there(life), "the fleet to hear of it", seconds=DAY_S / 50)
    assert 5 * DAY_S < life.clock.monotonic_s() - began_s < 7 * DAY_S + 1.5 * EVERY_S
    looks = len([one for one in mirror.asked[asked:] if one.name == "timestamp.json"])
    assert 5 <= looks <= 12, "once a day"
    life.ask()
