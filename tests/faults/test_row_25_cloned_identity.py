"""Row 25: a copied SD card. Two real agents with one login throw each other off mosquitto; the real controller notices."""

import json
import shutil
import time

import pytest
import sqlalchemy as sa

from edgeml.clock import SystemClock
from fleet import overview, rollout_store, schema
from fleet.overview import Part
from fleet.quarantines import TWO_DEVICES

from .conftest import Agent
from .steered import Steered

pytestmark = [pytest.mark.processes, pytest.mark.broker]
HURRY = 20
"""The controller's clock goes so much faster than the agents': a minute of it is three seconds here."""


class HurriedClock:
    """The system's clock, in a hurry."""

    def __init__(self):
        self.system = SystemClock()
        self.start_ms, self.start_s = self.system.now_ms(), self.system.monotonic_s()

    def monotonic_s(self):
        return self.start_s + (self.system.monotonic_s() - self.start_s) * HURRY

    def now_ms(self):
        return self.start_ms + round((self.monotonic_s() - self.start_s) * 1000)


class Camera(Agent):
    """A real agent that serves a model, with the login of an enrolled device."""

    def __init__(self, fleet, name, place):
        directory = fleet.directory / place
        directory.mkdir()
        super().__init__(directory, directory / "state")
        text = self.settings.read_text().replace('"cam-1"', f'"{name}"')
        self.settings.write_text(
            f'tenant = "main"\n{text}[broker]\nhost = "127.0.0.1"\nport = {fleet.config.broker.port}\n'
            f'password_file = "{fleet.directory / name / "token"}"\n'
        )

    def become_a_copy_of(self, other):
        shutil.rmtree(self.storage)
        shutil.copytree(other.storage, self.storage)


class Fleet(Steered):
    """What is asked here of the fleet."""

    def rows(self, name):
        with self.store.read() as connection:
            count = sa.select(sa.func.count()).select_from(schema.windows)
            return connection.scalar(count.where(schema.windows.c.device == name))

    def roll_out(self, release):
        # Nobody serves bundles here: whoever is asked fails, which must not end the rollout.
        return self.begin(release, failed_max_fraction=1.0)

    def asked(self, rollout):
        with self.store.read() as connection:
            return set(rollout_store.load_assignments(connection, rollout))


@pytest.fixture
def fleet(tmp_path):
    made = Fleet(tmp_path)
    made.enrol("cam-1", "cam-2")
    made.serve(HurriedClock())
    yield made
    made.close()


@pytest.fixture
def cameras(fleet):
    made = [Camera(fleet, "cam-1", "here"), Camera(fleet, "cam-1", "there"), Camera(fleet, "cam-2", "other")]
    yield made
    for camera in made:
        if camera.process is not None and camera.process.poll() is None:
            camera.process.kill()
            camera.process.wait()


def test_two_agents_with_one_identity_are_put_into_quarantine_and_an_operator_ends_it(fleet, cameras, caplog):
    here, there, other = cameras
    here.start()
    fleet.until(lambda: here.ask() and fleet.rows("cam-1"), "telemetry of the one")
    assert here.stop() == 0
    there.become_a_copy_of(here)
    for camera in cameras:
        camera.start()
    restarted_at = time.monotonic()

    def other_reboots():
        nonlocal restarted_at
        for camera in cameras:
            camera.ask()
        if time.monotonic() - restarted_at > 8:
            other.stop()
            other.start()
            restarted_at = time.monotonic()

    fleet.until(lambda: fleet.view("cam-1").quarantine, "the quarantine", other_reboots)
    assert fleet.view("cam-1").quarantine.reason == TWO_DEVICES
    assert fleet.view("cam-2").quarantine is None, "a device that reboots and comes back is one"
    assert [one.levelname for one in caplog.records if "readmit cam-1" in one.message] == ["ERROR"]
    for camera in (here, there):
        assert camera.process.poll() is None
        assert camera.words().count("link down") >= 2, "they threw each other off"

    # What is in quarantine gets nothing new, and gives nothing.
    fleet.publish("2.0.0")
    rollout = fleet.roll_out("sample@2.0.0")
    rows, refused = fleet.rows("cam-1"), fleet.controller.refused["quarantined"]
    fleet.until(
        lambda: (
            fleet.asked(rollout) and fleet.controller.refused["quarantined"] > refused and fleet.rows("cam-2")
        ),
        "the rollout, and what both say meanwhile",
        other_reboots,
    )
    assert fleet.asked(rollout) == {"cam-2"}
    assert fleet.rows("cam-1") == rows
    parts = {one.device: one.part for one in overview.rollout(fleet.store, rollout).devices}
    assert parts["cam-1"] is Part.QUARANTINED
    assert parts["cam-2"] in {Part.ASKED, Part.FAILED}
    assert TWO_DEVICES in fleet.devices()["cam-1"]["quarantine"]["reason"]
    assert "quarantined" in fleet.edgeml("fleet", "device", "list")
    assert "edgeml fleet device readmit cam-1" in fleet.edgeml("fleet", "status")

    # The copy is taken away, as it is when it gets an identity of its own.
    there.end(9)
    here.stop()
    assert fleet.edgeml("fleet", "device", "readmit", "cam-1") == "readmitted cam-1\n"
    here.start()
    fleet.until(
        lambda: fleet.asked(rollout) == {"cam-1", "cam-2"} and fleet.rows("cam-1") > rows,
        "cam-1 to be a device again",
        here.ask,
    )
    assert fleet.view("cam-1").quarantine is None
    lines = [one.line for one in overview.rollout(fleet.store, rollout).events]
    assert "cam-1 is out of quarantine" in lines
    again = fleet.clock.monotonic_s()
    fleet.until(
        lambda: fleet.clock.monotonic_s() > again + 200, "as long as it took to notice", other_reboots
    )
    assert json.loads(fleet.edgeml("fleet", "status", "--json"))["devices"][0]["quarantine"] is None
