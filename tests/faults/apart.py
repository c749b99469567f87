"""A whole agent and its fleet, each with a line of its own to a broker that dies and comes back.

The broker keeps on disk what is retained (`KeepingBroker`). Both lines are cut while it is away, so that a test hears
all that is said once it is back, and decides who hears what is lost with it.
"""

from edgeml.ids import ReleaseId
from fleet import overview
from fleet.rollout import Plan, RolloutState

from .headquarters import Headquarters
from .life import Life, SetClock
from .link import Line

TRIAL_S = 20.0


class Apart(Life):
    """An agent that serves `sample@1.0.0`, and a fleet that has more releases of it."""

    def __init__(self, directory, agent, broker, versions):
        self.lines = [Line([broker.port], bytes_s=1e7, rtt_s=0.0, lost=0.0) for _ in range(2)]
        self.line, self.controllers_line = self.lines
        headquarters = Headquarters(directory, self.controllers_line.ports[broker.port], SetClock())
        for number, content in versions.items():
            (directory / f"{number}.edgeml").write_bytes(content)
            headquarters.publish(directory / f"{number}.edgeml")
        agent.join(broker, headquarters)
        agent.dial(self.line.ports[broker.port])
        super().__init__(agent, broker, headquarters)

    def meet(self):
        """Wait until the fleet knows what the device runs."""
        self.until(lambda: self.up and self.headquarters.connected, "both links", seconds=0.0)
        self.until(lambda: overview.status(self.headquarters.store, 0).releases, "the device's report")

    def kill_broker(self):
        self.broker.kill()
        for line in self.lines:
            line.cut()
        self.until(lambda: not self.up and not self.headquarters.connected, "both to notice", seconds=0.0)

    def come_back(self):
        """Let the broker come back, and both find it."""
        self.broker.begin()
        self.heard.clear()
        self.listen()
        for line in self.lines:
            line.mend()
        self.until(lambda: self.up and self.headquarters.connected, "both links again", seconds=0.0)

    def roll_out(self, release):
        plan = Plan(release=ReleaseId(release), waves=(1.0,), soak_s=0.0, trials_min=1, trial_s=TRIAL_S)
        return self.headquarters.start(plan)

    def state(self, rollout):
        return overview.rollout(self.headquarters.store, rollout).rollout.state

    def is_complete(self, rollout):
        return self.state(rollout) is RolloutState.COMPLETED

    def live(self, *releases):
        """A turn in which there is work for one of these, and something to tell of it."""
        self.ask(*releases)
        self.note()
        self.turn(0.3)
        self.check_kept()

    def close(self):
        super().close()
        for line in self.lines:
            line.close()
        self.lines = []
