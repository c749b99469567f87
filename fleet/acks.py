"""What the controller owes devices an answer to: rows that are stored, and batches that it never will store.

Decides that only the highest row of a stream and the last refused batch are said, once each, and that a device which
did not hear it asks again by sending again. What is refused is decided in `ingest`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgeml import topics, twin
from edgeml.ids import DeviceId, Digest, digest_of
from edgeml.telemetry import Stream
from edgeml.topics import Leaf
from edgeml.transport import Message

from .telemetry_store import StreamKey

Publish = Callable[[Leaf, DeviceId, bytes], bool]


class Acks:
    """Acknowledgements that wait to be said."""

    def __init__(self) -> None:
        self._stored: dict[StreamKey, int] = {}
        self._refused: dict[tuple[DeviceId, Stream], Digest] = {}

    def stored(self, highest: Mapping[StreamKey, int]) -> None:
        """Owe an answer for rows that are stored up to these."""
        self._stored.update(highest)

    def refused(self, message: Message) -> None:
        """Owe an answer for a batch that is refused for good; other messages are not answered."""
        address = topics.parse(message.topic)
        if address is not None and address.stream is not None:
            self._refused[(address.device, address.stream)] = digest_of(message.payload)

    def say(self, publish: Publish) -> None:
        """Say what is owed, as far as the link takes it."""
        for key, seq in list(self._stored.items()):
            ack = twin.Ack(boot=key.boot, stream=key.stream.value, seq=seq)
            if not publish(Leaf.ACK, key.device, twin.encode(ack)):
                return
            del self._stored[key]
        for (device, stream), digest in list(self._refused.items()):
            ack = twin.Ack(boot="", stream=stream.value, seq=-1, refused=digest)
            if not publish(Leaf.ACK, device, twin.encode(ack)):
                return
            del self._refused[(device, stream)]

    def clear(self) -> None:
        """Forget everything: devices send again on a new link."""
        self._stored.clear()
        self._refused.clear()
