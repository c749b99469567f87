"""Errands: work that a process of its own does, with a request in a file and a report that comes back in one.

Decides the names of the two files, what such a process may take, and what is believed of it: nothing before it decodes
as the report that was expected. What an errand reads and writes besides is the business of the two that agree on it.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

import msgspec

from edgeml.child import ChildLimits, module_command, one_line, run_child
from edgeml.errors import BackendError
from edgeml.lifeline import die_with_parent

REPORT_BYTES_MAX: Final = 4 << 20
FILE_BYTES_MAX: Final = 2 << 30
"""The longest file that such a process may write."""
_REQUEST: Final = "request.json"
_REPORT: Final = "report.json"
_GRACE_S: Final = 5


class _Report(Protocol):
    @property
    def refusal(self) -> str:
        """Why there is no result; empty if there is one."""
        ...

    @property
    def hint(self) -> str:
        """What to do about it."""
        ...


class _Request(Protocol):
    @property
    def timeout_s(self) -> float:
        """After so long nobody waits for the report."""
        ...


ReportT = TypeVar("ReportT", bound=_Report)
RequestT = TypeVar("RequestT", bound=_Request)


@dataclass(frozen=True, slots=True)
class Errand:
    """A module of ours that is run as a process, what it did in the past tense, for messages, and what it may take."""

    module: str
    deed: str
    limits: ChildLimits

    def run(self, folder: Path, request: msgspec.Struct, kind: type[ReportT]) -> ReportT:
        """Have a request carried out in a folder, in which whatever else it needs lies.

        Raises:
            BackendError: It was refused, or the process died, hung or wrote garbage.
            BudgetError: The process took too much memory.
        """
        (folder / _REQUEST).write_bytes(msgspec.json.encode(request))
        command = [*module_command(self.module, folder), str(folder), str(os.getpid())]
        run_child(command, folder, self.limits, self.deed)
        try:
            with (folder / _REPORT).open("rb") as file:
                report = msgspec.json.decode(file.read(REPORT_BYTES_MAX), type=kind)
        except (OSError, UnicodeDecodeError, msgspec.MsgspecError, RecursionError) as error:
            raise self.garbage() from error
        if report.refusal:
            raise BackendError(one_line(report.refusal), hint=one_line(report.hint))
        return report

    def garbage(self) -> BackendError:
        """The error for a process that left what cannot be read."""
        return BackendError(
            f"the process that {self.deed} left no readable result", hint="run `edgeml doctor`"
        )


def carry_out(kind: type[RequestT], work: Callable[[Path, RequestT], msgspec.Struct]) -> None:
    """Be the process: read the request, do the work, write the report that it gives. `work` raises nothing."""
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    die_with_parent(parent, signal.SIGKILL)
    request = msgspec.json.decode((folder / _REQUEST).read_bytes(), type=kind)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, FILE_BYTES_MAX))
    # Should the parent be killed where there is no lifeline, nobody else ends us.
    signal.alarm(math.ceil(request.timeout_s) + _GRACE_S)
    (folder / _REPORT).write_bytes(msgspec.json.encode(work(folder, request)))
