"""Moves frames over one end of a stream socket.

Decides how few system calls and copies that takes, which payloads go through shared memory, for how long it looks for
an answer before it sleeps, that memory is given only to bytes which have come, and when the other end counts as gone or
stuck. What the bytes mean is decided in `ipc`.

Sleeping and being woken takes longer than a small model: an idle processor has to come back, with cold caches, in a
virtual machine by way of the host. So a channel whose last frame came soon looks for the next one for a tenth of a
millisecond, and yields between two looks, because the other end may have been woken on the same processor. On a busy
machine that gives the processor away for milliseconds; then it sleeps as before, for thousands of frames.
"""

from __future__ import annotations

import math
import os
import socket
import struct
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from edgeml.errors import ManifestError

from .area import SLOT_BYTES, Area
from .ipc import HEADER_BYTES, SHAREABLE, Buffer, Kind, Place, decode_header, encode_header

BUFFER_BYTES: Final = 64 << 10
"""What a channel receives into at first."""
JOINED_BYTES_MAX: Final = 32 << 10
"""Up to it, copying the parts of a frame into one costs less than handing them to the kernel one by one."""
SHARED_BYTES_MIN: Final = 64 << 10
"""From it on, copying through shared memory costs less than through the kernel."""
PATIENCE_NS: Final = 100_000
"""For how long to look for a frame at most."""
SOON_NS: Final = 300_000
"""Whoever slept longer than this for the last frame sleeps at once for the next one."""
TAKEN_AWAY_NS: Final = 1_000_000
"""Whoever looked for this long was without a processor meanwhile."""
PAUSE_MAX: Final = 4095
"""Frames that are slept for, at most, before looking is tried again."""
NO_TIMEOUT_S: Final = 0.0
_TIMEVAL: Final = struct.Struct("@ll")


class Frame(msgspec.Struct, frozen=True):
    """One received frame. `payload` is valid until the channel receives the next one."""

    kind: Kind
    request_id: int
    payload: memoryview


class Channel:
    """Frames over one end of a stream socket, which it owns. For one thread at a time.

    A frame is received into a buffer that is used again for the next one.
    """

    def __init__(
        self, stream: socket.socket, outgoing: Area | None = None, incoming: Area | None = None
    ) -> None:
        """Take a socket, and the memory that is shared with the other end, if any is."""
        self._socket = stream
        self._outgoing = outgoing
        self._incoming = incoming
        self._patience = Patience(len(os.sched_getaffinity(0)))
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._consumed = 0
        self._timeout_s = 0.0
        stream.settimeout(None)

    @property
    def descriptor(self) -> int:
        """Of the socket, for whoever waits for several; a whole frame may lie in the buffer already."""
        return self._socket.fileno()

    def send(
        self, kind: Kind, request_id: int, parts: Sequence[Buffer], timeout_s: float = NO_TIMEOUT_S
    ) -> None:
        """Send one frame.

        Raises:
            OSError: The peer is gone.
            TimeoutError: It does not read.
            ValueError: The frame would be too long.
        """
        length = sum(map(len, parts))
        place = Place.BEHIND
        if SHARED_BYTES_MIN <= length <= SLOT_BYTES and self._outgoing is not None and kind in SHAREABLE:
            self._outgoing.write(request_id, parts)
            place, parts = Place.SHARED, ()
        header = encode_header(kind, request_id, length, place)
        if timeout_s != self._timeout_s:
            self._limit(timeout_s)
        try:
            if length <= JOINED_BYTES_MAX or place is Place.SHARED:
                self._send_rest(memoryview(b"".join((header, *parts))), 0)
                return
            sent = self._socket.sendmsg((header, *parts))
            for part in (header, *parts):
                if sent < len(part):
                    self._send_rest(memoryview(part), sent)
                sent = max(sent - len(part), 0)
        except BlockingIOError as error:
            raise TimeoutError("the other end does not read") from error

    def receive(self, timeout_s: float = NO_TIMEOUT_S) -> Frame:
        """Wait for one frame.

        Raises:
            EOFError: The peer closed its end, perhaps by dying.
            OSError: The connection failed.
            TimeoutError: Nothing came, or too slowly.
            ManifestError: What came is no frame.
        """
        if timeout_s != self._timeout_s:
            self._limit(timeout_s)
        if self._filled != self._consumed:
            self._buffer[: self._filled - self._consumed] = self._buffer[self._consumed : self._filled]
        self._filled -= self._consumed
        self._consumed = 0
        try:
            if not self._filled:
                self._filled = self._receive_first()
            if self._filled < HEADER_BYTES:
                self._receive_until(HEADER_BYTES, timeout_s)
            kind, place, request_id, length = decode_header(self._view)
            if place is Place.SHARED:
                self._consumed = HEADER_BYTES
                return Frame(kind, request_id, self._shared(request_id, length))
            end = HEADER_BYTES + length
            if self._filled < end:
                self._receive_until(end, timeout_s)
        except BlockingIOError as error:
            raise TimeoutError("the other end does not answer") from error
        self._consumed = end
        return Frame(kind, request_id, self._view[HEADER_BYTES:end])

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _limit(self, timeout_s: float) -> None:
        """Let the kernel time out: Python's own timeouts cost a system call more on every send and receive."""
        whole_s = int(timeout_s)
        # To the kernel, nothing at all means for ever.
        value = _TIMEVAL.pack(whole_s, max(int((timeout_s - whole_s) * 1e6), int(0 < timeout_s < 1)))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
        self._timeout_s = timeout_s

    def _send_rest(self, part: memoryview, sent: int) -> None:
        while sent < len(part):
            sent += self._socket.send(part[sent:] if sent else part)

    def _receive_first(self) -> int:
        """Receive what comes first: look for it, if that has paid of late, then sleep until it is there."""
        started_ns = time.perf_counter_ns()
        if not self._patience.looks():
            received = self._socket.recv_into(self._buffer)
            self._patience.slept(time.perf_counter_ns() - started_ns)
            return received
        received = -1
        while received < 0 and time.perf_counter_ns() - started_ns < PATIENCE_NS:
            try:
                received = self._socket.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                os.sched_yield()
        self._patience.looked(time.perf_counter_ns() - started_ns)
        return received if received >= 0 else self._socket.recv_into(self._buffer)

    def _shared(self, request_id: int, length: int) -> memoryview:
        if self._incoming is None or length > SLOT_BYTES:
            raise ManifestError(f"a frame of {length} bytes in memory that is not shared")
        return self._incoming.read(request_id, length)

    def _receive_until(self, wanted: int, timeout_s: float) -> None:
        """Receive until `wanted` bytes are there. The buffer grows with what really arrives."""
        deadline_s = time.monotonic() + (timeout_s or math.inf)
        while self._filled < wanted:
            if self._filled == len(self._buffer):
                larger = bytearray(min(wanted, 4 * len(self._buffer)))
                larger[: self._filled] = self._buffer
                self._buffer, self._view = larger, memoryview(larger)
            received = self._socket.recv_into(self._view[self._filled :])
            if not received:
                raise EOFError("the other end closed")
            self._filled += received
            if time.monotonic() > deadline_s:
                raise TimeoutError("the other end sends too slowly")


class Patience:
    """Whether to look for a frame before sleeping.

    Looking pays where frames come within PATIENCE_NS and a processor is free for the other end. Each time it was in
    vain, twice as many frames are slept for before it is tried again; each time it was not, half as many.
    """

    def __init__(self, processors: int) -> None:
        self._possible = processors > 1
        self._soon = False
        self._penalty = 0
        self._pause = 0

    def looks(self) -> bool:
        """Decide for the next frame."""
        if self._pause:
            self._pause -= 1
            return False
        return self._soon and self._possible

    def slept(self, duration_ns: int) -> None:
        """Hear for how long the last frame was slept for."""
        self._soon = duration_ns < SOON_NS

    def looked(self, duration_ns: int) -> None:
        """Hear for how long the last frame was looked for; longer than it should be if another process had its turn."""
        if duration_ns < PATIENCE_NS:
            self._penalty //= 2
            return
        self._penalty = PAUSE_MAX if duration_ns > TAKEN_AWAY_NS else min(2 * self._penalty + 1, PAUSE_MAX)
        self._pause = self._penalty
