"""Identifiers and digests.

Decides how a device, a release, a deployment and a digest are written, so that each is safe in a topic, a URL
and a file name. Does not decide who owns them.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NewType

from .errors import ConfigError

DeviceId = NewType("DeviceId", str)
TenantId = NewType("TenantId", str)
ModelName = NewType("ModelName", str)
"""What all releases of a model share."""
ReleaseId = NewType("ReleaseId", str)
"""`model@version`."""
DeploymentId = NewType("DeploymentId", str)
ChannelId = NewType("ChannelId", str)
"""Where one fetching process hears answers to its pulls."""
Digest = NewType("Digest", str)
"""SHA-256 as 64 lower-case hex digits."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_READ_BYTES = 1 << 20


def is_name(text: str) -> bool:
    """Tell whether `text` may name a device, tenant, model, version or variant.

    >>> is_name("sensor-07"), is_name("../etc"), is_name("a/b"), is_name("a+")
    (True, False, False, False)
    """
    return _NAME.fullmatch(text) is not None and ".." not in text


def parse_name(text: str, what: str) -> str:
    """Return `text` if it is a name.

    Raises:
        ConfigError: It is not; `what` is named in the message.
    """
    if not is_name(text):
        raise ConfigError(
            f"{what} {text!r} is not a valid name",
            hint="use 1 to 63 of a-z 0-9 . _ - and start and end with a letter or digit",
        )
    return text


def parse_release(text: str) -> tuple[str, str]:
    """Split `model@version`.

    Raises:
        ConfigError: Not of that form.

    >>> parse_release("digits@1.0.0")
    ('digits', '1.0.0')
    """
    model, at, version = text.partition("@")
    if not at or not is_name(model) or not is_name(version):
        raise ConfigError(
            f"{text!r} is not a release", hint="write it as model@version, for example digits@1.0.0"
        )
    return model, version


def model_of(release: ReleaseId) -> ModelName:
    """Name the model that a release belongs to.

    Raises:
        ConfigError: It is no release.

    >>> model_of(ReleaseId("digits@1.0.0"))
    'digits'
    """
    return ModelName(parse_release(release)[0])


def release_id(model: str, version: str) -> ReleaseId:
    """Join a model's name and version."""
    return ReleaseId(f"{model}@{version}")


def is_digest(text: str) -> bool:
    """Tell whether `text` is a SHA-256 in lower-case hex."""
    return _DIGEST.fullmatch(text) is not None


def digest_of(data: bytes | memoryview) -> Digest:
    """SHA-256 of bytes."""
    return Digest(hashlib.sha256(data).hexdigest())


def digest_of_file(path: Path) -> Digest:
    """SHA-256 of a file, read in 1 MiB pieces.

    Raises:
        OSError: The file cannot be read.
    """
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            sha256.update(piece)
    return Digest(sha256.hexdigest())
