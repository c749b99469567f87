"""Releases through the broker: a real fleet, a real agent, and no HTTP between them."""

import contextlib
import json
import os
import random
import re
import signal
from pathlib import Path

import pytest

from edgeml.bundle import Bundle, write_bundle
from edgeml.manifest import REPORT
from edgeml.testing import sample_bundle
from edgeml.twin import Outcome
from fleet import founding, mosquitto, overview
from fleet.broker import BrokerKind
from fleet.repository import Repository
from fleet.rollout import RolloutState

from .test_processes import House, free_port, house, parent_of, wait_for

__all__ = ["House", "house"]
pytestmark = pytest.mark.processes


def close_http(house, over):
    """Leave the device a server that nobody reaches, and a way."""
    text = house.settings.read_text()
    assert f":{house.config.http.port}" in text
    text = text.replace(f":{house.config.http.port}", f":{free_port()}")
    house.settings.write_text(text.replace("[blobs]\n", f'[blobs]\nover = "{over}"\n'))


def publish_large(house):
    """Publish 1.0.0, the sample with a report of noise: 600 kB, which no delta makes shorter."""
    small, large = house.directory / "small.edgeml", house.directory / "large.edgeml"
    sample_bundle(small, "1.0.0")
    with Bundle(small) as bundle:
        members = {entry.name: bundle.read(entry.name) for entry in bundle.manifest.files}
        write_bundle(large, bundle.manifest, members | {REPORT: random.Random(1).randbytes(600_000)})
    founding.publish(house.home, house.store, [large], house.home.keys)


def target_of(house, version):
    releases = Repository(house.home.repository).releases()
    return next(one for one in releases if one.facts.release == f"sample@{version}")


@pytest.mark.parametrize(
    ("over", "kind"),
    [
        # By the broker alone through mosquitto: the next test.
        ("mqtt", BrokerKind.AMQTT),
        ("http-then-mqtt", BrokerKind.MOSQUITTO),
    ],
    ids=lambda one: getattr(one, "value", one),
)
def test_a_device_that_reaches_only_the_broker_gets_releases_and_refuses_changed_ones(
    house, over, kind, monkeypatch
):
    if kind is BrokerKind.MOSQUITTO and mosquitto.find() is None:
        pytest.skip("mosquitto is not installed")
    monkeypatch.setenv("EDGEML_BROKER", kind.value)
    close_http(house, over)
    publish_large(house)
    house.serve()
    house.agent()
    wait_for(lambda: house.device().online, "the device to be online")
    house.start_rollout("sample@1.0.0")
    wait_for(lambda: house.ask()["model_version"] == "1.0.0", "1.0.0 to answer")
    wait_for(lambda: house.rollout_state() is RolloutState.COMPLETED, "1.0.0 to be rolled out")
    length = target_of(house, "1.0.0").length_bytes
    assert 600_000 < length < overview.fetched_bytes(house.store) < length + 1000
    assert ("going on through the broker" in house.words()) == (over == "http-then-mqtt")

    house.publish("1.1.0", seed=1)
    target = target_of(house, "1.1.0")
    repository = Repository(house.home.repository)
    for digest in (target.digest, *(one.sha256 for one in target.facts.deltas)):
        blob = repository.blob_path(digest)
        data = bytearray(blob.read_bytes())
        data[len(data) // 2] ^= 1
        blob.write_bytes(data)
    house.start_rollout("sample@1.1.0")
    wait_for(lambda: house.device().models[0].outcome is Outcome.FAILED, "the device to give 1.1.0 up")
    assert re.search(r"chunk 0 of \S+ is not the signed one", house.words())
    assert house.ask()["model_version"] == "1.0.0"


def test_what_dies_in_the_middle_costs_what_was_under_way(house, monkeypatch):
    """The broker, the controller and the fetching child, each killed once: not a byte that was kept is fetched again."""
    if mosquitto.find() is None:
        pytest.skip("mosquitto is not installed")
    monkeypatch.setenv("EDGEML_BROKER", BrokerKind.MOSQUITTO.value)
    settings = house.home.settings.read_text()
    assert "# device_bytes_per_s = 262144" in settings
    house.home.settings.write_text(
        settings.replace("# device_bytes_per_s = 262144", "device_bytes_per_s = 100000")
    )
    close_http(house, "mqtt")
    publish_large(house)
    house.serve()
    house.agent()
    wait_for(lambda: house.device().online, "the device to be online")
    house.start_rollout("sample@1.0.0")
    target = target_of(house, "1.0.0")
    store = house.settings.parent / "state" / "store"

    def kept():
        path = store / f"{target.digest}.part"
        return path.stat().st_size if path.exists() else 0

    for name, mark in (("broker", 100_000), ("controller", 250_000), ("agent.fetch", 400_000)):
        wait_for(lambda mark=mark: kept() >= mark, f"{mark} bytes")
        [pid] = processes(house, name)
        os.kill(pid, signal.SIGKILL)
        at = kept()
        assert at < target.length_bytes, "in the middle"
        wait_for(lambda at=at: kept() > at, f"more than the {at} bytes of before the {name} died")
    wait_for(lambda: house.ask()["model_version"] == "1.0.0", "1.0.0 to answer")
    wait_for(lambda: house.rollout_state() is RolloutState.COMPLETED, "1.0.0 to be rolled out")
    assert overview.fetched_bytes(house.store) < target.length_bytes + 1000


def processes(house, name):
    """Processes of this fleet or its device."""
    if name in {"broker", "controller"}:
        return [json.loads((house.home.run / "serve.json").read_bytes())["pids"][name]]
    agent = house.processes[-1].process.pid
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().split(b"\0")
                if name.encode() in command and parent_of(entry.name) == agent:
                    found.append(int(entry.name))
    return found
