"""The agent as a device runs it, and MLServer in an environment of its own, each with its processes."""

import http.client
import os
import subprocess
import sys
import time
from pathlib import Path

import onnxruntime

from agent.sensors import Sensors
from agent.slots import SlotTable, promote
from edgeml.ids import ModelName, digest_of_file
from edgeml.port import free_port
from edgeml.twin import Slot, Slots

MLSERVER = "mlserver==1.7.1"
UVLOOP = "uvloop==0.21.0"
"""With later ones its worker process ends at once: `There is no current event loop in thread 'MainThread'`."""
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
AGENT = 'device = "bench"\nprofile = "generic-x86-64"\nstorage = "state"\n'
START_TIMEOUT_S = 60.0
TICKS_S = os.sysconf("SC_CLK_TCK")


class Running:
    """A server's process and all below it."""

    def __init__(self, command, folder, environment=None):
        self.started_s = time.monotonic()
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=self.log, stderr=subprocess.STDOUT
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def pids(self):
        """Its own process first."""
        parents = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def memory(self):
        """Megabytes of all its processes together, and resident ones of the first."""
        each = [Sensors().memory(pid) for pid in self.pids()]
        return {
            "pss_mb": sum(one.pss_bytes for one in each) / 1e6,
            "uss_mb": sum(one.uss_bytes for one in each) / 1e6,
            "rss_first_mb": each[0].rss_bytes / 1e6,
            "rss_mb": sum(one.rss_bytes for one in each) / 1e6,
            "processes": len(each),
        }

    def cpu_s(self):
        """Processor time of all its processes together."""
        total = 0
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS_S

    def stop(self):
        """End it and wait."""
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


class AgentServer(Running):
    """The daemon on a storage directory where a bundle is installed."""

    def __init__(self, folder, bundle, endpoint=True):
        folder.mkdir()
        self.port = free_port()
        listen = f'[serve]\nlisten = "127.0.0.1:{self.port}"\n' if endpoint else ""
        (folder / "agent.toml").write_text(AGENT + listen)
        table = SlotTable(folder / "state")
        table.store.mkdir(parents=True)
        digest = digest_of_file(bundle)
        table.path(digest).write_bytes(bundle.read_bytes())
        table.write(
            ModelName("convolutional"),
            promote(Slots(), Slot("convolutional@1.0.0", digest, "convolutional/1.0.0", 1)),
        )
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        super().__init__(
            [sys.executable, "-P", "-m", "agent.daemon", "agent.toml", "text"], folder, environment
        )


class MlServer(Running):
    """The peer, with the same model in the same session, in the server's own process."""

    def __init__(self, folder, model):
        python = peer_environment()
        folder.mkdir()
        self.port = free_port()
        (folder / "model.onnx").write_bytes(model)
        (folder / "session_model.py").write_text((HERE / "mlserver_model.py.txt").read_text())
        (folder / "settings.json").write_text(
            f'{{"http_port": {self.port}, "grpc_port": {free_port()}, "metrics_port": {free_port()}, "host": "127.0.0.1",'
            ' "parallel_workers": 0}'
        )
        (folder / "model-settings.json").write_text(
            '{"name": "convolutional", "implementation": "session_model.SessionModel",'
            ' "parameters": {"uri": "./model.onnx", "version": "1.0.0"}}'
        )
        super().__init__(
            [str(python.with_name("mlserver")), "start", "."], folder, os.environ | {"PYTHONPATH": "."}
        )


def peer_environment():
    """Make the peer's environment if it is not there; return its interpreter."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgeml-benchmarks"
    folder = cache / f"{MLSERVER}-onnxruntime=={onnxruntime.__version__}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"installing {MLSERVER} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        wanted = [MLSERVER, UVLOOP, f"onnxruntime=={onnxruntime.__version__}"]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--quiet", *wanted], check=True)
        (folder / "complete").touch()
    return python


def first_answer_s(server, body, headers):
    """Ask until there is an answer; return seconds since the server was started."""
    until_s = server.started_s + START_TIMEOUT_S
    while time.monotonic() < until_s:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        try:
            connection.request("POST", "/v2/models/convolutional/infer", body, headers)
            if connection.getresponse().status == http.HTTPStatus.OK:
                return time.monotonic() - server.started_s
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.01)
    raise SystemExit(f"no answer: {Path(server.log.name).read_text()[-2000:]}")
