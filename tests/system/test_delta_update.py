"""Deltas with real processes: serve, an agent, its fetching child."""

import subprocess
import sys
import time

import msgspec
import pytest

from agent.fetch import Answer, Job
from edgeml.ids import digest_of_file
from edgeml.twin import FullDownload
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


def test_the_fetching_child_obeys_the_policy(house):
    old, new = house.publish("1.0.0"), house.publish("1.1.0")
    trust, store = house.directory / "trust", house.directory / "store"
    trust.mkdir()
    root = house.home.repository / "metadata" / "1.root.json"
    (trust / "root.json").write_bytes(root.read_bytes())

    def child(version):
        job = Job(
            target=signed(house, version).path, trust_directory=str(trust), store_directory=str(store),
            repository=str(house.home.repository), now_ms=time.time_ns() // 1_000_000, length_max_bytes=1 << 20,
            full_download=FullDownload.NEVER,
        )  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "agent.fetch"],
            input=msgspec.json.encode(job),
            capture_output=True,
            check=True,
            timeout=60,
        )
        return msgspec.json.decode(done.stdout.splitlines()[-1], type=Answer)

    refused = child("1.1.0")
    assert refused.error == "BudgetError"
    assert f"{new.stat().st_size} bytes in full" in refused.message
    (store / f"{digest_of_file(old)}.edgeml").write_bytes(old.read_bytes())
    answer = child("1.1.0")
    assert answer.error == ""
    assert answer.received_bytes == signed(house, "1.1.0").facts.deltas[0].length_bytes
    assert (store / f"{digest_of_file(new)}.edgeml").read_bytes() == new.read_bytes()
