"""A fleet on a real mosquitto, with the topic table's access list, whose controller the test drives: its steps, its clock."""

import contextlib
import socket
import subprocess

from edgeml import topics
from edgeml.clock import SystemClock
from edgeml.ids import TenantId
from edgeml.mqtt import Login, PahoTransport
from edgeml.testing import sample_bundle
from fleet import broker, campaigns, founding, overview
from fleet.doorkeeper import Doorkeeper
from fleet.repository import Repository
from fleet.rollout import Plan
from fleet.service import Controller
from fleet.tokens import controller_token

from ..waiting import wait_for
from .served import PROFILE, Served


class Steered(Served):
    """A fleet whose controller is in this process."""

    def serve(self, clock=None):
        launch = broker.prepare(self.home, self.config)
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(launch.command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        wait_for(self._listens, "the broker")
        self.clock = clock or SystemClock()
        login = Login(
            host="127.0.0.1", port=self.config.broker.port, username=topics.CONTROLLER_USER,
            password=controller_token(self.home), client_id="controller",
        )  # fmt: skip
        doorkeeper = Doorkeeper(self.config.quota, self.clock)
        self.transport = PahoTransport(
            login, subscriptions=topics.up_filters(TenantId(self.config.tenant)), admits=doorkeeper.admits
        )
        self.releases = Repository(self.home.repository)
        self.controller = Controller(
            self.store, self.releases, self.transport, self.clock, self.config, doorkeeper=doorkeeper
        )
        self.transport.start()

    def _listens(self):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.config.broker.port)):
            return True
        return False

    def until(self, condition, what, meanwhile=lambda: None):
        """Let the controller work until something is so; return that."""

        def look():
            self.controller.step(0.05)
            meanwhile()
            return condition()

        return wait_for(look, what)

    def view(self, name):
        """What an operator sees of a device."""
        return next(
            one for one in overview.status(self.store, self.clock.now_ms()).devices if one.device == name
        )

    def publish(self, version, seed=7):
        path = self.directory / f"{version}.edgeml"
        sample_bundle(path, version, seed=seed)
        founding.publish(self.home, self.store, [path], self.home.keys)
        return f"sample@{version}"

    def signed(self, release):
        """The variant of a release that all devices here are to run."""
        return self.releases.variant_for(release, PROFILE)

    def begin(self, release, **plan):
        """Start a rollout, in one wave unless told otherwise; return its name."""
        plan = Plan(release=release, **{"waves": (1.0,), "trials_min": 1, **plan})
        return campaigns.start(self.store, self.releases, plan, self.clock.now_ms()).id

    def seen(self, rollout):
        """What an operator sees of a rollout."""
        return overview.rollout(self.store, rollout)

    def state(self, rollout):
        return self.seen(rollout).rollout.state

    def part(self, rollout, name):
        return next(one for one in self.seen(rollout).devices if one.device == name)

    def close(self):
        if hasattr(self, "transport"):
            self.transport.close()
        super().close()
