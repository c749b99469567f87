"""Memory that a supervisor and one worker share, for payloads that a socket would copy twice.

Decides how it is cut: two slots for requests, one for answers. The worker still counts a request when its answer is on
its way, so the next request goes into the other slot; by the request after that, the worker has answered the next one
and is done with the first. Pages take memory when they are first written, so a model with small tensors pays nothing.

The worker is not trusted: the size is sealed, so that it cannot cut off what the supervisor reads, and whoever reads an
answer copies before checking, because the worker may write at any moment. What a payload means is decided in `ipc`,
which payloads go this way, in `channel`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence
from typing import Final

from .ipc import Buffer

SLOT_BYTES: Final = 8 << 20
"""The longest payload that goes this way; a multiple of the size of a page, as large as those may be."""
_REQUEST_SLOTS: Final = 2
_ANSWER_SLOTS: Final = 1
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Area:
    """Slots for payloads of one direction."""

    def __init__(self, slots: Sequence[mmap.mmap]) -> None:
        self._slots = [memoryview(slot) for slot in slots]

    def write(self, request_id: int, parts: Sequence[Buffer]) -> None:
        """Lay a payload of at most SLOT_BYTES where the other end finds it by the request's id."""
        slot = self._slots[request_id % len(self._slots)]
        at = 0
        for part in parts:
            end = at + len(part)
            slot[at:end] = part
            at = end

    def read(self, request_id: int, length: int) -> memoryview:
        """Find a payload of at most SLOT_BYTES. It may change while it is read, if the other end is hostile."""
        return self._slots[request_id % len(self._slots)][:length]


class Areas:
    """Both directions, mapped into this process.

    Raises:
        OSError: The descriptor is not such memory, or cannot be mapped.
    """

    def __init__(self, descriptor: int) -> None:
        slots = [
            mmap.mmap(descriptor, SLOT_BYTES, offset=i * SLOT_BYTES)
            for i in range(_REQUEST_SLOTS + _ANSWER_SLOTS)
        ]
        self.requests = Area(slots[:_REQUEST_SLOTS])
        self.answers = Area(slots[_REQUEST_SLOTS:])


def create() -> int:
    """Make the memory; return a descriptor whose size nobody can change any more.

    Raises:
        OSError: The kernel or a sandbox refuses.
    """
    descriptor = os.memfd_create("edgeml-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, (_REQUEST_SLOTS + _ANSWER_SLOTS) * SLOT_BYTES)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
