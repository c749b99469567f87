"""A disk of a few pages, and a real agent that serves a real model from a storage directory."""

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from agent import service as agent_service
from agent.forkserver import ForkServer
from agent.slots import SlotTable, promote
from agent.supervisor import Supervisor, installed_preload
from edgeml import mqtt
from edgeml.bundle import REPORT, Bundle, write_bundle
from edgeml.ids import ModelName, ReleaseId
from edgeml.port import free_port
from edgeml.testing import sample_bundle
from edgeml.twin import Outcome, Slot, Slots

from ..waiting import wait_for
from .apart import Apart
from .broker import Broker, KeepingBroker
from .mirror import Mirror
from .signer import Signer
from .unit import Unit

ROOT = Path(__file__).parents[2]


class Disk:
    """A file system of its own, in memory, whose room a test decides."""

    def __init__(self, path, size_bytes):
        self.path = path
        path.mkdir()
        done = self.mount("-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", path)
        if done.returncode:
            why = f"cannot mount a tmpfs: {done.stderr.strip()}"
            if os.environ.get("CI") == "true":
                pytest.fail(why)
            pytest.skip(why)

    def mount(self, *arguments):
        return subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)

    def fill(self, leave_bytes=0):
        """Take all room but this."""
        ballast = self.path / "ballast"
        with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"b" * 4096):
                pass
        os.truncate(ballast, max(0, ballast.stat().st_size - leave_bytes))

    def free(self):
        (self.path / "ballast").unlink()

    def set_read_only(self):
        """As the kernel does after an error of the card; open files make a remount impossible, so it is a bind."""
        assert not self.mount("-o", "bind", self.path, self.path).returncode
        assert not self.mount("-o", "remount,bind,ro", self.path).returncode

    def close(self):
        while os.path.ismount(self.path):
            subprocess.run(["umount", "--lazy", self.path], check=True)


@pytest.fixture
def make_disk(tmp_path):
    made = []

    def make(size_bytes):
        made.append(Disk(tmp_path / f"disk-{len(made)}", size_bytes))
        return made[-1]

    yield make
    for disk in made:
        disk.close()


class Agent:
    """A real agent on a storage directory that has a model in its slots."""

    def __init__(self, directory, storage):
        self.storage = storage
        self.port = free_port()
        bundle = directory / "sample.edgeml"
        digest = sample_bundle(bundle)
        table = SlotTable(storage)
        self.bundle = table.path(digest)
        self.bundle.parent.mkdir(parents=True)
        self.bundle.write_bytes(bundle.read_bytes())
        table.write(ModelName("sample"), promote(Slots(), Slot(ReleaseId("sample@1.0.0"), digest, "t", 1)))
        self.content = self.bundle.read_bytes()
        self.settings = directory / "agent.toml"
        self.settings.write_text(
            f'device = "cam-1"\nprofile = "generic-x86-64"\nstorage = "{storage}"\n'
            f'[telemetry]\nwindow_s = 0.2\n[serve]\nlisten = "127.0.0.1:{self.port}"\n'
        )
        self.log = directory / "agent.log"
        self.process = None

    def join(self, broker, server):
        """Belong to a fleet: hear its broker, trust its root (`server.anchor`), fetch from its server (`server.url`)."""
        trust, token = self.storage / "trust", self.settings.parent / "token"
        trust.mkdir(parents=True)
        (trust / "root.json").write_bytes(server.anchor)
        token.write_text("secret")
        token.chmod(0o600)
        self.settings.write_text(
            self.settings.read_text()
            + f'[broker]\nhost = "127.0.0.1"\nport = {broker.port}\npassword_file = "{token}"\n'
            + f'[blobs]\nurl = "{server.url}"\n'
        )

    def dial(self, port):
        """Reach the broker by another port of this machine."""
        self.settings.write_text(
            re.sub(
                r'(\[broker\]\nhost = "127.0.0.1"\nport) = \d+', rf"\1 = {port}", self.settings.read_text()
            )
        )

    def start(self):
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgeml", "agent", "run", "-c", self.settings],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    def ask(self, version="1.0.0"):
        body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v2/models/sample/infer", json.dumps(body).encode(), method="POST"
        )
        with (
            contextlib.suppress(OSError, urllib.error.URLError),
            urllib.request.urlopen(request, timeout=5) as answer,
        ):
            return json.load(answer)["model_version"] == version
        return False

    def words(self):
        return self.log.read_text()

    def wait_for(self, condition, what):
        def look():
            assert self.process.poll() is None, f"the agent ended:\n{self.words()}"
            return condition()

        wait_for(look, what)

    def serves(self):
        """The model in the slots answers, byte for byte what was installed."""
        self.wait_for(self.ask, "an answer")
        assert self.bundle.read_bytes() == self.content
        assert "Traceback" not in self.words(), self.words()
        return True

    def streams(self):
        """What `edgeml agent buffer ls` says."""
        done = subprocess.run(
            [sys.executable, "-m", "edgeml", "agent", "buffer", "ls", "--json", "-c", self.settings],
            capture_output=True, text=True, check=False, timeout=60, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        streams = json.loads(done.stdout)["streams"]
        for one in streams:
            assert one["produced"] == one["acknowledged"] + one["dropped"] + one["held"]
            assert one["dropped"] == sum(one["reasons"].values())
        return {one["stream"]: one for one in streams}

    def end(self, number):
        """Send it a signal, and wait for its end."""
        self.process.send_signal(number)
        self.process.wait(60)

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(60)


@pytest.fixture
def make_agent(tmp_path):
    made = []

    def make(storage):
        made.append(Agent(tmp_path, storage))
        return made[-1]

    yield make
    for agent in made:
        if agent.process is not None and agent.process.poll() is None:
            agent.process.kill()
            agent.process.wait()


@pytest.fixture
def apart(make_agent, tmp_path, versions, monkeypatch):
    """An agent and its fleet behind a broker that keeps, and that both find again soon."""
    monkeypatch.setattr(agent_service, "TICK_S", 0.01)
    for name in ("RECONNECT_MIN_S", "RECONNECT_FIRST_S", "RECONNECT_MAX_S"):
        monkeypatch.setattr(mqtt, name, 0.2)
    with contextlib.closing(KeepingBroker(tmp_path)) as broker:
        made = Apart(tmp_path, make_agent(tmp_path / "state"), broker, versions)
        with contextlib.closing(made):
            yield made


@pytest.fixture
def broker(tmp_path):
    made = Broker(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session")
def versions(tmp_path_factory):
    """Real bundles of one model, by number: 1 is `sample@1.0.0`. They differ, and are as long as is told here."""
    folder = tmp_path_factory.mktemp("versions")
    made = {}
    for number in range(1, 4):
        path = folder / f"{number}.edgeml"
        sample_bundle(path, f"{number}.0.0", seed=number)
        made[number] = path.read_bytes()
    return made


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """Version 2 as a bundle of about 0.9 MB: its report is noise."""
    path = tmp_path_factory.mktemp("large") / "large.edgeml"
    sample_bundle(path, "2.0.0", seed=2)
    with Bundle(path) as bundle:
        members = {one.name: bundle.read(one.name) for one in bundle.manifest.files}
        manifest = bundle.manifest
    write_bundle(path, manifest, members | {REPORT: random.Random(1).randbytes(900_000)})
    return path.read_bytes()


@pytest.fixture
def mirror(signer):
    made = Mirror(signer)
    yield made
    made.close()


@pytest.fixture(scope="session")
def supervisor():
    forkserver = ForkServer(installed_preload())
    made = Supervisor(forkserver)
    made.start()
    yield made
    made.close()
    forkserver.close()


@pytest.fixture
def make_unit(tmp_path, signer, mirror, supervisor):
    made = []

    def make(name="cam-1", url=None):
        made.append(Unit(tmp_path / name, url or mirror.url, signer.anchor, supervisor, name))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="session")
def founded(tmp_path_factory, versions, supervisor):
    """A fleet, and the storage of a device that has `sample@1.0.0` of it; it takes a while to make them."""
    signer, storage = Signer(), tmp_path_factory.mktemp("founded") / "device"
    mirror = Mirror(signer)
    unit = Unit(storage, mirror.url, signer.anchor, supervisor)
    assert unit.install(signer.release(versions[1])).outcome is Outcome.COMMITTED
    unit.close()
    mirror.close()
    return signer, storage


@pytest.fixture
def signer(founded):
    return founded[0].copy()


@pytest.fixture
def unit(tmp_path, founded, make_unit):
    """A device that serves `sample@1.0.0`."""
    shutil.copytree(founded[1], tmp_path / "cam-1")
    made = make_unit()
    assert made.serves() == "sample@1.0.0"
    return made
