"""Memory of the agent's processes, next to a bare interpreter in the same run: resident, proportional and unique.

`supervisor` has every library of a device imported and a worker with a tiny model running, which the forkserver forked.
`agent` is the real daemon, idle, on a storage directory of its own. Targets: the idle agent has at most 30 MB resident,
a worker with a tiny model at most 20 MB of its own (USS).
"""

# ruff: noqa: E402 - the directory of this file must not be looked into: its agent.py is no room
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import subprocess
import tempfile
import time

from agent.sensors import Sensors
from edgeml.testing import sample_bundle

SETTLE_S = 3.0
BARE = "import sys; print('ready', flush=True); sys.stdin.read()"
SUPERVISOR = """
import sqlite3, sys
import msgspec, paho.mqtt.client, psutil
from pathlib import Path
from agent.serving import Serving
from agent.supervisor import Supervisor
{more}
supervisor = Supervisor()
serving = Serving(supervisor)
serving.swap(supervisor.load(Path({path!r}), {digest!r}))
assert 'numpy' not in sys.modules
print('ready', serving.active.pid, flush=True)
sys.stdin.read()
serving.close()
"""
WITH_HTTP = """
from agent.server import Server
class Nobody:
    def models(self): return ()
    def manifest(self, model): return None
    def ready(self, model): return False
server = Server(Nobody(), '127.0.0.1:0')
server.start()
"""
AGENT = """
device = "bench"
profile = "generic-x86-64"
storage = "state"
"""


class Process:
    """A child that says when it is ready, and waits."""

    def __init__(self, *command):
        self.child = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ready(self):
        """Return the numbers that the child says."""
        words = self.child.stdout.readline().split()
        assert words, "the child ended"
        assert words[0] == "ready", words
        return [int(word) for word in words[1:]]

    def stop(self):
        """End it."""
        self.child.stdin.close()
        self.child.terminate()
        self.child.wait(10)
        self.child.stdout.close()


def children(pid):
    """Process ids below `pid`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(folder.name))
    return found


def memory(pid):
    found = Sensors().memory(pid)
    return {"rss_bytes": found.rss_bytes, "pss_bytes": found.pss_bytes, "uss_bytes": found.uss_bytes}


def bare():
    process = Process("-c", BARE)
    process.ready()
    result = memory(process.child.pid)
    process.stop()
    return result


def supervised(path, digest, more=""):
    process = Process("-c", SUPERVISOR.format(path=str(path), digest=digest, more=more))
    (worker,) = process.ready()
    time.sleep(SETTLE_S)
    result = {"supervisor": memory(process.child.pid), "worker": memory(worker)}
    (forkserver,) = children(process.child.pid)
    result["forkserver"] = memory(forkserver)
    process.stop()
    return result


def daemon(directory):
    """The real agent, with neither broker nor model."""
    settings = directory / "agent.toml"
    settings.write_text(AGENT)
    process = Process("-m", "agent.daemon", str(settings), "text")
    time.sleep(SETTLE_S)
    assert process.child.poll() is None, "the agent ended"
    result = memory(process.child.pid)
    process.stop()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        digest = sample_bundle(directory / "sample.edgeml")
        rows = {"bare interpreter": bare()} | supervised(directory / "sample.edgeml", digest)
        rows["supervisor + http"] = supervised(directory / "sample.edgeml", digest, WITH_HTTP)["supervisor"]
        rows["agent, idle"] = daemon(directory)
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{'MB':<18} {'RSS':>6} {'PSS':>6} {'USS':>6}")
    for name, one in rows.items():
        print(f"{name:<18} " + " ".join(f"{value / 1e6:>6.1f}" for value in one.values()))


if __name__ == "__main__":
    main()
