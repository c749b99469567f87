"""Releases through the brokers' TLS listeners: the certificate decides whose files they are, and who hears them."""

import json
import re
import subprocess
import sys
import time

import pytest

from agent.checkup import examine
from edgeml import topics
from edgeml.ids import ChannelId, DeviceId
from edgeml.pull import Kind, Request, Status, decode_answer, encode_request
from edgeml.testing import sample_bundle
from edgeml.topics import Leaf
from edgeml.transport import Message
from fleet import founding

from ..waiting import wait_for
from .test_mutual_tls import TENANT, comes_up, connected, enrolled, fleet, next_message

__all__ = ["fleet"]
pytestmark = [pytest.mark.processes, pytest.mark.broker]
OWN, STOLEN = ChannelId("own"), ChannelId("stolen")


def edgeml(*arguments):
    command = [sys.executable, "-m", "edgeml", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def without_http(settings):
    """Take the server's address away: only the broker is left."""
    lines = settings.read_text().splitlines()
    assert any(line.startswith("url = ") for line in lines)
    settings.write_text(
        "\n".join('over = "mqtt"' if line.startswith("url = ") else line for line in lines) + "\n"
    )


def asking(channel, device):
    request = Request(channel=channel, id=7, kind=Kind.METADATA, length=1000, name="timestamp.json")
    topic = topics.device_topic(TENANT, DeviceId(device), Leaf.PULL)
    return Message(topic, encode_request(request), 0)


def data_topic(device, channel):
    return topics.device_topic(TENANT, DeviceId(device), Leaf.DATA, channel)


def test_release_comes_by_certificate_through_the_broker_alone_and_no_other_device_hears_it(fleet, tmp_path):
    sample_bundle(tmp_path / "sample.edgeml")
    founding.publish(fleet.home, fleet.store, [tmp_path / "sample.edgeml"], fleet.home.keys)
    enrolled(fleet, tmp_path / "cam-p", "cam-p")
    thief = enrolled(fleet, tmp_path / "cam-q", "cam-q")
    settings = tmp_path / "cam-p" / "agent.toml"
    without_http(settings)
    spied = ("#", "em/v1/main/d/cam-p/data/+", "em/v1/main/d/+/data/+", data_topic("cam-p", STOLEN))
    log = tmp_path / "agent.log"
    with connected(thief, subscribe=(*spied, data_topic("cam-q", OWN))) as spy, log.open("wb") as out:
        assert comes_up(spy)
        agent = subprocess.Popen(
            [sys.executable, "-m", "edgeml", "agent", "run", "-c", str(settings)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
        try:
            edgeml(
                "fleet", "rollout", "start", "sample@1.0.0", "--waves", "100%", "--soak", "0s", "--trials", "1",
                "--dir", fleet.home.directory,
            )  # fmt: skip
            # The other device does not run, so the rollout goes on: what serves says that it came.
            wait_for(lambda: serves(settings) == "sample@1.0.0", "the release to serve")
            assert looked(fleet, settings).startswith("the fleet sends signed metadata through the broker")
            text = settings.read_text()
            settings.write_text(
                text.replace('over = "mqtt"', 'over = "http-then-mqtt"\nurl = "https://127.0.0.1:1"')
            )
            assert re.match("cannot reach https://127.0.0.1:1/.*through the broker", looked(fleet, settings))
        finally:
            agent.terminate()
            agent.wait(60)
        # It heard nothing of the other's, may not ask in its name, and is answered only in its own.
        spy.publish(asking(STOLEN, "cam-p"))
        spy.publish(asking(OWN, "cam-q"))
        heard = []
        while not heard or heard[-1].topic != data_topic("cam-q", OWN):
            heard.append(next_message(spy))
            assert heard[-1] is not None
        assert decode_answer(heard[-1].payload).status is Status.PIECE
        time.sleep(0.5)
        while (late := next_message(spy, 0.2)) is not None:
            heard.append(late)
        assert [one.topic for one in heard if "/cam-q/" not in one.topic] == []
        assert sum("/data/" in one.topic for one in heard) == 1
    assert "Traceback" not in log.read_text(), log.read_text()


def looked(fleet, settings):
    """What the doctor says of the way to the fleet's files."""
    found = {one.name: one for one in examine(settings, fleet.clock.now_ms())}
    assert found["blob server"].good, found["blob server"]
    return found["blob server"].said


def serves(settings):
    if not (settings.parent / "state" / "journal.db").exists():
        return None
    models = json.loads(edgeml("agent", "status", "-c", settings, "--json"))["models"]
    current = models[0]["slots"].get("current") if models else None
    return current and current["release"]
