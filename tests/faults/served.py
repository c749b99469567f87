"""A fleet that is really served (broker, HTTP server, controller), and clients with a device's own login."""

import contextlib
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edgeml import telemetry, topics, twin
from edgeml.ids import DeviceId, ReleaseId, TenantId
from edgeml.port import free_port
from edgeml.telemetry import Batch, Counters, Stream, Window
from edgeml.topics import Leaf
from fleet import enroll, founding
from fleet.config import FleetHome, database_url, load
from fleet.enroll import NewDevice
from fleet.store import Store

from ..waiting import PATIENCE_S, wait_for

ROOT = Path(__file__).parents[2]
PROFILE = "generic-x86-64"


def memory_bytes(pid):
    """What a process has in memory now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


class Served:
    """`edgeml fleet serve` on mosquitto."""

    def __init__(self, directory, **settings):
        if shutil.which("mosquitto") is None:
            assert os.environ.get("CI") != "true", "mosquitto is not installed"
            pytest.skip("mosquitto is not installed")
        self.directory, self.home = directory, FleetHome(directory / "fleet")
        founding.found(self.home)
        text = self.home.settings.read_text()
        text = text.replace("18830", str(free_port())).replace("18080", str(free_port()))
        text = text.replace('# kind = "auto"', 'kind = "mosquitto"')
        for name, value in {"tick_s": 0.3, **settings}.items():
            text, found = re.subn(rf"^# {name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
            assert found == 1, name
        self.home.settings.write_text(text)
        self.config = load(self.home)
        self.store = Store(database_url(self.home, self.config))
        self.peers = []
        self.log = directory / "serve.log"
        self.process = None

    def enrol(self, *names):
        for name in names:
            kit = self.directory / name
            enroll.add(self.home, self.config, self.store, NewDevice(name, PROFILE, kit, listen=""), 0)

    def start(self):
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgeml", "fleet", "serve", "--dir", self.home.directory],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        wait_for(lambda: "ready" in self.words() or self.process.poll() is not None, "the fleet to be served")
        assert self.process.poll() is None, self.words()
        wait_for(lambda: (self.status()["controller"] or {}).get("connected"), "the controller's link")

    def words(self):
        return self.log.read_text()

    def pid(self, name):
        return json.loads((self.home.run / "serve.json").read_text())["pids"][name]

    def edgeml(self, *arguments):
        done = subprocess.run(
            [sys.executable, "-m", "edgeml", *arguments, "--dir", self.home.directory],
            capture_output=True, text=True, check=False, timeout=60, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def devices(self):
        """What `edgeml fleet device list --json` shows, by name."""
        return {one["device"]: one for one in json.loads(self.edgeml("fleet", "device", "list", "--json"))}

    def status(self):
        """What the operator's HTTP view says."""
        return json.loads(self._read("/api/status"))

    def metrics(self):
        """What Prometheus reads."""
        return self._read("/metrics")

    def _read(self, path):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.config.http.port}{path}",
            headers={"Authorization": f"Bearer {self.home.operator_token.read_text().strip()}"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()

    def peer(self, name):
        self.peers.append(Peer(self, name))
        return self.peers[-1]

    def close(self):
        for peer in self.peers:
            peer.close()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
        self.store.close()
        if self.process is not None:
            assert "Traceback" not in self.words(), self.words()


class Peer:
    """A client with a device's login, that says what a test wants."""

    def __init__(self, served, name):
        self.name, self.tenant = DeviceId(name), TenantId(served.config.tenant)
        self.acks = queue.Queue()
        self.sent = 0
        self._granted = threading.Event()
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv311)
        client.username_pw_set(name, (served.directory / name / "token").read_text())
        client.max_inflight_messages_set(1000)
        client.on_connect = lambda *_: client.subscribe(
            [(one, 1) for one in topics.down_filters(self.tenant, self.name)]
        )
        client.on_subscribe = lambda *_: self._granted.set()
        client.on_message = self._on_message
        client.connect("127.0.0.1", served.config.broker.port)
        client.loop_start()
        self.client = client
        assert self._granted.wait(PATIENCE_S), "no answer to the subscription"

    def _on_message(self, _client, _data, message):
        if message.topic.endswith("/ack"):
            self.acks.put(twin.decode(message.payload, twin.Ack))

    def batch(self, seq, detail=""):
        """A batch with one window, or an event with some text, on its way."""
        if detail:
            rows = (telemetry.Event(seq=seq, kind="note", at_ms=1, detail=detail),)
            return telemetry.encode_batch(Batch("b1", events=rows))
        rows = (Window(seq, ReleaseId("m@1"), "a" * 64, 0, 1000, Counters(inferences=1)),)
        return telemetry.encode_batch(Batch("b1", rows))

    def send(self, payload, stream=Stream.WINDOWS):
        topic = topics.device_topic(self.tenant, self.name, Leaf.TELEMETRY, stream)
        self.sent += 1
        return self.client.publish(topic, payload, 1)

    def acknowledged(self, seq):
        """Wait until this one is stored."""
        while (ack := self.acks.get(timeout=PATIENCE_S)).seq < seq:
            pass
        return ack.seq

    def close(self):
        with contextlib.suppress(OSError):
            self.client.disconnect()
        self.client.loop_stop()
