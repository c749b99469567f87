"""Control groups: memory and processor time that the kernel itself keeps workers within.

Decides whether the agent was given a group of its own (cgroup v2, delegated), how groups lie below it, and that an
agent without one, or with one that refuses, goes on without: `usage` and `governor` then watch alone. Nothing is ever
asked of groups that are not below the agent's own.

    <own group>/supervisor            the agent, its forkserver and its fetches: no limits
    <own group>/models                memory.max and cpu.max of all workers together
    <own group>/models/<model>.<pid>  one worker: memory.max

Only the outermost groups hold processes, as the kernel demands. Source:
https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeml.ids import ModelName

logger = logging.getLogger(__name__)

PERIOD_US: Final = 20_000
"""With the kernel's 100 ms a worker that used its share stands still for up to 75 ms."""
QUOTA_US_MIN: Final = 1_000
"""The kernel takes no less."""
SUPERVISOR: Final = "supervisor"
MODELS: Final = "models"
_WANTED: Final = ("memory", "cpu")
_DELEGATED: Final = ("trusted.delegate", "user.delegate")


@dataclass(frozen=True, slots=True)
class Delegation:
    """A group in which the agent may make groups."""

    base: Path
    controllers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Undelegated:
    """There is none; `reason` says why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Gone:
    """A worker's group whose process has ended."""

    model: ModelName
    oom_kills: int
    """Processes that the kernel killed because the group's memory was used up."""
    peak_bytes: int | None
    """Highest memory of the group; None where the kernel does not keep it."""


def find(root: Path = Path("/"), wanted: tuple[str, ...] = _WANTED) -> Delegation | Undelegated:
    """Look for the agent's own group. `root` is where /proc and /sys are, so that recorded trees can be read."""
    mount = _mount(root)
    if mount is None:
        return Undelegated("cgroup v2 is not mounted, or only for reading")
    own = next((line[3:] for line in _lines(root / "proc/self/cgroup") if line.startswith("0::")), None)
    if own is None or own.startswith("/.."):
        return Undelegated("the agent's own group is not in sight")
    base = mount / own.strip("/")
    if base.name == SUPERVISOR and (base.parent / MODELS).is_dir():
        # The agent's last life made these.
        base = base.parent
    if not (base / "cgroup.type").exists():
        return Undelegated("the agent is in the root group")
    found = tuple(one for one in wanted if one in _words(base / "cgroup.controllers"))
    if len(found) < len(wanted):
        missing = ", ".join(one for one in wanted if one not in found)
        return Undelegated(f"the group {own} has no controller for {missing}")
    for name in (".", "cgroup.procs", "cgroup.subtree_control"):
        if not os.access(base / name, os.W_OK):
            return Undelegated(f"the group {own} belongs to someone else")
    # Another user may write there only because systemd gave the group away; root always may.
    if os.geteuid() == 0 and (root / "run/systemd/system").exists() and not _marked(base):
        return Undelegated(f"systemd keeps the group {own} to itself: the unit needs Delegate=yes")
    return Delegation(base, found)


class Groups:
    """The groups of one agent. Not thread-safe, but `place` may be called from another thread."""

    def __init__(self, delegation: Delegation) -> None:
        """Take this process into a group of its own, so that others can be made beside it.

        Raises:
            OSError: The kernel refuses, or the group holds processes that are not the agent's. All is as before.
        """
        self._base = delegation.base
        self._models = self._base / MODELS
        self._controllers = delegation.controllers
        supervisor = self._base / SUPERVISOR
        supervisor.mkdir(exist_ok=True)
        try:
            _write(supervisor / "cgroup.procs", str(os.getpid()))
            self._models.mkdir(exist_ok=True)
            enable = " ".join(f"+{one}" for one in self._controllers)
            _write(self._base / "cgroup.subtree_control", enable)
            _write(self._models / "cgroup.subtree_control", enable)
        except OSError:
            with suppress(OSError):
                _write(self._base / "cgroup.procs", str(os.getpid()))
                self._models.rmdir()
                supervisor.rmdir()
            raise
        self.sweep()

    def limit(self, memory_bytes: int | None, cpu_cores: float | None) -> None:
        """Set what all workers together may use; None is no limit.

        Raises:
            OSError: The kernel refuses.
        """
        if "memory" in self._controllers:
            _write(self._models / "memory.max", _or_max(memory_bytes))
            # What does not fit is not swapped to a card instead.
            if (self._models / "memory.swap.max").exists():
                _write(self._models / "memory.swap.max", "max" if memory_bytes is None else "0")
        if "cpu" in self._controllers:
            quota = None if cpu_cores is None else max(round(cpu_cores * PERIOD_US), QUOTA_US_MIN)
            _write(self._models / "cpu.max", f"{_or_max(quota)} {PERIOD_US}")

    def place(self, pid: int, model: ModelName, memory_bytes: int | None) -> None:
        """Put a worker into a group of its own; best before it loads, for memory stays where it was taken.

        Raises:
            OSError: The kernel refuses; the worker stays where it was.
        """
        leaf = self._leaf(model, pid)
        leaf.mkdir()
        try:
            if "memory" in self._controllers:
                _write(leaf / "memory.max", _or_max(memory_bytes))
            _write(leaf / "cgroup.procs", str(pid))
        except OSError:
            with suppress(OSError):
                leaf.rmdir()
            raise

    def resize(self, pid: int, model: ModelName, memory_bytes: int | None) -> None:
        """Set anew what one worker may use.

        Raises:
            OSError: The kernel refuses, or the worker is gone.
        """
        if "memory" in self._controllers:
            _write(self._leaf(model, pid) / "memory.max", _or_max(memory_bytes))

    def sweep(self) -> tuple[Gone, ...]:
        """Remove the groups of workers that have ended, and say how they ended."""
        gone = []
        for leaf in self._leaves():
            if _number(leaf / "cgroup.events", "populated") != 0:
                continue
            model = ModelName(leaf.name.rpartition(".")[0])
            kills = _number(leaf / "memory.events", "oom_kill") or 0
            peak = next(iter(_words(leaf / "memory.peak")), "")
            try:
                leaf.rmdir()
            except OSError as error:
                logger.debug("the group %s is not gone yet: %s", leaf.name, error.strerror)
                continue
            gone.append(Gone(model, kills, int(peak) if peak.isdecimal() else None))
        return tuple(gone)

    def throttled_s(self) -> float:
        """How long workers have been kept from the processor in all."""
        return (_number(self._models / "cpu.stat", "throttled_usec") or 0) / 1e6

    def _leaf(self, model: ModelName, pid: int) -> Path:
        return self._models / f"{model}.{pid}"

    def _leaves(self) -> Iterator[Path]:
        yield from sorted(path for path in self._models.iterdir() if path.is_dir())


def _mount(root: Path) -> Path | None:
    """Find where cgroup v2 is mounted: /sys/fs/cgroup, or a folder in it beside version 1."""
    for line in _lines(root / "proc/self/mountinfo"):
        place, _, kind = line.partition(" - ")
        fields = place.split()
        if kind.startswith("cgroup2 ") and "ro" not in fields[5].split(","):
            point = fields[4].encode().decode("unicode_escape")
            return root / point.lstrip("/")
    return None


def _marked(base: Path) -> bool:
    """Tell whether systemd has marked a group as given away."""
    for name in _DELEGATED:
        with suppress(OSError):
            if os.getxattr(base, name) == b"1":
                return True
    return False


def _or_max(value: int | None) -> str:
    return "max" if value is None else str(max(value, 0))


def _number(path: Path, name: str) -> int | None:
    """Read one line of a file like `oom_kill 3`."""
    for line in _lines(path):
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return None


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _lines(path: Path) -> list[str]:
    """Read a kernel file; empty if it is missing or forbidden."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _write(path: Path, text: str) -> None:
    # One write: the kernel takes each as a whole request.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
