"""The controller as a process of its own.

Decides how a `Controller` is put together from a fleet's directory, and when it stops: on SIGTERM, or when its parent
dies. It also gives signed metadata a new date, because an expired timestamp stops every installation.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from typing import Any, Final

import click

from edgeml import topics
from edgeml.clock import SystemClock
from edgeml.errors import EdgemlError
from edgeml.ids import TenantId
from edgeml.lock import Lock
from edgeml.mqtt import Login, PahoTransport

from . import locks
from .config import FleetConfig, FleetHome, database_url, find_home, load
from .doorkeeper import Doorkeeper
from .keys import SNAPSHOT, TIMESTAMP, key_path, load_signer
from .lifeline import Lifeline
from .repository import Repository
from .service import Controller, new_session, presence_message
from .store import Store
from .tokens import controller_token

logger = logging.getLogger(__name__)

STEP_S: Final = 0.25
KEEPALIVE_S: Final = 15
LOCK_WAIT_S: Final = 3.0
RESIGN_RETRY_S: Final = 60.0


class _Stop:
    """Set by SIGTERM."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, _number: int, _frame: Any) -> None:
        self.asked = True


def run(home: FleetHome) -> None:
    """Run the controller of a fleet's directory until it is asked to stop.

    Raises:
        ConfigError: No fleet there, or it has a controller already.
        StorageError, StateError: The database failed; start again.
    """
    stop = _Stop()
    lifeline = Lifeline()
    config = load(home)
    lock = _locked(home)
    clock = SystemClock()
    store = Store(database_url(home, config))
    repository = Repository(home.repository)
    session = new_session()
    doorkeeper = Doorkeeper(config.quota, clock)
    transport = _transport(home, config, session, doorkeeper)
    controller = Controller(
        store, repository, transport, clock, config, session=session, doorkeeper=doorkeeper
    )
    transport.start()
    resign_at_s = 0.0
    try:
        while not stop.asked and not lifeline.cut:
            controller.step(STEP_S)
            if clock.monotonic_s() >= resign_at_s:
                resign_at_s = clock.monotonic_s() + _resign(repository, home, config)
        controller.say_goodbye()
    finally:
        transport.close()
        store.close()
        lock.release()


def _locked(home: FleetHome) -> Lock:
    # A predecessor that was just killed may take a moment to be gone.
    until_s = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            return locks.hold(home, locks.CONTROLLER, "a controller")
        except EdgemlError:
            if time.monotonic() >= until_s:
                raise
            time.sleep(0.1)


def _transport(home: FleetHome, config: FleetConfig, session: str, doorkeeper: Doorkeeper) -> PahoTransport:
    tenant = TenantId(config.tenant)
    login = Login(
        host=config.broker.host,
        port=config.broker.port,
        username=topics.CONTROLLER_USER,
        password=controller_token(home),
        client_id=f"edgeml-{config.controller}",
        keepalive_s=KEEPALIVE_S,
    )
    return PahoTransport(
        login,
        subscriptions=topics.up_filters(tenant),
        will=presence_message(config, session, 0, online=False),
        admits=doorkeeper.admits,
    )


def _resign(repository: Repository, home: FleetHome, config: FleetConfig) -> float:
    """Give signed metadata a new date where that is due; return in how many seconds to look again."""
    try:
        renewed = repository.resign(
            SystemClock().now_ms(),
            load_signer(key_path(home.keys, SNAPSHOT)),
            load_signer(key_path(home.keys, TIMESTAMP)),
        )
    except EdgemlError as error:
        # Devices go on as they are; only new installations stop, and not before the old date has passed.
        logger.error("signed metadata is not renewed: %s (%s)", error.message, error.hint)  # noqa: TRY400  # one line
        return RESIGN_RETRY_S
    if renewed:
        logger.info("renewed the signatures of %s", ", ".join(renewed))
    return config.controller_loop.resign_s


@click.command()
@click.option("--dir", "directory", required=True)
def main(directory: str) -> None:
    """Run the controller of a fleet's directory; `edgeml fleet serve` starts it."""
    logging.basicConfig(level=logging.INFO, format="controller: %(message)s")
    try:
        run(find_home(directory))
    except EdgemlError as error:
        # One line for people; the trace would say nothing that they can use.
        click.echo(f"error: {error.message}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
