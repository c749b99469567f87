"""The fleet's side of a broker: a real controller with its database and its link. Its loop is the test's."""

import msgspec
import sqlalchemy as sa

from edgeml import topics
from edgeml.ids import DeviceId, TenantId
from edgeml.mqtt import Login, PahoTransport
from edgeml.telemetry import Stream
from edgeml.topics import CONTROLLER_USER
from fleet import campaigns, devices, founding, overview, schema, telemetry_store
from fleet.config import FleetHome, database_url
from fleet.config import load as load_config
from fleet.devices import Enrolment
from fleet.repository import Repository
from fleet.service import Controller
from fleet.store import Store

TENANT = TenantId("default")
PROFILE = "generic-x86-64"


class Headquarters:
    """A fleet with one device, `cam-1`, on a broker of this machine."""

    def __init__(self, directory, port, clock):
        self.clock = clock
        self.home = FleetHome(directory / "fleet")
        founding.found(self.home)
        config = msgspec.structs.replace(load_config(self.home), tenant=TENANT)
        self.store = Store(database_url(self.home, config))
        with self.store.write() as connection:
            devices.enrol(
                connection,
                Enrolment(
                    device=DeviceId("cam-1"), tenant=TENANT, profile=PROFILE, token_sha256="0" * 64, broker_hash="",
                    enrolled_at_ms=clock.now_ms(),
                ),
            )  # fmt: skip
        login = Login(
            host="127.0.0.1", port=port, username=CONTROLLER_USER, password="secret", client_id="controller"
        )
        self.link = PahoTransport(login, subscriptions=topics.up_filters(TENANT))
        self.repository = Repository(self.home.repository)
        self.controller = Controller(self.store, self.repository, self.link, clock, config)
        self.link.start()

    @property
    def anchor(self):
        return (self.home.repository / "metadata/1.root.json").read_bytes()

    @property
    def url(self):
        """Where devices fetch: its repository, as a directory."""
        return self.home.repository

    @property
    def connected(self):
        return self.controller._connected

    def publish(self, *bundles):
        """Sign bundles and add them to the repository."""
        founding.publish(self.home, self.store, bundles, self.home.keys)

    def start(self, plan):
        """Start a rollout; return its name."""
        return campaigns.start(self.store, self.repository, plan, self.clock.now_ms()).id

    def rows(self):
        """What it has stored: boot and number of every row, by stream."""
        with self.store.read() as connection:
            return {
                stream: [tuple(row) for row in connection.execute(sa.select(table.c.boot, table.c.seq))]
                for stream, table in ((Stream.WINDOWS, schema.windows), (Stream.EVENTS, schema.events))
            }

    def inferences(self):
        with self.store.read() as connection:
            return telemetry_store.inferences(connection)

    def notes(self):
        """Texts of the notes that it has stored, in order of their letters."""
        with self.store.read() as connection:
            wanted = sa.select(schema.events.c.detail).where(schema.events.c.kind == "note")
            return sorted(connection.scalars(wanted))

    def online(self):
        return overview.status(self.store, self.clock.now_ms()).devices[0].online

    def step(self):
        self.controller.step(0.0)

    def close(self):
        self.link.close()
        self.store.close()
