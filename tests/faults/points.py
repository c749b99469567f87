"""Real agents that are killed at the k-th change to their disk; the points are found by counting, not by a list.

`points.c` says what a point is. It is compiled with the machine's C compiler and preloaded into the agent and, since an
agent gives its fetching child hardly any of its environment, into every Python that starts below it.
"""

import contextlib
import json
import mmap
import os
import shutil
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.flash import flash
from agent.journal import peek
from edgeml.errors import StateError
from edgeml.ids import ModelName, digest_of_file
from edgeml.port import free_port
from edgeml.testing import sample_bundle
from edgeml.twin import DeviceState
from fleet import founding
from fleet.config import FleetHome, database_url
from fleet.config import load as load_config
from fleet.store import Store

from .bundles import wrong
from .ends import at_rest, bounded, one_active_model
from .invariants import check

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("points.c")
MODEL = ModelName("sample")
LIFE_S = 120.0
AT_ONCE = 3
BAD = frozenset({f"{MODEL}@3.0.0"})
NEVER = -1
SOAK = os.environ.get("EDGEML_SOAK") == "1"
"""Every point instead of a sample: `make soak`."""
SHARED = struct.Struct("=qqqqqq")
"""As in `points.c`: how many there were, at which to end, whether to tear it, the process that ends with it, how many marks
were passed, and the first point that counts."""
AGENT_AT = 24
"""Where the process is in it."""
_PRELOADING = """\
import os, sys
settings = {settings!r}
if "EDGEML_POINTS" not in os.environ:
    os.execve(sys.executable, sys.orig_argv, {{**os.environ, **settings}})
"""


def compile_points(directory):
    """Return the library that counts, or skip where there is no compiler."""
    library = directory / "points.so"
    try:
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"],
            check=True,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        if os.environ.get("CI") == "true":
            pytest.fail("no C compiler: points cannot be counted")
        pytest.skip("no C compiler: points cannot be counted")
    return library


@dataclass(frozen=True)
class Point:
    """One change to the disk."""

    index: int
    call: str
    size_bytes: int
    """Of the file, before the call."""
    path: str
    source: str = ""
    """Last part of the old name, if it is a rename."""

    @property
    def place(self):
        """What kind of change it is to what kind of file, whatever names are made up on the way."""
        parts = [part for part in self.path.split("/") if not part.startswith(".")]
        named = [part if len(part) < 40 else f"*{part[64:]}" for part in parts]
        return self.call, "/".join(named[:1] + named[-1:]), "/." in f"/{self.path}"


@dataclass(frozen=True)
class Cut:
    """The point at which a life is killed, counted from the start or from the last of these calls (call, path) in their order."""

    at: int = NEVER
    torn: bool = False
    since: tuple[tuple[str, str], ...] = ()

    def seen(self, points):
        """Those of a life's points that count."""
        begun = 0
        for mark in self.since:
            calls = [(point.call, point.path) for point in points]
            points = points[calls.index(mark, begun) :] if mark in calls[begun:] else []
            begun = 1
        return points


class Life:
    """One life of an agent on a storage directory, alone or with its points counted."""

    def __init__(self, directory, storage, library=None, cut=Cut(), more=""):
        directory.mkdir(parents=True, exist_ok=True)
        self.storage = storage
        self.log = directory / "agent.log"
        self.told = directory / "points"
        self.settings = directory / "agent.toml"
        self.port = free_port()
        self.settings.write_text(
            f'device = "cam-1"\nprofile = "generic-x86-64"\nstorage = "{storage}"\n'
            f'[telemetry]\nwindow_s = 1\n[serve]\nlisten = "127.0.0.1:{self.port}"\n{more}'
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._shared = directory / "shared"
        self._shared.write_bytes(SHARED.pack(0, cut.at, int(cut.torn), 0, 0, 0))
        if library is not None:
            hook = {
                "LD_PRELOAD": str(library),
                "EDGEML_POINTS": str(self._shared),
                "EDGEML_POINTS_ROOT": str(storage),
                "EDGEML_POINTS_LOG": str(self.told),
            }
            if cut.since:
                hook["EDGEML_POINTS_SINCE"] = "\n".join(map(" ".join, cut.since))
            (directory / "hook").mkdir(exist_ok=True)
            (directory / "hook" / "sitecustomize.py").write_text(_PRELOADING.format(settings=hook))
            environment |= {**hook, "PYTHONPATH": f"{directory / 'hook'}:{ROOT}"}
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgeml", "agent", "run", "-c", self.settings],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd=ROOT, env=environment,
            )  # fmt: skip
        with self._shared.open("r+b") as file, mmap.mmap(file.fileno(), SHARED.size) as mapped:
            mapped[AGENT_AT : AGENT_AT + 8] = struct.pack("=q", self.process.pid)

    @property
    def points(self):
        lines = self.told.read_text().splitlines() if self.told.exists() else []
        return [_point(line) for line in lines]

    def words(self):
        return self.log.read_text()

    def run_to(self, condition, what):
        """Wait until the condition holds; False if the agent died first."""
        deadline = time.monotonic() + LIFE_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                return False
            if condition():
                return True
            time.sleep(0.05)
        raise AssertionError(f"I6: waited {LIFE_S:.0f} s for {what}:\n{self.words()}")

    def entry(self):
        with contextlib.suppress(StateError):
            return peek(self.storage / "journal.db").get(MODEL)
        return None

    def is_done(self, digest):
        """Whether the deployment of this content has ended."""
        entry = self.entry()
        return (
            entry is not None
            and entry.desired is not None
            and entry.desired.digest == digest
            and entry.outcome is not None
            and entry.state in {DeviceState.IDLE, DeviceState.STRANDED}
        )

    def cleared(self):
        """Whether nothing waits in the inbox."""
        inbox = self.storage / "inbox"
        return not any(inbox.glob("*/desired.json"))

    def ask(self):
        """The version that answers, if one does."""
        body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v2/models/{MODEL}/infer", json.dumps(body).encode(), method="POST"
        )
        with (
            contextlib.suppress(OSError, urllib.error.URLError),
            urllib.request.urlopen(request, timeout=5) as said,
        ):
            return json.load(said)["model_version"]
        return None

    def stop(self):
        self.process.terminate()
        return self.process.wait(60)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def _point(line):
    index, call, size, path = line.split(" ", 3)
    path, _, source = path.partition(" < ")
    return Point(int(index), call, int(size), path, source)


class Stage:
    """A device with release 1.0.0, and signed ones that may be flashed: 2.0.0, 3.0.0 which is bad, and 4.0.0."""

    def __init__(self, directory):
        self.directory = directory
        self.library = compile_points(directory)
        home = FleetHome(directory / "fleet")
        founding.found(home)
        self.repository = home.repository
        self.bundles = {
            version: directory / f"{version}.edgeml" for version in ("1.0.0", "2.0.0", "3.0.0", "4.0.0")
        }
        sample_bundle(self.bundles["1.0.0"])
        sample_bundle(self.bundles["2.0.0"], "2.0.0", seed=1)
        wrong(self.bundles["3.0.0"], "3.0.0")
        sample_bundle(self.bundles["4.0.0"], "4.0.0", seed=4)
        self.home = home
        self.publish(*self.bundles)
        self.installed = directory / "installed"
        self.flash(self.installed, "1.0.0")
        self.live(self.installed, directory / "first", "1.0.0")

    def publish(self, *versions):
        store = Store(database_url(self.home, load_config(self.home)))
        for version in versions:
            founding.publish(self.home, store, [self.bundles[version]], self.home.keys)
        store.close()

    def digest(self, version):
        return digest_of_file(self.bundles[version])

    def flash(self, storage, version):
        flash(self.bundles[version], storage, self.repository, time.time_ns() // 1_000_000)

    def live(self, storage, directory, version):
        """One life that nobody disturbs, until the deployment of a version has ended; return what answers."""
        life = Life(directory, storage)
        try:
            assert life.run_to(lambda: life.is_done(self.digest(version)), f"{version} to be done"), (
                life.words()
            )
            assert life.run_to(life.ask, "an answer"), life.words()
            answered = life.ask()
            if SOAK:
                assert life.run_to(life.cleared, "the inbox to be empty"), life.words()
            assert "Traceback" not in life.words(), life.words()
            return answered
        finally:
            life.kill()

    def copy(self, name, version=None):
        """A device of its own, with a version in its inbox."""
        storage = self.directory / name / "state"
        shutil.copytree(self.installed, storage, symlinks=True)
        if version is not None:
            self.flash(storage, version)
        return storage

    def count(self, name, version):
        """The points of an update that nobody disturbs."""
        storage = self.copy(name, version)
        life = Life(storage.parent / "counted", storage, self.library)
        try:
            assert life.run_to(lambda: life.is_done(self.digest(version)) and life.cleared(), "the end")
        finally:
            life.kill()
        return life.points

    def cut(self, storage, name, version, cut):
        """One life that is killed at a point; return it, dead. It may end before the point is reached."""
        life = Life(storage.parent / name, storage, self.library, cut)
        try:
            life.run_to(lambda: life.is_done(self.digest(version)) and life.cleared(), "the end")
        finally:
            life.kill()
        return life

    def survive(self, name, version, cuts, ends_on, outcome):
        """Kill one life after the other at these points, then let one live: what must hold, holds.

        Args:
            cuts: of each life that is killed.
            ends_on: the version that is current in the end.
            outcome: how the deployment ends.

        Returns:
            How many of the lives reached their point.
        """
        storage = self.copy(name, version)
        try:
            reached = 0
            for index, cut in enumerate(cuts):
                life = self.cut(storage, f"cut-{index}", version, cut)
                assert "Traceback" not in life.words(), life.words()
                reached += cut.at < len(cut.seen(life.points))
                one_active_model(storage, MODEL, {f"{MODEL}@1.0.0", f"{MODEL}@{version}"} - BAD)
            answered = self.live(storage, storage.parent / "after", version)
            slots = one_active_model(storage, MODEL, {f"{MODEL}@{ends_on}"})
            entry = at_rest(storage, MODEL)
            assert (answered, entry.outcome) == (ends_on, outcome), f"I4: {answered} answers, {entry}"
            assert slots.factory.release == f"{MODEL}@1.0.0"
            bounded(storage)
            check(storage)
        except AssertionError as error:
            raise AssertionError(f"killed at {cuts}: {error}") from error
        shutil.rmtree(storage.parent)
        return reached


def sample_of(points, most):
    """Points to try where time is short, evenly taken from the first of each place and every commit of the journal."""
    places, chosen = set(), []
    for point in points:
        if point.place not in places or (point.call == "sync" and point.path == "journal.db-wal"):
            chosen.append(point)
        places.add(point.place)
    return [chosen[index * len(chosen) // most] for index in range(most)]


def each(work, attempts):
    """Do this for every attempt, a few at a time: an agent mostly waits."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(work, attempts))


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return Stage(tmp_path_factory.mktemp("stage"))
