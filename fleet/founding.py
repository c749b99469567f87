"""Makes a fleet, and publishes releases in it.

Decides what belongs together: directory, settings, keys and an empty repository at the start; signed bundles and the
monitors from which drift is told at every publication. Signing is `repository`'s business, keys `keys`'.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgeml import bundle as bundles
from edgeml import monitor as monitors
from edgeml.clock import SystemClock
from edgeml.errors import ConfigError, IncompatibleError
from edgeml.ids import Digest, ReleaseId
from edgeml.manifest import RuntimeFamily
from edgeml.monitor import Monitor

from . import authority, config, telemetry_store
from .config import FleetHome
from .keys import ANCHOR, SNAPSHOT, TARGETS, TIMESTAMP, create_keys, key_path, load_keys, load_signer
from .repository import PublishedVariant, Repository
from .store import Store
from .tokens import operator_token

PASSPHRASE_BYTES_MAX: Final = 4 << 10


def found(home: FleetHome, passphrase: bytes | None = None) -> None:
    """Make a fleet in a directory, or finish what an interrupted call began.

    Args:
        home: where.
        passphrase: encrypts the offline keys.

    Raises:
        ConfigError: There is a fleet already, or parts of one that was complete; all stays as it is.
        StorageError: The disk refused.
    """
    config.create(home)
    # The database comes last, so keys without one are those of a call that was interrupted.
    interrupted = (home.keys / ANCHOR).exists() and not home.database.exists()
    keys = load_keys(home.keys, passphrase) if interrupted else create_keys(home.keys, passphrase)
    authority.ensure(home.authority, SystemClock().now_ms())
    Repository(home.repository).initialise(keys)
    operator_token(home)
    Store(config.database_url(home, config.load(home))).close()


def publish(
    home: FleetHome, store: Store, paths: Sequence[Path], keys: Path, passphrase: bytes | None = None
) -> tuple[PublishedVariant, ...]:
    """Sign bundles, add them to the repository, and remember their monitors.

    Args:
        home: the fleet.
        store: its database.
        paths: the bundles.
        keys: directory of the signing keys, usually on a medium of its own.
        passphrase: of the offline keys.

    Raises:
        ConfigError: A bundle or a key is missing, or a key is not this fleet's.
        ArtifactError: A file is no bundle, is for no agent, or is published under the same name with other content.
        StorageError: The disk refused.
    """
    for path in paths:
        _check_runtime(path)
    # Monitors first: if this is interrupted a monitor of no release is harmless, a release without monitor is not.
    for path in paths:
        _remember_monitor(store, path)
    online = home.keys if not key_path(keys, SNAPSHOT).exists() else keys
    return Repository(home.repository).publish(
        paths,
        load_signer(key_path(keys, TARGETS), passphrase),
        load_signer(key_path(online, SNAPSHOT)),
        load_signer(key_path(online, TIMESTAMP)),
        SystemClock().now_ms(),
    )


def read_passphrase(path: Path | None) -> bytes | None:
    """Read a passphrase from a file: never from the command line, where everybody sees it.

    Raises:
        ConfigError: The file cannot be read, or is empty.
    """
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            passphrase = file.read(PASSPHRASE_BYTES_MAX).rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    if not passphrase:
        raise ConfigError(f"{path} is empty", hint="write the passphrase of the offline keys into it")
    return passphrase


def _check_runtime(path: Path) -> None:
    with bundles.Bundle(path) as bundle:
        runtime: RuntimeFamily = bundle.manifest.runtime
        if not runtime.is_for_agents:
            raise IncompatibleError(
                f"{path.name} holds {runtime.value}, which no agent loads: nothing was published",
                hint="publish what was converted to ONNX or TFLite",
            )


def _remember_monitor(store: Store, path: Path) -> None:
    with bundles.Bundle(path) as bundle:
        if not bundle.has(bundles.MONITOR):
            return
        release: ReleaseId = bundle.manifest.release
        monitor: Monitor = monitors.decode(bundle.read(bundles.MONITOR))
    digest: Digest = monitors.digest(monitor)
    with store.write() as connection:
        telemetry_store.save_monitors(connection, release, [(digest, monitor)])
