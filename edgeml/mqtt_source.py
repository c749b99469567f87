"""A repository behind the broker: for devices whose network lets only MQTT out.

Decides how long to wait for a link and for answers, hears only its own channel, counts what comes besides the files, and
gives up a broker that sends more of that than of them. What is asked for when is decided in `edgeml.pull_window`.
Nothing that comes is trusted: `edgeml.trust` and `edgeml.download` check it as if it came by HTTP.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from . import topics
from .errors import LinkDownError, ManifestError, PermanentTransferError, StalledError, TransferError
from .ids import ChannelId, DeviceId, Digest, TenantId, is_digest
from .pull import Kind, Request, decode_answer, encode_request
from .pull_window import PullWindow
from .source import Stream
from .topics import RULES, Leaf
from .transport import Arrival, LinkDown, LinkUp, Message, Transport

LINK_TIMEOUT_S: Final = 20.0
SILENCE_MAX_S: Final = 60.0
"""Without a new piece for so long, the fleet is as good as gone."""
INBOX_MAX: Final = 64
"""Arrivals that may wait: as many as can be answers to what is under way, several times."""
FRAME_BYTES: Final = 64
"""What a message costs on its way besides topic and payload: heads of MQTT, TCP and IP."""
NONSENSE_BYTES_MAX: Final = 1 << 20
"""So much more may come that answers nothing than what does."""
_LOOK_EVERY_S: Final = 1.0


class Account(Protocol):
    """Who pays for what comes besides the files, whose bytes the reader counts."""

    def count(self, count: int) -> None:
        """Count bytes; never waits."""
        ...

    @property
    def left_bytes(self) -> int | None:
        """What may still be taken; None without a limit."""
        ...


@dataclass(frozen=True, slots=True)
class Mailbox:
    """Who pulls, and where it hears the answers."""

    tenant: TenantId
    device: DeviceId
    channel: ChannelId

    @property
    def filter(self) -> str:
        """What to subscribe to."""
        return topics.device_topic(self.tenant, self.device, Leaf.DATA, self.channel)


def new_mailbox(tenant: TenantId, device: DeviceId) -> Mailbox:
    """Name a channel that no other process of the device hears: two that fetch at once must not pay for each other."""
    return Mailbox(tenant, device, ChannelId(secrets.token_hex(6)))


class MqttSource:
    """A repository whose pieces come through a broker. For one thread; connects when first asked."""

    def __init__(
        self,
        transport: Transport,
        mailbox: Mailbox,
        account: Account,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wrap a transport that is subscribed to the mailbox' filter and not started."""
        self._transport = transport
        self._mailbox = mailbox
        self._account = account
        self._window: PullWindow | None = None
        self._useful_bytes = 0
        self._useless_bytes = 0
        self._monotonic_s = monotonic_s
        self._next_id = secrets.randbits(48)
        self._is_started = False
        self._is_up = False
        self._reason = ""
        self.asked_again = 0
        """How often a piece was asked for again."""
        self.ignored = 0
        """Messages that answered nothing: they came twice, late, or made no sense."""

    def metadata(self, name: str) -> Iterator[bytes]:
        """Yield a metadata file.

        Raises:
            PermanentTransferError: There is none of that name.
            LinkDownError: The broker cannot be reached.
            StalledError: The fleet does not answer.
            TransferError: It answers something else.
        """
        yield from self._pieces(Kind.METADATA, name, 0)

    @contextmanager
    def blob(self, digest: Digest, offset: int) -> Iterator[Stream]:
        """Open a blob from `offset` on; errors as `metadata`, while the pieces are read."""
        if not is_digest(digest):
            raise PermanentTransferError(f"{digest!r} is no digest")
        yield Stream(offset, self._pieces(Kind.BLOB, digest, offset))

    def close(self) -> None:
        """Disconnect."""
        if not self._is_started:
            return
        self._transport.close()
        self._abandon()
        while (arrival := self._transport.receive(0.0)) is not None:
            if isinstance(arrival, Message):
                self._account.count(_cost(arrival))

    def _pieces(self, kind: Kind, name: str, offset: int) -> Iterator[bytes]:
        self._wait_for_link()
        self._abandon()
        window = self._window = PullWindow(offset, self._next_id)
        while not window.finished:
            piece = self._next_piece(window, kind, name)
            if piece:
                yield piece

    def _next_piece(self, window: PullWindow, kind: Kind, name: str) -> bytes:
        """Return the next bytes; none if the file has ended."""
        # The reader may have paused for long: it is the peer's silence that counts, not the reader's.
        heard_s = self._monotonic_s()
        wait_s = 0.0
        while (piece := window.take()) is None and not window.finished:
            arrival = self._transport.receive(wait_s)
            now_s = self._monotonic_s()
            if arrival is not None:
                wait_s = 0.0
                if self._heard(arrival, window, now_s):
                    heard_s = now_s
                    continue
            else:
                # Only when nothing waits any more: what has come need not be asked for again.
                self._ask(window, kind, name, now_s)
                # Without a link nothing is asked for, however long it is due.
                wait_s = min(_LOOK_EVERY_S, window.wait_s(now_s)) if self._is_up else _LOOK_EVERY_S
            if now_s - heard_s > SILENCE_MAX_S:
                raise self._silent(name)
        return piece or b""

    def _heard(self, arrival: Arrival, window: PullWindow, now_s: float) -> bool:
        """Take an arrival in; True if it brought something on."""
        match arrival:
            case LinkUp():
                self._is_up = True
                window.ask_again(now_s)
            case LinkDown(reason):
                self._is_up, self._reason = False, reason
            case Message():
                return self._take_in(arrival, window, now_s)
        return False

    def _take_in(self, message: Message, window: PullWindow, now_s: float) -> bool:
        useful_bytes = 0
        try:
            if message.topic == self._mailbox.filter:
                answer = decode_answer(message.payload)
                if window.answered(answer, now_s):
                    useful_bytes = len(answer.piece)
                    self._useful_bytes += useful_bytes
                    return True
        except ManifestError:
            # Not an answer; counted, and the silence goes on.
            pass
        finally:
            self._account.count(_cost(message) - useful_bytes)
        self.ignored += 1
        self._useless_bytes += _cost(message)
        if self._useless_bytes > NONSENSE_BYTES_MAX + self._useful_bytes:
            raise TransferError(
                f"{self._useless_bytes} bytes came through the broker that answer nothing",
                hint="somebody floods this device, or the fleet's controller is not in order",
            )
        return False

    def _ask(self, window: PullWindow, kind: Kind, name: str, now_s: float) -> None:
        if not self._is_up:
            return
        rule = RULES[Leaf.PULL]
        topic = topics.device_topic(self._mailbox.tenant, self._mailbox.device, Leaf.PULL)
        before = window.asked_again
        for wanted in window.due(now_s, self._account.left_bytes):
            request = Request(
                channel=self._mailbox.channel, id=wanted.id, kind=kind, length=wanted.length, name=name,
                offset=wanted.offset,
            )  # fmt: skip
            message = Message(topic, encode_request(request), rule.qos, rule.retain)
            # One that is not taken is as one that is lost.
            if self._transport.publish(message):
                self._account.count(_cost(message))
        self.asked_again += window.asked_again - before
        self._next_id = window.next_id

    def _abandon(self) -> None:
        """Count what came of a file that was not read to its end."""
        if self._window is not None:
            self._account.count(self._window.unread_bytes)
            self._window = None

    def _wait_for_link(self) -> None:
        if not self._is_started:
            self._is_started = True
            self._transport.start()
        until_s = self._monotonic_s() + LINK_TIMEOUT_S
        while not self._is_up:
            match self._transport.receive(_LOOK_EVERY_S):
                case LinkUp():
                    self._is_up = True
                case LinkDown(reason):
                    self._reason = reason
                case Message() as message:
                    self._account.count(_cost(message))
            if not self._is_up and self._monotonic_s() > until_s:
                raise self._unreachable()

    def _silent(self, name: str) -> StalledError | LinkDownError:
        if not self._is_up:
            return self._unreachable()
        return StalledError(
            f"the fleet sent nothing of {name} for {SILENCE_MAX_S:.0f} s",
            hint="it may be down, or older than pulls",
        )

    def _unreachable(self) -> LinkDownError:
        return LinkDownError(
            f"no link with the broker: {self._reason or 'no answer'}"[:300],
            hint="check [broker] and the network",
        )


def _cost(message: Message) -> int:
    return FRAME_BYTES + len(message.topic) + len(message.payload)
