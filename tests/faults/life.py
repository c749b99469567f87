"""A whole agent in this process, on a clock that the test sets, with a real fleet at the other end of a broker.

Its worker and its fetching children are processes; only the turns of its loop are the test's.
"""

import time

import numpy as np

from agent import config
from agent.ipc import TensorBytes
from agent.service import Service
from edgeml import topics
from edgeml.clock import SystemClock
from edgeml.tensors import DType

TURN_S = 0.2
DEADLINE_S = 180


class SetClock(SystemClock):
    """Runs as the machine's, and is set ahead or back, both kinds of time alike."""

    def __init__(self, ahead_s=0.0):
        self.ahead_s = ahead_s

    def now_ms(self):
        return super().now_ms() + round(self.ahead_s * 1000)

    def monotonic_s(self):
        return super().monotonic_s() + self.ahead_s


class Life:
    """The agent, its fleet, and what the broker was told, in order and with the time."""

    def __init__(self, agent, broker, headquarters):
        self.agent, self.broker, self.headquarters = agent, broker, headquarters
        self.clock = headquarters.clock
        self.heard = []
        self.asked = 0
        self.closed = False
        self.begin()

    def begin(self):
        self.service = Service(config.load(self.agent.settings), self.agent.settings, self.clock)
        self.service._begin()
        self.service._transport.start()
        self.buffer = self.service._buffer

    def restart(self):
        """Let the agent end in order, and begin anew."""
        self.service._end()
        self.service._lock.release()
        self.begin()

    @property
    def up(self):
        return self.service._link.up

    def listen(self):
        """Hear everything that the device says."""

        def hear(_client, _data, message):
            if not message.retain:
                self.heard.append((self.clock.monotonic_s(), topics.parse(message.topic), message.payload))

        self.broker.client.on_message = hear
        self.broker.client.subscribe("em/v1/default/d/cam-1/#", 1)

    def turn(self, seconds):
        self.clock.ahead_s += seconds
        self.service._turn()
        # The test's time flies: what was sent is to arrive in the turn in which it was.
        deadline = time.monotonic() + 1.0
        while self.up and self.service._transport.unconfirmed and time.monotonic() < deadline:
            time.sleep(0.001)
        self.headquarters.step()

    def ask(self, release="sample@1.0.0"):
        tensors = [TensorBytes(DType.FLOAT32, (1, 4), np.float32([[1, 2, 3, 4]]).tobytes())]
        served = self.service.answering.infer("sample", tensors, f"r{self.asked}")
        assert served.manifest.release == release
        self.asked += 1

    def until(self, condition, what, seconds=TURN_S):
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what}"
            self.turn(seconds)

    def entry(self, model="sample"):
        return self.service._device.entry(model)

    def close(self):
        if not self.closed:
            self.closed = True
            self.service._end()
            self.headquarters.close()
