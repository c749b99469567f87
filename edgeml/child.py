"""Runs a command in a child process that may take so much and no more.

Decides the limits, the scrubbed environment, and how a child's death becomes an error: a signal, a hang, too much
memory, a failure. What runs in the child and what it leaves behind is the caller's business.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import BackendError, BudgetError

STDERR_BYTES_MAX: Final = 4096
MESSAGE_MAX: Final = 300
PIPE_BYTES: Final = 1 << 16
POLL_S: Final = 0.02
_KEPT_VARIABLES: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR")
_LIBRARY_FOLDERS: Final = {"site-packages", "dist-packages"}


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """What the child may take. `memory_bytes` is watched where /proc exists, and checked against the peak."""

    timeout_s: float = 120.0
    threads: int = 1
    memory_bytes: int | None = None


_RUN_MODULE: Final = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module(sys.argv.pop(1), None, '__main__', True)"


def module_command(module: str, folder: Path, python: Path | None = None) -> list[str]:
    """Return the command that runs a module of ours, on this interpreter or on another one.

    Another interpreter has libraries of its own, and perhaps an edgeml of another version or none: it is shown our rooms
    by links in `folder`, and nothing else of what this interpreter has. The module may import only what that one has.
    """
    if python is None:
        return [sys.executable, "-P", "-m", module]
    rooms = folder / "rooms"
    rooms.mkdir()
    root = Path(__file__).absolute().parents[1]
    for name in {"edgeml", module.partition(".")[0]}:
        (rooms / name).symlink_to(root / name, target_is_directory=True)
    return [str(python), "-P", "-c", _RUN_MODULE, str(rooms), module]


def run_child(command: Sequence[str], folder: Path, limits: ChildLimits, deed: str = "ran the model") -> None:
    """Run a command to its end inside `limits`, in a scrubbed environment, with nothing to read and nobody to disturb.

    `deed` says in the past tense what it was for; messages use it.

    Raises:
        BackendError: It hung, was killed by a signal, or left with another code than 0.
        BudgetError: It took more than `limits.memory_bytes`.
    """
    # A session of its own: a Ctrl-C is ours to handle, and the child's own children die with it.
    with subprocess.Popen(
        [*command], cwd=folder, env=_environment(limits), start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        try:
            said = _watch(child, limits, deed)
        finally:
            kill_group(child)
    if child.returncode < 0:
        raise BackendError(
            f"the process that {deed} died of {_signal_name(-child.returncode)}",
            hint="the model crashes this runtime: export it again, or use another version of the runtime",
        )
    if child.returncode:
        last = said.decode("utf-8", "replace").strip().splitlines()
        raise BackendError(
            f"the process that {deed} failed with code {child.returncode}: "
            f"{one_line(last[-1]) if last else 'it said nothing'}",
            hint="run `edgeml doctor`",
        )


def kill_group(child: subprocess.Popen[bytes]) -> None:
    """End a child that leads a group of its own, with that group, and take its exit status.

    Not by `child.wait()`: an interrupt that came just after Popen had taken its lock has left it locked, and whoever
    asks for it again waits for ever.
    """
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    if child.returncode is None:
        status = signal.SIGKILL.value
        with suppress(
            ChildProcessError
        ):  # Its status was taken, and the interrupt came before it was written down.
            status = os.waitpid(child.pid, 0)[1]
        child.returncode = os.waitstatus_to_exitcode(status)


def _watch(child: subprocess.Popen[bytes], limits: ChildLimits, deed: str) -> bytes:
    """Wait for the child's end, read what it says so that it never waits for a reader, and return the end of that."""
    assert child.stderr is not None
    pipe = child.stderr.fileno()
    kept = bytearray()
    open_pipes = [pipe]
    deadline = time.monotonic() + limits.timeout_s
    while True:
        ended = child.poll() is not None
        readable, _, _ = select.select(open_pipes, [], [], 0 if ended else POLL_S)
        if readable:
            piece = os.read(pipe, PIPE_BYTES)
            kept += piece
            del kept[:-STDERR_BYTES_MAX]
            if not piece:
                open_pipes.clear()
        if ended:
            # One look was enough: a pipe holds no more, and a process that left the session may keep it open for ever.
            return bytes(kept)
        if time.monotonic() > deadline:
            raise BackendError(
                f"the process that {deed} did not finish within {limits.timeout_s:g} s",
                hint="give fewer samples or more time; a model that hangs here hangs on a device too",
            )
        check_memory(status_bytes(str(child.pid), "VmRSS"), limits)


def check_memory(observed: int | None, limits: ChildLimits) -> None:
    """Refuse a child that took more than it may.

    Raises:
        BudgetError: `observed` bytes are above the limit.
    """
    if limits.memory_bytes is not None and observed is not None and observed > limits.memory_bytes:
        raise BudgetError(
            f"the model takes more memory than allowed: {observed} bytes, limit {limits.memory_bytes} bytes",
            budget=limits.memory_bytes, observed=observed, unit="bytes",
            hint="use a smaller model, or raise the limit",
        )  # fmt: skip


def _environment(limits: ChildLimits) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    folders = [str(Path(one).absolute()) for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    root = Path(__file__).absolute().parents[1]
    if root.name not in _LIBRARY_FOLDERS and str(root) not in folders:
        folders.append(str(root))
    return {**kept, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": str(limits.threads)}


def one_line(text: str) -> str:
    """Make foreign text fit for a message: one line of printable characters, not too long."""
    flat = " ".join(text.split())
    return "".join(char for char in flat if char.isprintable())[:MESSAGE_MAX]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def status_bytes(process: str, field: str) -> int | None:
    """Read a size of a process (`self` or its id) from /proc; None where there is none."""
    with suppress(OSError), Path(f"/proc/{process}/status").open(encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None
