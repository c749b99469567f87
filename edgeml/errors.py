"""The errors of edgeml, split by what the caller should do: fix, refuse, retry.

Decides the hierarchy, the exit codes and that each error may carry a hint.
How an error is shown belongs to the command line (`edgeml.cli`); what is retried, to the agent and the fleet.
Programmer errors stay ValueError, TypeError and RuntimeError.
"""

from __future__ import annotations

from typing import ClassVar


class EdgemlError(Exception):
    """Anything edgeml says to its user. `message` is one line; `hint` says what to do next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        # Names in a message may come from hostile bytes: a line break or an escape sequence must not reach a log.
        self.message = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in message)
        super().__init__(self.message)
        self.hint = hint


class ConfigError(EdgemlError):
    """The user can fix it: an argument, a file, a setting, the data given. Exit code 2."""

    exit_code = 2


class ArtifactError(EdgemlError):
    """Content is wrong and is refused; the same digest is never tried again. Exit code 3."""

    exit_code = 3


class ManifestError(ArtifactError):
    """A manifest, message or record does not follow its format."""


class DigestMismatchError(ArtifactError):
    """Bytes do not have the digest or length that signed metadata states."""


class TrustError(ArtifactError):
    """Signed metadata is missing, wrongly signed, expired, or older than what was already trusted."""


class ExpiredError(TrustError):
    """Signed metadata has expired: the fleet has stopped signing, or newer metadata is kept from here."""


class DowngradeError(TrustError):
    """A release older than the newest committed one, and not this device's previous slot."""


class IncompatibleError(ArtifactError):
    """Sound content for other hardware, another runtime, or a newer format."""


class SelectionError(ArtifactError):
    """No candidate meets every constraint."""


class BackendError(ArtifactError):
    """A runtime library could not load or run this model, or died of it."""


class BudgetError(ArtifactError):
    """Something does not fit. Carries the budget and what was observed, both in `unit`."""

    def __init__(self, message: str, *, budget: float, observed: float, unit: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.budget = budget
        self.observed = observed
        self.unit = unit


class TransferError(EdgemlError):
    """Transport failed; try again with backoff, and not before `retry_after_s` if the peer said so. Exit code 4."""

    exit_code = 4

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class LinkDownError(TransferError):
    """The broker or server cannot be reached."""


class StalledError(TransferError):
    """The peer is too slow or stopped sending."""


class PermanentTransferError(TransferError):
    """The server answered that it will never serve this (4xx); retrying does not help."""


class PostponedError(TransferError):
    """Not now, although nothing is wrong: try again after `wait_s`. That is no failed attempt."""

    def __init__(self, message: str, *, wait_s: float = 0.0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.wait_s = wait_s


class StorageError(EdgemlError):
    """The device's or controller's disk failed: full, read-only, I/O error. Exit code 5."""

    exit_code = 5


class StateError(EdgemlError):
    """An illegal transition or a corrupt journal: a bug or a broken disk. Exit code 5."""

    exit_code = 5
