"""Deltas with real processes: serve, an agent, its fetching child."""

import contextlib

import pytest

from agent.config import AgentConfig, UpdateConfig
from agent.installer import DeviceInstaller, Tools
from agent.ledger import Ledger
from agent.peaks import Peaks
from agent.roster import Roster
from agent.sensors import Sensors
from agent.slots import SlotTable
from agent.supervisor import Supervisor
from agent.timetable import Timetable
from agent.traffic import Traffic
from edgeml.clock import SystemClock
from edgeml.errors import BudgetError
from edgeml.ids import digest_of_file
from edgeml.twin import Desired, FullDownload, Policy
from fleet import overview
from fleet.repository import Repository
from fleet.rollout import RolloutState

from .test_processes import House, house, wait_for

__all__ = ["House", "house"]
pytestmark = pytest.mark.processes


def signed(house, version):
    releases = Repository(house.home.repository).releases()
    return next(one for one in releases if one.facts.release == f"sample@{version}")


def roll_out(house, version):
    """Bring a release to the device; return how many bytes it says it took."""
    before = overview.fetched_bytes(house.store)
    house.start_rollout(f"sample@{version}")
    wait_for(lambda: house.ask()["model_version"] == version, f"{version} to answer")
    wait_for(lambda: house.rollout_state() is RolloutState.COMPLETED, f"{version} to be rolled out")
    return overview.fetched_bytes(house.store) - before


def test_a_device_gets_the_next_release_by_delta_and_in_full_if_the_delta_is_corrupted(house):
    house.publish("1.0.0")
    house.serve()
    house.agent()
    wait_for(lambda: house.device().online, "the device to be online")
    first = roll_out(house, "1.0.0")
    assert first > signed(house, "1.0.0").length_bytes

    house.publish("1.1.0", seed=1)
    target = signed(house, "1.1.0")
    [delta] = target.facts.deltas
    assert delta.base_sha256 == signed(house, "1.0.0").digest
    assert roll_out(house, "1.1.0") == delta.length_bytes < target.length_bytes / 2

    house.publish("1.2.0", seed=2)
    target = signed(house, "1.2.0")
    installed = {signed(house, version).digest for version in ("1.0.0", "1.1.0")}
    assert {one.base_sha256 for one in target.facts.deltas} == installed
    for one in target.facts.deltas:
        blob = Repository(house.home.repository).blob_path(one.sha256)
        blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    taken = roll_out(house, "1.2.0")
    assert taken > target.length_bytes + sum(one.length_bytes for one in target.facts.deltas)
    assert house.words().count("is not the signed one") == 2
    store = house.settings.parent / "state" / "store"
    assert {path.suffix for path in store.iterdir()} == {".edgeml"}
    assert digest_of_file(store / f"{target.digest}.edgeml") == target.digest


def test_the_policy_of_a_deployment_reaches_the_fetching_child(house):
    old, new = house.publish("1.0.0"), house.publish("1.1.0")
    storage = house.directory / "device"
    (storage / "trust").mkdir(parents=True)
    root = house.home.repository / "metadata" / "1.root.json"
    (storage / "trust" / "root.json").write_bytes(root.read_bytes())
    supervisor, table = Supervisor(), SlotTable(storage)
    with contextlib.closing(Roster(supervisor)) as roster:
        tools = Tools(
            supervisor,
            roster,
            table,
            SystemClock(),
            lambda _worker: None,
            lambda _worker: None,
            lambda _model, _shadow: None,
            dict,
            frozenset,
            Ledger(None, Peaks(storage), Sensors(), supervisor.shared_bytes),
            Timetable(UpdateConfig(), SystemClock()),
            Traffic(storage, None, SystemClock()),
        )
        config = AgentConfig(device="cam-1", profile="generic-x86-64", storage=str(storage))
        installer = DeviceInstaller(config, tools)
        target = signed(house, "1.1.0")
        desired = Desired(
            generation=1, deployment="d", release=target.facts.release, target=target.path, digest=target.digest,
            policy=Policy(full_download=FullDownload.NEVER),
        )  # fmt: skip
        setback = installer.fetch(desired, str(house.home.repository))
        assert isinstance(setback.error, BudgetError)
        assert f"{new.stat().st_size} bytes in full" in setback.error.message
        table.path(digest_of_file(old)).write_bytes(old.read_bytes())
        delivery = installer.fetch(desired, str(house.home.repository))
    assert delivery.target == target
    assert delivery.received_bytes == target.facts.deltas[0].length_bytes
    assert table.path(target.digest).read_bytes() == new.read_bytes()
