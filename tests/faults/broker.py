"""A real mosquitto: it is killed and begun again, and keeps nothing, or what it had written down."""

import contextlib
import getpass
import os
import shutil
import signal
import subprocess
import threading

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edgeml import topics, twin
from edgeml.ids import DeviceId, TenantId, model_of
from edgeml.port import free_port
from edgeml.topics import Leaf

from ..waiting import wait_for


class Broker:
    """A mosquitto that lets everybody in. `settings` are more lines of its file."""

    def __init__(self, directory, *settings):
        if shutil.which("mosquitto") is None:
            assert os.environ.get("CI") != "true", "mosquitto is not installed"
            pytest.skip("mosquitto is not installed")
        self.port = free_port()
        self.settings, self.log = directory / "mosquitto.conf", directory / "mosquitto.log"
        lines = (f"listener {self.port} 127.0.0.1", "allow_anonymous true", *settings)
        self.settings.write_text("".join(f"{line}\n" for line in lines))
        self.begin()

    def begin(self):
        """Start it on the port that it has, with what its settings let it keep: nothing, if they do not say."""
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(["mosquitto", "-c", self.settings], stdout=out, stderr=out)
        self.client = paho.Client(CallbackAPIVersion.VERSION2)
        wait_for(self._lets_in, "the broker")
        self.client.loop_start()

    def _lets_in(self):
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError):
            self.client.connect("127.0.0.1", self.port)
            return True
        return False

    def kill(self):
        """Let it be gone, with all that it kept in memory."""
        self.client.loop_stop()
        self.process.kill()
        self.process.wait(60)

    def want(self, desired):
        """Retain a wish for `cam-1`."""
        topic = topics.device_topic(
            TenantId("default"), DeviceId("cam-1"), Leaf.DESIRED, model_of(desired.release)
        )
        self.client.publish(topic, twin.encode(desired), 1, retain=True).wait_for_publish(10)

    def retained(self):
        """What it retains, by topic."""
        found, complete = {}, threading.Event()

        def hear(_client, _data, message):
            if message.topic == "complete":
                complete.set()
            elif message.retain:
                found[message.topic] = message.payload

        reader = paho.Client(CallbackAPIVersion.VERSION2)
        reader.on_message = hear
        reader.connect("127.0.0.1", self.port)
        reader.loop_start()
        reader.subscribe([("em/#", 1), ("complete", 1)])
        # In order: after what is retained.
        reader.publish("complete", b"", 1)
        assert complete.wait(60)
        reader.disconnect()
        reader.loop_stop()
        return found

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()
        self.process.terminate()
        self.process.wait(60)


class KeepingBroker(Broker):
    """A mosquitto that keeps on disk what is retained, and writes it there when the test says so."""

    def __init__(self, directory):
        self.kept = directory / "kept"
        self.kept.mkdir()
        # Started as root it would become a user who cannot write there.
        super().__init__(
            directory, "persistence true", f"persistence_location {self.kept}/", f"user {getpass.getuser()}"
        )

    def save(self):
        """Do what it does at the end of each autosave interval, which is half an hour."""
        before = self._written()
        self.process.send_signal(signal.SIGUSR1)
        wait_for(lambda: self._written() != before, "the broker to write")

    def lose(self):
        """Lose the disk."""
        shutil.rmtree(self.kept)
        self.kept.mkdir()

    def _written(self):
        file = self.kept / "mosquitto.db"
        return file.stat().st_ino if file.exists() else None
