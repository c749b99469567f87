"""Real processes: serve, agents, workers, with kill -9 on each; flashing without any network."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgeml.port import free_port
from edgeml.testing import sample_bundle
from fleet import enroll, founding, overview
from fleet.config import FleetHome, database_url
from fleet.config import load as load_config
from fleet.enroll import NewDevice
from fleet.rollout import RolloutState
from fleet.store import Store

from .. import waiting

pytestmark = pytest.mark.processes


def wait_for(condition, what):
    """As everywhere; who does not answer yet is waited for, too."""

    def look():
        with contextlib.suppress(OSError, urllib.error.URLError):
            return condition()

    return waiting.wait_for(look, what)


class Process:
    """A real edgeml process with its words in a file."""

    def __init__(self, log, *arguments):
        self.arguments = [sys.executable, "-m", "edgeml", *map(str, arguments)]
        self.log = log
        self.start()

    def start(self):
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.terminate()
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


class House:
    def __init__(self, directory):
        self.directory = directory
        self.home = FleetHome(directory / "fleet")
        founding.found(self.home)
        text = (
            self.home.settings.read_text()
            .replace("18830", str(free_port()))
            .replace("18080", str(free_port()))
        )
        self.home.settings.write_text(
            text.replace("# tick_s = 1.0", "tick_s = 0.3").replace("# slice_s = 60.0", "slice_s = 1.0")
        )
        self.config = load_config(self.home)
        self.store = Store(database_url(self.home, self.config))
        self.port = free_port()
        kit = directory / "kit"
        enroll.add(self.home, self.config, self.store, self.new(kit), 0)
        self.settings = kit / "agent.toml"
        self.settings.write_text(self.settings.read_text().replace("window_s = 60", "window_s = 1"))
        self.processes = []

    def new(self, kit):
        return NewDevice("cam-1", "generic-x86-64", kit, listen=f"127.0.0.1:{self.port}")

    def publish(self, version, seed=0, model="sample"):
        path = self.directory / f"{model}-{version}.edgeml"
        sample_bundle(path, version, seed=seed, model=model)
        founding.publish(self.home, self.store, [path], self.home.keys)
        return path

    def run(self, name, *arguments):
        process = Process(self.directory / f"{name}.log", *arguments)
        self.processes.append(process)
        return process

    def serve(self):
        return self.run("serve", "fleet", "serve", "--dir", self.home.directory)

    def agent(self, settings=None):
        return self.run("agent", "agent", "run", "-c", settings or self.settings)

    def edgeml(self, *arguments):
        done = subprocess.run(
            [sys.executable, "-m", "edgeml", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start_rollout(self, release, *options):
        self.edgeml(
            "fleet",
            "rollout",
            "start",
            release,
            "--waves",
            "100%",
            "--soak",
            "0s",
            "--trials",
            "1",
            *options,
            "--dir",
            self.home.directory,
        )

    def rollout_state(self):
        """State of the newest rollout."""
        return overview.rollouts(self.store)[0].state

    def device(self):
        return overview.status(self.store, 0).devices[0]

    def ask(self, values=(1, 2, 3, 4), model="sample"):
        body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": list(values)}]}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v2/models/{model}/infer", json.dumps(body).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=5) as response:
            return json.load(response)

    def metrics(self):
        """Every value on the agent's page of metrics, by name and first label."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as response:
            text = response.read().decode()
        families = text_string_to_metric_families(text)
        return {(one.name, *one.labels.values()): one.value for all_ in families for one in all_.samples}

    def stored_inferences(self):
        import sqlalchemy as sa

        from fleet import schema

        with self.store.read() as connection:
            return connection.execute(sa.select(sa.func.sum(schema.windows.c.inferences))).scalar() or 0

    def words(self):
        return "\n".join(path.read_text() for path in self.directory.glob("*.log"))


@pytest.fixture
def house(tmp_path):
    house = House(tmp_path)
    yield house
    for process in house.processes:
        with contextlib.suppress(ProcessLookupError):
            process.stop()
    house.store.close()
    assert "Traceback" not in house.words(), house.words()


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def worker_pids(agent):
    pid = agent.process.pid
    found = []
    for entry in (path.name for path in Path("/proc").iterdir()):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                comm = Path(f"/proc/{entry}/comm").read_text().strip()
                if comm == "edgeml-worker" and parent_of(parent_of(entry)) == pid:
                    found.append(int(entry))
    return found


def test_a_release_reaches_a_real_device_answers_and_is_reported(house):
    house.publish("1.0.0")
    serve, agent = house.serve(), house.agent()
    wait_for(lambda: house.device().online, "the device to be online")
    house.start_rollout("sample@1.0.0")
    answer = wait_for(house.ask, "an answer")
    assert answer["model_version"] == "1.0.0"
    for _ in range(20):
        house.ask()
    wait_for(lambda: house.stored_inferences() >= 21, "telemetry in the store")
    assert (
        json.loads(house.edgeml("agent", "status", "-c", house.settings, "--json"))["models"][0]["slots"][
            "current"
        ]["release"]
        == "sample@1.0.0"
    )
    # The agent dies and comes back: the same model, no second installation, nothing lost that was kept.
    agent.kill()
    agent.start()
    assert wait_for(house.ask, "an answer after the restart")["model_version"] == "1.0.0"
    # The worker dies: another one takes its place.
    [pid] = wait_for(lambda: worker_pids(agent), "a worker")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: [new for new in worker_pids(agent) if new != pid], "another worker")
    wait_for(house.ask, "an answer of the new worker")
    wait_for(lambda: house.rollout_state() is RolloutState.COMPLETED, "the first rollout to be completed")
    said = house.metrics()
    assert said["edgeml_inferences_total", "sample", "1.0.0"] >= 2
    assert said["edgeml_worker_memory_bytes", "sample", "1.0.0"] > 1 << 20
    crashes, restarts = (said[f"edgeml_worker_{name}_total", "sample"] for name in ("crashes", "restarts"))
    assert (crashes, restarts) == (1, 1)
    assert said["edgeml_update_state", "sample", "idle"] == 1
    assert said["edgeml_update_outcome", "sample", "committed"] == 1
    produced, acknowledged, held = (
        said[f"edgeml_telemetry_rows_{name}", "windows"]
        for name in ("produced_total", "acknowledged_total", "held")
    )
    dropped = sum(
        value for key, value in said.items() if key[:2] == ("edgeml_telemetry_rows_dropped_total", "windows")
    )
    assert acknowledged > 0
    assert produced == acknowledged + held + dropped
    # Everything of the fleet dies: broker, server and controller come back, and the next release arrives.
    serve.kill()
    serve.start()
    house.publish("1.1.0", seed=1)
    house.start_rollout("sample@1.1.0")
    wait_for(lambda: house.ask()["model_version"] == "1.1.0", "the new release to answer")
    wait_for(lambda: house.rollout_state() is RolloutState.COMPLETED, "the second rollout to be completed")
    assert agent.stop() == 0
    assert serve.stop() == 0


def test_what_a_release_answers_at_once_is_evidence_for_its_rollout(house):
    """Also within the window of time in which the rollout began: a device may be asked only now and then."""
    text = house.settings.read_text()
    house.settings.write_text(text.replace("window_s = 1", "window_s = 10"))
    house.publish("1.0.0")
    house.serve()
    house.agent()
    wait_for(lambda: house.device().online, "the device to be online")
    house.start_rollout("sample@1.0.0")
    wait_for(house.ask, "an answer")
    wait_for(lambda: house.rollout_state() is RolloutState.COMPLETED, "the rollout to be completed")


def test_a_flashed_release_is_installed_without_any_network_and_a_changed_one_is_not(house):
    bundle = house.publish("1.0.0")
    text = house.settings.read_text()
    alone = house.settings.with_name("alone.toml")
    alone.write_text(
        "\n".join(
            line
            for line in text.splitlines()
            if line.split(" ")[0] in {"device", "tenant", "profile", "storage"}
        )
    )
    alone.write_text(f'{alone.read_text()}\n[serve]\nlisten = "127.0.0.1:{house.port}"\n')
    storage = house.settings.parent / "state"
    said = json.loads(
        house.edgeml("flash", bundle, "--to", storage, "--fleet", house.home.directory, "--json")
    )
    assert said["release"] == "sample@1.0.0"
    house.agent(alone)
    assert wait_for(house.ask, "an answer")["model_version"] == "1.0.0"
    # A second one, changed on its way: refused, and the first goes on answering.
    second = house.publish("1.1.0", seed=1)
    inbox = json.loads(
        house.edgeml("flash", second, "--to", storage, "--fleet", house.home.directory, "--json")
    )["inbox"]
    blobs = Path(inbox) / "repository" / "blobs" / "sha256"
    blob = next(path for path in blobs.iterdir() if path.stat().st_size > 1000)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)

    def outcome():
        return json.loads(house.edgeml("agent", "status", "-c", alone, "--json"))["models"][0]["outcome"]

    wait_for(lambda: outcome() in {"failed", "rejected"}, "the changed one to be refused")
    assert house.ask()["model_version"] == "1.0.0"


def test_a_signal_to_the_whole_group_lets_the_last_window_be_kept(house):
    """Shells and `timeout` signal every process of a group; only the agent decides in which order things end."""
    house.publish("1.0.0")
    text = house.settings.read_text()
    house.settings.write_text(text.replace("window_s = 1\n", "window_s = 3600\n"))
    house.serve()
    agent = house.agent()
    wait_for(lambda: house.device().online, "the device to be online")
    house.start_rollout("sample@1.0.0")
    wait_for(house.ask, "an answer")
    os.killpg(agent.process.pid, signal.SIGTERM)
    assert agent.process.wait(60) == 0
    assert "vanished" not in house.words()
    assert "cannot be taken" not in house.words()
    agent.start()
    wait_for(lambda: house.stored_inferences() == 1, "the last window to arrive")


def test_an_agent_stops_within_five_seconds_and_two_never_share_a_directory(house):
    agent = house.agent()
    wait_for(lambda: "runs on" in house.words(), "the agent to run")
    second = subprocess.run(
        [sys.executable, "-m", "edgeml", "agent", "run", "-c", str(house.settings)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert second.returncode == 2
    assert "another agent runs" in second.stderr
    started = time.monotonic()
    assert agent.stop() == 0
    assert time.monotonic() - started < 5
