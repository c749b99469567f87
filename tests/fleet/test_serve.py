"""`edgeml fleet serve` as real processes: what dies comes back, what is stopped is gone, nothing is left behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeml.port import free_port
from fleet import founding, mosquitto
from fleet.config import FleetHome, load
from fleet.locks import CONTROLLER, SERVE, is_held
from fleet.serve import STOP_S

from ..waiting import wait_for

pytestmark = pytest.mark.processes


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


class Served:
    def __init__(self, directory, kind):
        self.home = FleetHome(directory / "fleet")
        founding.found(self.home)
        text = self.home.settings.read_text()
        text = text.replace("18830", str(free_port())).replace("18080", str(free_port()))
        self.home.settings.write_text(text.replace('# kind = "auto"', f'kind = "{kind}"'))
        self.config = load(self.home)
        self.log = directory / "serve.log"
        self.process = None
        self.seen = set()

    def start(self):
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgeml", "-v", "fleet", "serve", "--dir", str(self.home.directory)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        wait_for(
            lambda: "ready" in self.log.read_text() or self.process.poll() is not None, "serve to be ready"
        )
        assert self.process.poll() is None, self.log.read_text()
        return self

    def state(self):
        state = json.loads((self.home.run / "serve.json").read_text())
        self.seen |= set(state["pids"].values())
        return state

    def answers(self):
        def open_port(port):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return True
            return False

        return (
            open_port(self.config.broker.port)
            and open_port(self.config.http.port)
            and is_held(self.home, CONTROLLER)
        )

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                return self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
        return None


@pytest.fixture
def make(tmp_path):
    made = []

    def make_served(kind):
        if kind == "mosquitto" and mosquitto.find() is None:
            if os.environ.get("CI") == "true":
                pytest.fail("mosquitto must be installed where CI=true")
            pytest.skip("mosquitto is not installed")
        made.append(Served(tmp_path, kind))
        return made[-1]

    yield make_served
    for served in made:
        served.stop()
        assert "Traceback" not in served.log.read_text(), served.log.read_text()


@pytest.mark.parametrize("kind", ["mosquitto", "amqtt"])
def test_child_that_is_killed_comes_back_and_stop_leaves_nothing(make, kind):
    served = make(kind).start()
    state = served.state()
    assert state["broker"] == kind
    assert set(state["pids"]) == {"broker", "http", "controller"}
    assert is_held(served.home, SERVE)
    for name in ("controller", "broker", "http"):
        wait_for(served.answers, "everything to answer")
        before = served.state()["pids"]
        os.kill(before[name], signal.SIGKILL)
        wait_for(
            lambda name=name, pid=before[name]: served.state()["pids"].get(name) not in {None, pid},
            f"another {name}",
        )
        wait_for(served.answers, "everything to answer again")
        assert {other: pid for other, pid in served.state()["pids"].items() if other != name} == {
            other: pid for other, pid in before.items() if other != name
        }
    started = time.monotonic()
    assert served.stop() == 0
    assert time.monotonic() - started < STOP_S + 5
    assert not [pid for pid in served.seen if alive(pid)]
    assert not (served.home.run / "serve.json").exists()
    assert not is_held(served.home, SERVE)
    assert not is_held(served.home, CONTROLLER)


def test_supervisor_that_is_killed_leaves_no_children(make):
    served = make("mosquitto").start()
    served.state()
    served.process.kill()
    served.process.wait()
    wait_for(lambda: not [pid for pid in served.seen if alive(pid)], "the children to go")
    served.start()
    wait_for(served.answers, "everything to answer again")


def test_ctrl_c_stops_everything(make):
    served = make("mosquitto").start()
    served.state()
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(60) == 0
    assert not [pid for pid in served.seen if alive(pid)]


def login(served, token):
    """Connect as cam-1; an event that is set when the connection is lost."""
    import threading

    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion

    client = paho.Client(
        CallbackAPIVersion.VERSION2, client_id="cam-1", protocol=paho.MQTTv311, reconnect_on_failure=False
    )
    client.username_pw_set("cam-1", token)
    answered, lost, codes = threading.Event(), threading.Event(), []
    client.on_connect = lambda _c, _d, _f, reason, _p: (codes.append(reason.is_failure), answered.set())
    client.on_disconnect = lambda *_: lost.set()
    client.connect("127.0.0.1", served.config.broker.port)
    client.loop_start()
    assert answered.wait(60)
    return client, codes[0], lost


@pytest.mark.parametrize("kind", ["mosquitto", "amqtt"])
def test_device_logs_in_as_soon_as_it_is_added_and_is_thrown_out_when_removed(make, kind):
    from fleet import enroll
    from fleet.config import database_url
    from fleet.store import Store

    served = make(kind).start()
    store = Store(database_url(served.home, served.config))
    kit = served.home.directory.parent / "kit"
    enroll.add(served.home, served.config, store, enroll.NewDevice("cam-1", "generic-x86-64", kit), 0)
    token = (kit / "token").read_text()

    def accepted():
        client, refused, lost = login(served, token)
        if refused:
            client.loop_stop()
            return None
        return client, lost

    client, lost = wait_for(accepted, "the new device to be let in")
    enroll.remove(served.home, store, "cam-1", time.time_ns() // 1_000_000)
    assert lost.wait(60), served.log.read_text()
    client.loop_stop()
    wait_for(served.answers, "the broker to be back")
    client, refused, _ = login(served, token)
    client.loop_stop()
    assert refused
    store.close()


def run_serve(home):
    return subprocess.run(
        [sys.executable, "-m", "edgeml", "fleet", "serve", "--dir", str(home.directory)],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


@pytest.mark.parametrize("section", ["broker", "http"])
def test_port_in_use_is_said_plainly(make, section):
    served = make("amqtt")
    served.log.touch()
    port = getattr(served.config, section).port
    with socket.create_server(("127.0.0.1", port)):
        done = run_serve(served.home)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"error: cannot listen on 127.0.0.1:{port}: Address already in use"
    assert f"[{section}]" in done.stderr.splitlines()[1]
    assert not is_held(served.home, SERVE)


def test_second_serve_of_a_fleet_is_refused(make):
    served = make("amqtt").start()
    done = run_serve(served.home)
    assert done.returncode == 2
    assert "already running" in done.stderr
    assert served.process.poll() is None


def test_amqtt_is_said_to_be_for_trying_out(make):
    served = make("amqtt").start()
    assert "trying out only" in served.log.read_text()


def test_no_secret_is_on_a_command_line_or_in_the_log(make):
    served = make("mosquitto").start()
    secrets = [
        path.read_text().strip()
        for path in (served.home.broker / "controller.token", served.home.operator_token)
    ]
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in served.state()["pids"].values()]
    assert not [secret for secret in secrets for text in (*lines, served.log.read_text()) if secret in text]
    for path in served.home.broker.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
