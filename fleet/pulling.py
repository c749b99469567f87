"""Answers pulls out of the repository's files.

Decides how much is read from the disk in one step of the controller, so that telemetry and rollouts do not wait behind
it, what a file that is not there is answered with, and that one which cannot be read is not. Who is next is decided in `pulls`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgeml.clock import Clock
from edgeml.ids import ChannelId, DeviceId
from edgeml.pull import Answer, Kind, Request, Status, encode_answer

from .config import PullSettings
from .ingest import PullHeard
from .pulls import Pull, Pulls, Rates
from .refusals import Refusals

STEP_BYTES_MAX: Final = 512 << 10
STEP_REQUESTS_MAX: Final = 64
"""What one step reads at most; the rest waits for the next, which follows at once."""
Say = Callable[[DeviceId, ChannelId, bytes], bool]


class Pulling:
    """Requests from devices that are known, and their answers. For one thread."""

    def __init__(
        self, repository: Path, settings: PullSettings, clock: Clock, refusals: Refusals, say: Say
    ) -> None:
        self._metadata = repository / "metadata"
        self._blobs = repository / "blobs" / "sha256"
        self._clock = clock
        self._refusals = refusals
        self._say = say
        self._pulls = self._queue(settings)
        self.sent_bytes = 0
        """Bytes of files that were sent since the start."""

    def hear(self, heard: PullHeard) -> None:
        """Queue a request, or count why not."""
        now_s = self._clock.monotonic_s()
        if self._pulls is None:
            answer = Answer(heard.request.id, Status.OFF)
            self._say(heard.device, heard.request.channel, encode_answer(answer))
            why = "pulls are off"
        else:
            why = self._pulls.ask(heard.device, heard.request, now_s)
        if why:
            self._refusals.add("pull", heard.device, why, now_s)

    def step(self) -> None:
        """Answer what may be answered now, as far as one step goes."""
        if self._pulls is None:
            return
        read_bytes = 0
        for _ in range(STEP_REQUESTS_MAX):
            now_s = self._clock.monotonic_s()
            if read_bytes >= STEP_BYTES_MAX or (pull := self._pulls.take(now_s)) is None:
                return
            sent = self._send(pull, now_s)
            self._pulls.settle(pull, sent, now_s)
            read_bytes += sent
            self.sent_bytes += sent

    def wait_s(self, most_s: float) -> float:
        """How long the controller may wait for messages, at most `most_s`."""
        if self._pulls is None:
            return most_s
        wait_s = self._pulls.wait_s(self._clock.monotonic_s())
        return most_s if wait_s is None else min(most_s, wait_s)

    def clear(self) -> None:
        """Forget what waits."""
        if self._pulls is not None:
            self._pulls.clear()

    def _queue(self, settings: PullSettings) -> Pulls | None:
        if not settings.bytes_per_s:
            return None
        rates = Rates(settings.bytes_per_s, settings.device_bytes_per_s)
        return Pulls(rates, self._clock.monotonic_s())

    def _send(self, pull: Pull, now_s: float) -> int:
        """Answer; return how many bytes of the file that took."""
        try:
            answer = self._answer(pull.request)
        except OSError as error:
            # Not this controller's end, and no answer either: the device asks again, and the operator may help meanwhile.
            self._refusals.add(
                "pull", pull.device, f"cannot read {pull.request.name}: {error.strerror}", now_s
            )
            return 0
        if not self._say(pull.device, pull.request.channel, encode_answer(answer)):
            self._refusals.add("pull", pull.device, "the link took no more; it will ask again", now_s)
        return len(answer.piece)

    def _answer(self, request: Request) -> Answer:
        folder = self._metadata if request.kind is Kind.METADATA else self._blobs
        try:
            with (folder / request.name).open("rb") as file:
                total_bytes = os.fstat(file.fileno()).st_size
                piece = b""
                # Devices name any number, and file systems refuse to stand at the larger ones.
                if request.offset < total_bytes:
                    file.seek(request.offset)
                    piece = file.read(request.length)
        except FileNotFoundError:
            return Answer(request.id, Status.MISSING, request.offset)
        return Answer(request.id, Status.PIECE, request.offset, total_bytes, piece)
