"""Pulls: a device asks the fleet for a piece of a file over MQTT, and is answered.

Decides the bytes of both messages, which files may be named at all, and how long a piece may be. Who is answered, and
when, is the fleet's business (`fleet.pulls`); what is asked next, `edgeml.pull_window`'s. Wire: docs/protocol.md.
"""

from __future__ import annotations

import enum
import re
import struct
from dataclasses import dataclass
from typing import Final

import msgspec

from .errors import ManifestError
from .ids import ChannelId, is_digest, is_name

PIECE_BYTES_MAX: Final = 64 << 10
REQUEST_BYTES_MAX: Final = 1 << 10
ANSWER_BYTES_MAX: Final = 72 << 10
ID_MAX: Final = (1 << 53) - 1
"""JSON's numbers are exact up to here."""
OFFSET_MAX: Final = 1 << 50
_VERSION: Final = 1
_HEAD: Final = struct.Struct(">BBQQQ")
"""Version, status, id, offset, total length; the piece follows."""
_METADATA: Final = re.compile(r"(?:timestamp|[1-9][0-9]{0,9}\.(?:root|snapshot|targets))\.json", re.ASCII)


class Kind(enum.Enum):
    """What a name names."""

    METADATA = "metadata"
    BLOB = "blob"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A device wants a piece of a file. `name` is a metadata file's name or a blob's digest."""

    channel: ChannelId
    id: int
    kind: Kind
    length: int
    name: str
    offset: int = 0


class Status(enum.IntEnum):
    """How a request ended."""

    PIECE = 0
    MISSING = 1
    """There is no such file."""
    OFF = 2
    """This fleet answers no pulls."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A piece of a file, or why there is none. `total_bytes` is the whole file's length."""

    id: int
    status: Status
    offset: int = 0
    total_bytes: int = 0
    piece: bytes = b""


def encode_request(request: Request) -> bytes:
    """Write a request."""
    return _ENCODER.encode(request)


def decode_request(payload: bytes) -> Request:
    """Read a request.

    Raises:
        ManifestError: It does not follow the format, or names something that no repository has.
    """
    try:
        request = _DECODER.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ManifestError(f"no request of a pull: {error}") from error
    if not is_name(request.channel):
        raise ManifestError(f"a pull on the channel {request.channel[:80]!r}")
    if not 0 <= request.id <= ID_MAX or not 0 <= request.offset <= OFFSET_MAX:
        raise ManifestError(f"a pull with the id {request.id} and the offset {request.offset}")
    if not 1 <= request.length <= PIECE_BYTES_MAX:
        raise ManifestError(f"a pull of {request.length} bytes, not 1 to {PIECE_BYTES_MAX}")
    known = _METADATA.fullmatch(request.name) if request.kind is Kind.METADATA else is_digest(request.name)
    if not known:
        raise ManifestError(f"a pull of the {request.kind.value} {request.name[:80]!r}")
    return request


def encode_answer(answer: Answer) -> bytes:
    """Write an answer."""
    head = _HEAD.pack(_VERSION, answer.status, answer.id, answer.offset, answer.total_bytes)
    return head + answer.piece


def decode_answer(payload: bytes) -> Answer:
    """Read an answer.

    Raises:
        ManifestError: It does not follow the format.
    """
    if not _HEAD.size <= len(payload) <= _HEAD.size + PIECE_BYTES_MAX:
        raise ManifestError(f"an answer to a pull of {len(payload)} bytes")
    version, status, identity, offset, total_bytes = _HEAD.unpack_from(payload)
    if version != _VERSION or status not in set(Status):
        raise ManifestError(f"an answer to a pull of version {version} and status {status}")
    return Answer(identity, Status(status), offset, total_bytes, payload[_HEAD.size :])


_ENCODER: Final = msgspec.json.Encoder(order="sorted")
_DECODER: Final = msgspec.json.Decoder(Request)
