"""When the device's certificate is renewed.

Decides the moment (two thirds of its life, looked at once a day), the pauses after failures, and what is told of it.
The work is done by a short-lived child (`renew`); the supervisor only starts it and looks whether it has ended.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import IO, Final

import msgspec

from .config import AgentConfig

JOB_BYTES_MAX: Final = 64 << 10
FIRST_LOOK_S: Final = 2.0
LOOK_EVERY_S: Final = 86_400.0
PAUSE_FIRST_S: Final = 60.0
PAUSE_MOST_S: Final = 6 * 3600.0
CHILD_S: Final = 120.0
RENEWED: Final = "certificate_renewed"
FAILED: Final = "certificate_not_renewed"


class RenewJob(msgspec.Struct, frozen=True):
    """What the child needs to know."""

    device: str
    url: str
    authority: str
    identity: str
    now_ms: int


class Renewed(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the child did. `renew_at_ms` is when it is to be run again."""

    renewed: bool = False
    renew_at_ms: int = 0
    error: str = ""
    hint: str = ""


class News(msgspec.Struct, frozen=True):
    """Something to report: an event's kind and detail."""

    kind: str
    detail: str


def next_look_s(answer: Renewed, failures: int, now_ms: int) -> float:
    """Say in how many seconds to look again.

    Args:
        answer: what the child said last.
        failures: how often in a row it failed, this time included.
        now_ms: wall time; it may jump, so it is never trusted for longer than a day.
    """
    if answer.error:
        return float(min(PAUSE_FIRST_S * 2 ** min(failures - 1, 20), PAUSE_MOST_S))
    return min(max((answer.renew_at_ms - now_ms) / 1000, PAUSE_FIRST_S), LOOK_EVERY_S)


class Renewal:
    """Keeps one device's certificate fresh. For one thread; `turn` never waits."""

    def __init__(self, config: AgentConfig, environment: Mapping[str, str]) -> None:
        self._config = config
        self._environment = dict(environment)
        self._child: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._started_s = 0.0
        self._due_s: float | None = None
        self._failures = 0

    def turn(self, now_ms: int, now_s: float) -> News | None:
        """Start the child when it is due; return news when it has ended with some.

        Args:
            now_ms: wall time.
            now_s: monotonic time.
        """
        if self._config.tls is None or self._config.blobs is None:
            return None
        if self._due_s is None:
            self._due_s = now_s + FIRST_LOOK_S
        if self._child is None:
            if now_s >= self._due_s:
                self._start(now_ms, now_s)
            return None
        if self._child.poll() is None:
            if now_s - self._started_s > CHILD_S:
                self._child.kill()
            return None
        answer = self._take_answer()
        self._failures = self._failures + 1 if answer.error else 0
        self._due_s = now_s + next_look_s(answer, self._failures, now_ms)
        if answer.error:
            hint = f" ({answer.hint})" if answer.hint else ""
            return News(FAILED, f"{answer.error}{hint}")
        return News(RENEWED, "") if answer.renewed else None

    def look_again(self) -> None:
        """Forget what was found of an identity that was replaced: look at the new one soon."""
        self._due_s = None
        self._failures = 0

    def stop(self) -> None:
        """End the child; the identity on disk is whole at every moment."""
        if self._child is not None:
            self._child.kill()
            self._take_answer()

    def _start(self, now_ms: int, now_s: float) -> None:
        tls, blobs = self._config.tls, self._config.blobs
        assert tls is not None
        assert blobs is not None
        job = RenewJob(
            device=self._config.device,
            url=blobs.url,
            authority=tls.authority,
            identity=tls.identity,
            now_ms=now_ms,
        )
        self._said = _memory("said")
        with _memory("asked") as asked:
            asked.write(msgspec.json.encode(job))
            asked.seek(0)
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", f"{__package__}.renew"],
                stdin=asked,
                stdout=self._said,
                env=self._environment,
            )
        self._started_s = now_s

    def _take_answer(self) -> Renewed:
        assert self._child is not None
        assert self._said is not None
        code = self._child.wait()
        self._child = None
        with self._said as said:
            said.seek(0)
            data = said.read(JOB_BYTES_MAX)
        self._said = None
        try:
            return msgspec.json.decode(data, type=Renewed)
        except msgspec.MsgspecError:
            return Renewed(error=f"the renewing child ended with {code}")


def _memory(name: str) -> IO[bytes]:
    """A file that is nowhere but in memory: what is asked and said is short, and partly secret."""
    return os.fdopen(os.memfd_create(name), "w+b")
